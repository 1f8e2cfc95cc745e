#!/usr/bin/env python3
"""Stands in for nvidia-cuda-mps-control, as far as a supervisor can tell.

`-f`: makes the files that the real one makes, starts a server, serves commands until `quit`; as the real one, it
then removes its PID file and leaves the sockets. Without: gives the commands on standard input to the daemon.
STAND_IN_DEAF: the daemon ignores commands and SIGTERM. STAND_IN_DIES: it ends at once.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import time

PIPES = os.environ["CUDA_MPS_PIPE_DIRECTORY"]


def listen(name):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The real one does not replace what an earlier one left, either.
    listener.bind(os.path.join(PIPES, name))
    listener.listen(8)
    return listener


def daemon():
    if "STAND_IN_DIES" in os.environ:
        sys.exit("error: no CUDA-capable device is detected")
    if "STAND_IN_DEAF" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(os.path.join(os.environ["CUDA_MPS_LOG_DIRECTORY"], "started.json"), "w") as file:
        json.dump({"args": sys.argv[1:], "env": dict(os.environ)}, file)
    open(os.path.join(PIPES, "control_lock"), "x").close()
    os.mkfifo(os.path.join(PIPES, "log"))
    privileged = listen("control_privileged")
    server = os.path.join(os.path.dirname(sys.argv[0]), "nvidia-cuda-mps-server")
    server = subprocess.Popen([server], start_new_session=True)
    pid_file = os.path.join(PIPES, "nvidia-cuda-mps-control.pid")
    with open(pid_file, "x") as file:
        file.write(f"{os.getpid()}\n")
    control = listen("control")
    while True:
        connection, _ = control.accept()
        command = connection.recv(4096).decode().strip()
        if command == "quit" and "STAND_IN_DEAF" not in os.environ:
            server.kill()
            server.wait()
            os.remove(pid_file)
            privileged.close()
            return


def tell():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.path.join(PIPES, "control"))
    connection.send(sys.stdin.buffer.read())


if os.path.basename(sys.argv[0]) == "nvidia-cuda-mps-server":
    time.sleep(1000)
elif "-f" in sys.argv:
    daemon()
else:
    tell()
