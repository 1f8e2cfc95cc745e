//! A network for the server whose packets are relayed by the network driver. Over loopback there is no driver, so this one
//! stands in a namespace of its own, and its clients and peers in another:
//!
//! ```text
//!   world, 10.9.0.1                servers, 10.9.0.2
//!   clients and peers  bw ── bt    penstock-turn --xdp bt
//! ```
//!
//! What a driver of such a pair (veth) does around the program, copying each packet for one thing, is no measure of what
//! a network card's does. So the program alone is measured, by the kernel's own count of the time that it runs.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, ensure};
use penstock_turn::shell::xdp::Xdp;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The servers' address.
pub(crate) const SERVER: &str = "10.9.0.2";
/// The world's.
pub(crate) const WORLD: &str = "10.9.0.1";
/// The servers' interface.
pub(crate) const INTERFACE: &str = "bt";
const OTHER_END: &str = "bw";

/// Both namespaces; gone with this.
pub(crate) struct Network {
    servers: String,
    world: String,
    home: File,
    /// A receiver of what a driver sends takes packets in as cards do, with a program too.
    _receiver: Option<Xdp>,
}

impl Network {
    /// Builds it. Takes root.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let process = std::process::id();
        let mut network = Self {
            servers: format!("pstb{process}-servers"),
            world: format!("pstb{process}-world"),
            home: File::open("/proc/thread-self/ns/net")?,
            _receiver: None,
        };
        for name in [&network.servers, &network.world] {
            ip(&["netns", "add", name]).context("making a network namespace, which takes root")?;
        }
        let pair = ["type", "veth", "peer", "name", OTHER_END, "netns", &network.world];
        ip(&[&["-n", &network.servers, "link", "add", INTERFACE][..], &pair].concat())?;
        network.set_up(&network.servers, INTERFACE, SERVER)?;
        network.set_up(&network.world, OTHER_END, WORLD)?;
        // What a driver passes on it passes on as it is, so checksums must be whole.
        network.run(&network.world, &["ethtool", "-K", OTHER_END, "tx", "off"])?;
        let receiver = network.in_world(|| Ok(Xdp::attach(&[OTHER_END.to_owned()])?))?;
        network._receiver = Some(receiver);
        run("sysctl", &["-qw", "kernel.bpf_stats_enabled=1"])?;
        Ok(network)
    }

    /// What comes before a command that is to run on the servers' machine.
    pub(crate) fn on_servers(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.servers]
    }

    /// Opens sockets in the world.
    pub(crate) fn in_world<T>(&self, open: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        enter(&File::open(format!("/run/netns/{}", self.world))?)?;
        let opened = open();
        enter(&self.home)?;
        opened
    }

    fn set_up(&self, namespace: &str, interface: &str, address: &str) -> anyhow::Result<()> {
        let address = format!("{address}/24");
        ip(&["-n", namespace, "address", "add", &address, "dev", interface])?;
        for interface in ["lo", interface] {
            ip(&["-n", namespace, "link", "set", interface, "up"])?;
        }
        // Takes packets in as a card does.
        self.run(namespace, &["ethtool", "-K", interface, "gro", "on"])?;
        self.run(namespace, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    }

    fn run(&self, namespace: &str, command: &[&str]) -> anyhow::Result<()> {
        ip(&[&["netns", "exec", namespace][..], command].concat())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = run("sysctl", &["-qw", "kernel.bpf_stats_enabled=0"]);
        for name in [&self.servers, &self.world] {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

/// The time that a process's programs in the kernel have run, in seconds.
pub(crate) fn program_s(process: u32) -> anyhow::Result<f64> {
    let mut sum_ns = 0.0;
    for file in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        let text = fs::read_to_string(file?.path()).unwrap_or_default();
        let run = text.lines().find_map(|line| line.strip_prefix("run_time_ns:"));
        sum_ns += run.map_or(Ok(0.0), |ns| ns.trim().parse::<f64>())?;
    }
    Ok(sum_ns / 1e9)
}

fn enter(namespace: &File) -> anyhow::Result<()> {
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), network).context("entering a network namespace")
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("starting {program}: run scripts/setup"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", args.join(" "));
    Ok(())
}
