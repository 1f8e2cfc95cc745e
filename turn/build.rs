//! Makes BPF of the program for the network driver.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let out = std::env::var_os("OUT_DIR").expect("Cargo says where");
    // For `asm/`, which Debian keeps apart for each architecture.
    let machine = std::env::var_os("CARGO_CFG_TARGET_ARCH").expect("Cargo says what for");
    let machine = machine.display();
    let mut clang = Command::new("clang");
    clang
        .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"])
        // No path of this machine in what is built.
        .arg(format!("-ffile-prefix-map={}=.", env!("CARGO_MANIFEST_DIR")))
        .arg(format!("-I/usr/include/{machine}-linux-gnu"))
        .args(["-c", SOURCE, "-o"])
        .arg(Path::new(&out).join("relay.bpf.o"));
    let done = clang.status().unwrap_or_else(|error| {
        panic!("starting clang: {error}. Install clang and libbpf-dev: scripts/setup packages")
    });
    assert!(
        done.success(),
        "clang could not compile {SOURCE}: {done}. Where headers are missing, install libbpf-dev: scripts/setup packages"
    );
}

const SOURCE: &str = "src/shell/xdp/relay.bpf.c";
