//! Which address a relay is bound to, and which one its client is told, behind whatever translates addresses on the way.
//!
//! ```text
//!  bound to
//!  1. --relay-ip of the relay's family
//!  2. what the client reached, if that is of the family and others can reach it, too
//!  3. the node's address
//!
//!  told
//!  1. --external-ip E/I, I is what the relay is bound to      ► E
//!  2. --external-ip E of the relay's family                   ► E
//!  3. what the relay is bound to
//! ```
//!
//! So what is told leads to what the relay is bound to, as far as `--external-ip` is right.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::core::family::{ByFamily, Family};

/// One `--external-ip`: an address that others send to, alone or with the one of this machine that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExternalIp {
    /// What others send to.
    pub external: IpAddr,
    /// Where that arrives.
    pub internal: Option<IpAddr>,
}

/// Why a text is no [`ExternalIp`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write the address that clients reach this server by, such as 198.51.100.7, or that and this machine's address \
     behind it, such as 198.51.100.7/10.0.0.5"
)]
pub struct BadExternalIp;

impl FromStr for ExternalIp {
    type Err = BadExternalIp;

    fn from_str(text: &str) -> Result<Self, BadExternalIp> {
        let ip = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| BadExternalIp);
        let (external, internal) = match text.split_once('/') {
            None => (ip(text)?, None),
            Some((external, internal)) => (ip(external)?, Some(ip(internal)?)),
        };
        let same_family = internal.is_none_or(|internal| internal.is_ipv4() == external.is_ipv4());
        if external.is_unspecified() || !same_family {
            return Err(BadExternalIp);
        }
        Ok(Self { external, internal })
    }
}

impl fmt::Display for ExternalIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.internal {
            None => self.external.fmt(f),
            Some(internal) => write!(f, "{} (for {internal})", self.external),
        }
    }
}

/// What the options say about addresses.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// `--external-ip`.
    pub external: Vec<ExternalIp>,
    /// Whether relays are bound to `--relay-ip` of their family, whatever the client reached.
    pub relay_ip_said: ByFamily<bool>,
}

impl Addresses {
    /// What a relay is bound to, for a client that reached us at `reached`; `node` is this node's address of the relay's
    /// family.
    pub fn bind(&self, reached: IpAddr, node: IpAddr) -> IpAddr {
        let family = Family::of(node);
        let is_for_others = reaches_others(reached) || !reaches_others(node);
        if Family::of(reached) == family && is_for_others && !self.relay_ip_said[family] {
            reached
        } else {
            node
        }
    }

    /// What others are to send to, so that it comes to `bind`, an address of ours.
    pub fn told(&self, bind: IpAddr) -> IpAddr {
        let known = self.leading_to(bind).or_else(|| self.plain(Family::of(bind)));
        known.map_or(bind, |known| known.external)
    }

    /// What clients will be told, and what relays will be bound to, in words. Clients come in at `listen`, and `node` is
    /// this node's address.
    pub fn announced(&self, listen: &[IpAddr], node: ByFamily<Option<IpAddr>>) -> (String, String) {
        let (mut told, mut bound) = (Vec::new(), Vec::new());
        for (family, node) in node.present() {
            let at = listen.iter().filter(|ip| Family::of(**ip) == family);
            let (everywhere, named): (Vec<_>, Vec<_>) = at.partition(|ip| ip.is_unspecified());
            let is_anywhere = !everywhere.is_empty() && !self.relay_ip_said[family];
            let named = named.into_iter().map(|ip: &IpAddr| self.bind(*ip, *node));
            let of_node = (!is_anywhere).then_some(*node);
            for bind in named.chain(of_node) {
                put(&mut bound, bind.to_string());
                put(&mut told, self.told_in_words(bind));
            }
            if is_anywhere {
                let each = format!("the {family} address that each reached (this node's is {node})");
                let of_family = |known: &&ExternalIp| Family::of(known.external) == family;
                let external: Vec<_> = self.external.iter().filter(of_family).collect();
                for known in &external {
                    put(&mut told, known.to_string());
                }
                if self.plain(family).is_none() {
                    let otherwise = if external.is_empty() { "" } else { "else " };
                    put(&mut told, format!("{otherwise}{each}"));
                }
                put(&mut bound, each);
            }
        }
        (told.join(", "), bound.join(", "))
    }

    fn told_in_words(&self, bind: IpAddr) -> String {
        match self.leading_to(bind) {
            Some(known) => known.to_string(),
            None => self.told(bind).to_string(),
        }
    }

    fn plain(&self, family: Family) -> Option<&ExternalIp> {
        let mut external = self.external.iter();
        external.find(|known| known.internal.is_none() && Family::of(known.external) == family)
    }

    fn leading_to(&self, ip: IpAddr) -> Option<&ExternalIp> {
        self.external.iter().find(|known| known.internal == Some(ip))
    }
}

/// Whether other machines can send to it. Loopback is this machine's only, and link-local addresses need a zone, which
/// can't be told to a client.
pub fn reaches_others(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_unspecified() && !ip.is_loopback() && !is_link_local
}

/// Once.
fn put(words: &mut Vec<String>, word: String) {
    if !words.contains(&word) {
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_where_its_client_came_in() {
        let nothing_said = all(&[]);
        let node = ip("10.0.0.5");
        for (reached, bound) in [
            ("10.0.0.5", "10.0.0.5"),
            ("10.1.0.5", "10.1.0.5"),
            // Nobody else could send there.
            ("127.0.0.1", "10.0.0.5"),
            ("169.254.7.7", "10.0.0.5"),
            ("0.0.0.0", "10.0.0.5"),
            // An IPv4 relay for an IPv6 client.
            ("fd00::5", "10.0.0.5"),
        ] {
            assert_eq!(nothing_said.bind(ip(reached), node), ip(bound), "{reached}");
        }
        assert_eq!(nothing_said.bind(ip("fe80::5"), ip("fd00::5")), ip("fd00::5"));
        assert_eq!(
            nothing_said.bind(ip("127.0.0.2"), ip("127.0.0.1")),
            ip("127.0.0.2")
        );
    }

    #[test]
    fn a_relay_is_at_the_relay_address_wherever_its_client_came_in() {
        let mut addresses = all(&[external("198.51.100.8/10.1.0.5")]);
        addresses.relay_ip_said.v4 = true;
        assert_eq!(addresses.bind(ip("10.1.0.5"), ip("10.0.0.5")), ip("10.0.0.5"));
        assert_eq!(addresses.bind(ip("fd00::6"), ip("fd00::5")), ip("fd00::6"));
    }

    #[test]
    fn without_external_addresses_clients_are_told_what_relays_are_bound_to() {
        assert_eq!(all(&[]).told(ip("10.0.0.5")), ip("10.0.0.5"));
        assert_eq!(
            all(&[external("2001:db8::7")]).told(ip("10.0.0.5")),
            ip("10.0.0.5")
        );
    }

    #[test]
    fn one_external_address_is_for_all_relays_of_its_family() {
        let all = all(&[external("198.51.100.7"), external("2001:db8::7")]);
        assert_eq!(all.told(ip("10.0.0.5")), ip("198.51.100.7"));
        assert_eq!(all.told(ip("10.1.0.5")), ip("198.51.100.7"));
        assert_eq!(all.told(ip("fd00::5")), ip("2001:db8::7"));
    }

    #[test]
    fn each_interface_has_its_own_external_address() {
        let interfaces = [
            external("198.51.100.7/10.0.0.5"),
            external("198.51.100.8/10.1.0.5"),
        ];
        let addresses = all(&interfaces);
        assert_eq!(addresses.told(ip("10.0.0.5")), ip("198.51.100.7"));
        assert_eq!(addresses.told(ip("10.1.0.5")), ip("198.51.100.8"));
        assert_eq!(
            addresses.told(ip("192.168.7.5")),
            ip("192.168.7.5"),
            "an interface that nothing is said about"
        );
        let and_another = [&interfaces[..], &[external("198.51.100.9")]].concat();
        assert_eq!(all(&and_another).told(ip("192.168.7.5")), ip("198.51.100.9"));
    }

    #[test]
    fn all_that_clients_will_be_told_is_announced() {
        let node = ByFamily::first_of(["10.0.0.5", "fd00::5"].map(ip));
        let v4 = ByFamily::first_of([ip("10.0.0.5")]);
        let said = |addresses: &Addresses, listen: &[&str], node| {
            let listen: Vec<_> = listen.iter().map(|text| ip(text)).collect();
            let (told, bound) = addresses.announced(&listen, node);
            [told, bound]
        };
        let both = "10.0.0.5, 10.1.0.5, fd00::5";
        let named = ["10.0.0.5", "10.1.0.5", "fd00::5", "10.0.0.5", "127.0.0.1"];
        assert_eq!(said(&all(&[]), &named, node), [both; 2]);
        let reached = "the IPv4 address that each reached (this node's is 10.0.0.5)";
        assert_eq!(said(&all(&[]), &["0.0.0.0"], v4), [reached; 2]);
        let mapped = all(&[
            external("198.51.100.7/10.0.0.5"),
            external("198.51.100.8/10.1.0.5"),
        ]);
        let by_interface = "198.51.100.7 (for 10.0.0.5), 198.51.100.8 (for 10.1.0.5)";
        assert_eq!(
            said(&mapped, &["10.0.0.5", "10.1.0.5"], v4),
            [by_interface, "10.0.0.5, 10.1.0.5"]
        );
        assert_eq!(
            said(&mapped, &["0.0.0.0"], v4),
            [&format!("{by_interface}, else {reached}"), reached]
        );
        let mut one = all(&[external("198.51.100.7")]);
        assert_eq!(said(&one, &["0.0.0.0"], v4), ["198.51.100.7", reached]);
        one.relay_ip_said.v4 = true;
        assert_eq!(
            said(&one, &["0.0.0.0", "10.1.0.5"], v4),
            ["198.51.100.7", "10.0.0.5"]
        );
    }

    #[test]
    fn an_address_that_nobody_can_send_to_is_refused() {
        for bad in [
            "",
            "0.0.0.0",
            "host",
            "198.51.100.7/",
            "198.51.100.7/::1",
            "1.1.1.1/24",
        ] {
            assert_eq!(bad.parse::<ExternalIp>(), Err(BadExternalIp), "{bad}");
        }
    }

    fn all(external: &[ExternalIp]) -> Addresses {
        Addresses {
            external: external.to_vec(),
            ..Addresses::default()
        }
    }

    fn external(text: &str) -> ExternalIp {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
