//! The real program behind NATs, in network namespaces of its own:
//!
//! ```text
//!  client 10.1.0.2 ──► router ──► internet 198.51.100.9 (the peer)
//!          masquerading, 10.1.0.1 │ 198.51.100.1
//!                                 └──► server 10.9.0.2, one-to-one 198.51.100.7
//!                                             10.9.0.3, one-to-one 198.51.100.8
//! ```
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::namespaces::{Ended, Namespaces, Program, text};

#[test]
fn a_server_behind_a_one_to_one_nat_relays_for_a_client_behind_a_masquerading_one() {
    let Some(net) = Net::build() else { return };
    for external in ["198.51.100.7", "198.51.100.7/10.9.0.2"] {
        for transport in ["", "-t"] {
            let (announced, output) = net.relay(&["--external-ip", external], transport);
            assert!(announced.contains("told relays at 198.51.100.7"), "{announced}");
            assert!(announced.contains("(this node's is 10.9.0.2)"), "{announced}");
            assert!(output.contains("Received relay addr: 198.51.100.7:"), "{output}");
            assert!(output.contains("Total lost packets 0 "), "{output}");
        }
    }
}

#[test]
fn without_an_external_address_clients_are_told_the_nodes_own() {
    let Some(net) = Net::build() else { return };
    let (announced, output) = net.relay(&[], "");
    assert!(announced.contains("(this node's is 10.9.0.2)"), "{announced}");
    assert!(output.contains("Received relay addr: 10.9.0.2:"), "{output}");
}

#[test]
fn a_relay_address_of_its_own_is_what_peers_see() {
    let Some(net) = Net::build() else { return };
    net.add_address("10.9.0.3/24");
    let (announced, output) = net.relay(&["--relay-ip", "10.9.0.3", "--external-ip", "198.51.100.7"], "");
    assert!(announced.contains("bound to 10.9.0.3;"), "{announced}");
    assert!(output.contains("Received relay addr: 198.51.100.7:"), "{output}");
    assert!(output.contains("Total lost packets 0 "), "{output}");
}

#[test]
fn each_interface_has_an_external_address_of_its_own() {
    let Some(net) = Net::build() else { return };
    net.add_address("10.9.0.3/24");
    let named = "10.9.0.2:3478,10.9.0.3:3478";
    let external = ["--external-ip", "198.51.100.7/10.9.0.2,198.51.100.8/10.9.0.3"];
    for (listen, at) in [named, "0.0.0.0:3478"]
        .into_iter()
        .flat_map(|listen| ["198.51.100.7", "198.51.100.8"].map(|at| (listen, at)))
    {
        let options = [&["--listen", listen][..], &external].concat();
        let (announced, output) = net.relay_at(at, &options, "");
        assert!(
            announced.contains("198.51.100.7 (for 10.9.0.2), 198.51.100.8 (for 10.9.0.3)"),
            "{announced}"
        );
        assert!(
            output.contains(&format!("Received relay addr: {at}:")),
            "{output}"
        );
        assert!(output.contains("Total lost packets 0 "), "{output}");
    }
}

/// The namespaces, with a router between them.
struct Net(Namespaces);

impl Net {
    fn build() -> Option<Self> {
        let names = ["router", "client", "server", "internet"];
        let net = Namespaces::build(&names, &["nft", "turnutils_uclient", "turnutils_peer"])?;
        for (name, gateway, address) in [
            ("client", "10.1.0.1/24", "10.1.0.2/24"),
            ("server", "10.9.0.1/24", "10.9.0.2/24"),
            ("internet", "198.51.100.1/24", "198.51.100.9/24"),
        ] {
            net.connect(("router", name, gateway), (name, "eth0", address));
            let gateway = gateway.split('/').next().unwrap();
            net.ip_in(name, &["route", "add", "default", "via", gateway]);
        }
        translate(&net);
        Some(Self(net))
    }

    /// What the server announced, and what coturn's client said of 4 clients with 50 packets each.
    fn relay(&self, options: &[&str], transport: &str) -> (String, String) {
        let everywhere = ["--listen", "0.0.0.0:3478"];
        self.relay_at("198.51.100.7", &[&everywhere[..], options].concat(), transport)
    }

    /// The same with all options, at an address of the server. Three tries: on a machine that is short of time, datagrams
    /// are lost in the buffers of those who send and receive.
    fn relay_at(&self, at: &str, options: &[&str], transport: &str) -> (String, String) {
        let lost_nothing = |(_, output): &(String, String)| output.contains("Total lost packets 0 ");
        (0..2)
            .map(|_| self.relay_once(at, options, transport))
            .find(lost_nothing)
            .unwrap_or_else(|| self.relay_once(at, options, transport))
    }

    fn relay_once(&self, at: &str, options: &[&str], transport: &str) -> (String, String) {
        let allowed = ["--allow-peer", "198.51.100.9"];
        let server = Program::start(&self.0, "server", &[&allowed, options].concat());
        let mut peer = self.0.command("internet", "turnutils_peer");
        peer.args(["-L", "198.51.100.9", "-p", "34800"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let _peer = Ended(peer.spawn().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let load = ["-m", "4", "-n", "50", "-z", "10", "-l", "1000", "-c", "-v"];
        let where_to = ["-u", "demo", "-w", "demo", "-e", "198.51.100.9", "-r", "34800"];
        let mut client = self.0.command("client", "timeout");
        client.args(["30", "turnutils_uclient"]).args(load).args(where_to);
        if !transport.is_empty() {
            client.arg(transport);
        }
        let said = text(&client.arg(at).output().unwrap());
        (server.announced.clone(), said)
    }

    /// Another address of the server's.
    fn add_address(&self, address: &str) {
        self.0
            .ip_in("server", &["address", "add", address, "dev", "eth0"]);
    }
}

/// The router's NAT. The internet knows no way to the networks behind it.
fn translate(net: &Namespaces) {
    let rules = "
        table ip nat {
            chain before {
                type nat hook prerouting priority dstnat;
                ip daddr 198.51.100.7 dnat to 10.9.0.2
                ip daddr 198.51.100.8 dnat to 10.9.0.3
            }
            chain after {
                type nat hook postrouting priority srcnat;
                ip saddr 10.9.0.2 oifname internet snat to 198.51.100.7
                ip saddr 10.9.0.3 oifname internet snat to 198.51.100.8
                ip saddr { 10.1.0.0/24, 10.9.0.0/24 } masquerade
            }
        }";
    for ip in ["198.51.100.7/32", "198.51.100.8/32"] {
        net.ip_in("router", &["address", "add", ip, "dev", "internet"]);
    }
    net.exec("router", "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    net.exec("router", "nft", &[rules]);
    net.ip_in("internet", &["route", "delete", "default"]);
}
