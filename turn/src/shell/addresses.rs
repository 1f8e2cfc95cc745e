//! This machine's own addresses: where clients come in, and which one is the node's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::sockets::{own_addresses, route_to};
use crate::addresses::reaches_others;
use crate::core::family::{ByFamily, Family};

/// Where clients come in by default: everywhere.
pub(super) fn listen_default() -> Vec<SocketAddr> {
    let everywhere = ["0.0.0.0:3478", "[::]:3478"].map(|address| address.parse().ok());
    let has_v6 = own_addresses().iter().any(IpAddr::is_ipv6);
    everywhere
        .into_iter()
        .flatten()
        .filter(|address: &SocketAddr| address.is_ipv4() || has_v6)
        .collect()
}

/// The node's address of each family: what was said that relays are bound to; else the first by its name that clients
/// come in at; else, where they come in everywhere, what the machine says. A family that nobody comes in by is not served.
pub(super) fn relay_ips(said: ByFamily<Option<IpAddr>>, listen: &[SocketAddr]) -> ByFamily<Option<IpAddr>> {
    let own = own_addresses();
    let mut ips = said;
    for family in Family::ALL {
        ips[family] = ips[family].or_else(|| {
            let at = listen.iter().map(SocketAddr::ip);
            let at: Vec<_> = at.filter(|ip| Family::of(*ip) == family).collect();
            if at.iter().any(IpAddr::is_unspecified) {
                node_ip(family, &own)
            } else {
                at.iter()
                    .copied()
                    .find(|ip| reaches_others(*ip))
                    .or(at.first().copied())
            }
        });
    }
    ips
}

/// The address that packets to the internet leave from; without a route there, the first of this machine that others
/// can reach; without one, loopback's.
pub(super) fn node_ip(family: Family, own: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let internet = match family {
        Family::V4 => "1.1.1.1:9",
        Family::V6 => "[2606:4700:4700::1111]:9",
    };
    let routed = internet.parse().ok().and_then(|there| route_to(there).ok());
    routed.or_else(|| most_reachable(family, own))
}

fn most_reachable(family: Family, own: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let of_family = || own.iter().filter(|ip| Family::of(**ip) == family);
    of_family()
        .find(|ip| reaches_others(**ip))
        .or_else(|| of_family().find(|ip| ip.is_loopback()))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_where_clients_come_in_unless_told_otherwise() {
        let listen = ["127.0.0.1:1", "[::1]:1"].map(|address| address.parse().unwrap());
        let ips = relay_ips(ByFamily::default(), &listen);
        assert_eq!(
            ips,
            ByFamily::first_of(listen.iter().map(SocketAddr::ip)),
            "the addresses that were named"
        );
        let said = ByFamily::first_of([ip("127.0.0.2")]);
        assert_eq!(relay_ips(said, &listen).v4, Some(ip("127.0.0.2")));
        assert_eq!(relay_ips(ByFamily::default(), &listen[..1]).v6, None);
        let several = ["127.0.0.1:1", "192.0.2.7:1", "192.0.2.8:1"].map(|address| address.parse().unwrap());
        assert_eq!(relay_ips(ByFamily::default(), &several).v4, Some(ip("192.0.2.7")));
    }

    #[test]
    fn relays_are_on_the_nodes_own_address_where_clients_come_in_everywhere() {
        let listen = ["0.0.0.0:1".parse().unwrap()];
        let found = relay_ips(ByFamily::default(), &listen).v4.unwrap();
        assert!(own_addresses().contains(&found), "{found}");
    }

    #[test]
    fn an_address_that_others_can_reach_goes_before_loopback() {
        let own = ["127.0.0.1", "10.0.0.5", "::1", "fe80::1"].map(ip).into();
        assert_eq!(most_reachable(Family::V4, &own), Some(ip("10.0.0.5")));
        assert_eq!(most_reachable(Family::V6, &own), Some(ip("::1")));
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
