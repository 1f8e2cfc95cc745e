#!/usr/bin/env python3
"""Stands in for penstock-streamer: serves /healthz where --listen says, and misbehaves as its arguments ask.

--fail        ends at once with status 2 and an error
--deaf        ignores SIGTERM
--leave       starts a process in a session of its own; ended on SIGTERM, left behind on SIGKILL
--linger      is that process
"""
import http.server
import json
import os
import signal
import subprocess
import sys
import time

args = sys.argv[1:]

if "calibrate" in args:
    if os.environ.get("STAND_IN_CALIBRATES") == "badly":
        sys.exit("error: no encoder")
    print('{"encoder":"x264enc","megapixelsPerSecond":241.3}')
    sys.exit(0)

if "--linger" in args:
    time.sleep(1000)
    sys.exit(0)

if "--fail" in args:
    print("error: 1080p60 takes 13 encoder units, the slice has 3\n\nTry '--help'.", file=sys.stderr)
    sys.exit(2)

left = subprocess.Popen([__file__, "--linger"], start_new_session=True) if "--leave" in args else None


def end(*_):
    if left:
        left.kill()
    os._exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if "--deaf" in args else end)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        slice_of_mine = {k: v for k, v in os.environ.items() if k.startswith(("PENSTOCK_", "CUDA_"))}
        body = json.dumps({"env": slice_of_mine, "args": args}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


host, port = args[args.index("--listen") + 1].rsplit(":", 1)
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
