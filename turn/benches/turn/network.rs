//! A network between a server and the world, whose servers' end works as a network card does: it takes packets in by
//! polls of a thread (NAPI), and merges what belongs together (GRO).
//!
//! ```text
//!   world, 10.9.0.1                servers, 10.9.0.2
//!   clients and peers  world ── card    a server
//! ```

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::card::Card;
use crate::load::{Flow, Outcome};
use crate::servers::{LOAD_CORE, SERVER_CORE, pin, schedstat_s};

/// The servers' address.
pub(crate) const SERVER: &str = "10.9.0.2";
/// The world's.
pub(crate) const WORLD: &str = "10.9.0.1";
/// The servers' interface.
pub(crate) const CARD: &str = "card";
/// The world's.
const WORLD_END: &str = "world";
pub(crate) const MAC_OF_SERVER: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const MAC_OF_WORLD: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Both ends.
pub(crate) struct Network {
    card: Card,
    /// The thread of the servers' end.
    poller: u32,
    namespaces: Namespaces,
}

/// The machines that the ends are on; gone with this.
struct Namespaces {
    servers: String,
    world: String,
    home: File,
}

impl Network {
    /// Builds the network of one server. Takes root.
    pub(crate) fn build(server: &str) -> anyhow::Result<Self> {
        let namespaces = Namespaces::make(server)?;
        let (servers, world) = (&namespaces.servers, &namespaces.world);
        let (mac, of_world) = (text(MAC_OF_SERVER), text(MAC_OF_WORLD));
        let pair = [
            "type", "veth", "peer", "name", WORLD_END, "address", &of_world, "netns",
        ];
        let card = ["link", "add", CARD, "address", &mac];
        ip(&[&["-n", servers][..], &card, &pair, &[world]].concat())?;
        set_up(servers, CARD, SERVER)?;
        set_up(world, WORLD_END, WORLD)?;
        let poller = poll_in_a_thread(servers, CARD, SERVER_CORE, &[])?;
        poll_in_a_thread(world, WORLD_END, LOAD_CORE, &UNASKED)?;
        Ok(Self {
            card: namespaces.in_world(|| Card::attach(WORLD_END))?,
            poller,
            namespaces,
        })
    }

    /// What comes before a command that is to run on the servers' machine.
    pub(crate) fn on_servers(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespaces.servers]
    }

    /// Does something as the world does it.
    pub(crate) fn in_world<T>(&self, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.namespaces.in_world(act)
    }

    /// Carries the load, as [`Card::run`] says.
    pub(crate) fn carry(
        &mut self,
        flows: &[Flow],
        has_sums: bool,
        length: Duration,
    ) -> anyhow::Result<Outcome> {
        self.namespaces
            .in_world(|| self.card.run(flows, has_sums, length))
    }

    /// How long the servers' end has worked, in seconds of CPU time.
    pub(crate) fn poller_s(&self) -> anyhow::Result<f64> {
        schedstat_s(Path::new(&format!("/proc/{}/schedstat", self.poller)))
    }
}

impl Namespaces {
    fn make(server: &str) -> anyhow::Result<Self> {
        let process = std::process::id();
        let namespaces = Self {
            servers: format!("pstb{process}-{server}-servers"),
            world: format!("pstb{process}-{server}-world"),
            home: File::open("/proc/thread-self/ns/net")?,
        };
        for name in [&namespaces.servers, &namespaces.world] {
            ip(&["netns", "add", name]).context("making a network namespace, which takes root")?;
        }
        Ok(namespaces)
    }

    fn in_world<T>(&self, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        enter(&File::open(format!("/run/netns/{}", self.world))?)?;
        let done = act();
        enter(&self.home)?;
        done
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.servers, &self.world] {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn set_up(namespace: &str, interface: &str, address: &str) -> anyhow::Result<()> {
    let address = format!("{address}/24");
    ip(&["-n", namespace, "address", "add", &address, "dev", interface])?;
    for interface in ["lo", interface] {
        ip(&["-n", namespace, "link", "set", interface, "up"])?;
    }
    // From now on it polls.
    within(namespace, &["ethtool", "-K", interface, "gro", "on"])?;
    within(namespace, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])
}

/// Gives the thread, which goes before all others, as interrupts do.
fn poll_in_a_thread(
    namespace: &str,
    interface: &str,
    core: usize,
    settings: &[(&str, &str)],
) -> anyhow::Result<u32> {
    let before = pollers(interface)?;
    for (setting, value) in [&[("threaded", "1")], settings].concat() {
        let set = format!("echo {value} > /sys/class/net/{interface}/{setting}");
        within(namespace, &["sh", "-c", &set])?;
    }
    let thread = pollers(interface)?
        .into_iter()
        .find(|thread| !before.contains(thread));
    let thread = thread.with_context(|| format!("{interface} does not poll in a thread"))?;
    pin(thread, core)?;
    run("chrt", &["-f", "-p", "2", &thread.to_string()])?;
    Ok(thread)
}

/// The world's end looks for packets by the clock. Else the servers' end would have to wake its thread, on another core,
/// where a card writes to a register.
const UNASKED: [(&str, &str); 2] = [
    ("gro_flush_timeout", "100000"),
    ("napi_defer_hard_irqs", "1000000000"),
];

/// The threads that poll interfaces of a name.
fn pollers(interface: &str) -> anyhow::Result<Vec<u32>> {
    let mark = format!("napi/{interface}-");
    let processes = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_poller = |process: &u32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm"));
        name.is_ok_and(|name| name.starts_with(&mark))
    };
    Ok(processes.filter(is_poller).collect())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn enter(namespace: &File) -> anyhow::Result<()> {
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), network).context("entering a network namespace")
}

fn within(namespace: &str, command: &[&str]) -> anyhow::Result<()> {
    ip(&[&["netns", "exec", namespace][..], command].concat())
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
