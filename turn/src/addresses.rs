//! Which address a relay is bound to, and which one its client is told, behind whatever translates addresses on the way.
//!
//! ```text
//!  bound to   --relay-ip, else what the client reached, if an --external-ip E/I names it as I, else the node's address
//!
//!  told
//!  1. --external-ip E/I, I is what the relay is bound to      ► E
//!  2. --external-ip E/I, I is what the client reached         ► E
//!  3. --external-ip E of the relay's family                   ► E
//!  4. what the client reached, if that is of the family       ► that
//!  5. what the relay is bound to
//! ```

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
    /// What a relay is bound to, for a client that reached us at `reached`; `otherwise` if nothing else is to be said.
    pub fn bind(&self, reached: IpAddr, otherwise: IpAddr) -> IpAddr {
        let family = Family::of(otherwise);
        let has_its_own = Family::of(reached) == family && self.leading_to(reached).is_some();
        if has_its_own && !self.relay_ip_said[family] {
            reached
        } else {
            otherwise
        }
    }

    /// What a client that reached us at `reached` is told for a relay that is bound to `bind`.
    pub fn told(&self, reached: IpAddr, bind: IpAddr) -> IpAddr {
        let family = Family::of(bind);
        let plain = || {
            self.external
                .iter()
                .find(|known| known.internal.is_none() && Family::of(known.external) == family)
        };
        let known = self
            .leading_to(bind)
            .or_else(|| {
                self.leading_to(reached)
                    .filter(|known| Family::of(known.external) == family)
            })
            .or_else(plain);
        match known {
            Some(known) => known.external,
            None if Family::of(reached) == family => reached,
            None => bind,
        }
    }

    fn leading_to(&self, ip: IpAddr) -> Option<&ExternalIp> {
        self.external.iter().find(|known| known.internal == Some(ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_external_addresses_clients_are_told_what_they_reached() {
        assert_eq!(all(&[]).told(ip("10.0.0.5"), ip("0.0.0.0")), ip("10.0.0.5"));
        assert_eq!(
            all(&[]).told(ip("10.0.0.5"), ip("2001:db8::5")),
            ip("2001:db8::5"),
            "an IPv6 relay for an IPv4 client"
        );
    }

    #[test]
    fn one_external_address_is_for_all_relays_of_its_family() {
        let external = [external("198.51.100.7"), external("2001:db8::7")];
        assert_eq!(
            all(&external).told(ip("10.0.0.5"), ip("10.0.0.5")),
            ip("198.51.100.7")
        );
        assert_eq!(
            all(&external).told(ip("10.0.0.5"), ip("fd00::5")),
            ip("2001:db8::7")
        );
        assert_eq!(
            all(&external).told(ip("fd00::5"), ip("0.0.0.0")),
            ip("198.51.100.7")
        );
    }

    #[test]
    fn each_interface_has_its_own_external_address() {
        let external = [
            external("198.51.100.7/10.0.0.5"),
            external("198.51.100.8/10.1.0.5"),
        ];
        assert_eq!(
            all(&external).told(ip("10.0.0.5"), ip("0.0.0.0")),
            ip("198.51.100.7")
        );
        assert_eq!(
            all(&external).told(ip("10.1.0.5"), ip("0.0.0.0")),
            ip("198.51.100.8")
        );
        assert_eq!(
            all(&external).told(ip("10.0.0.5"), ip("10.1.0.5")),
            ip("198.51.100.8"),
            "what peers send arrives where the relay is bound"
        );
        assert_eq!(
            all(&external).told(ip("192.168.7.5"), ip("0.0.0.0")),
            ip("192.168.7.5"),
            "an interface that nothing is said about"
        );
    }

    #[test]
    fn a_relay_is_where_its_client_came_in_unless_told_otherwise() {
        let mut addresses = all(&[
            external("198.51.100.7/10.0.0.5"),
            external("198.51.100.8/10.1.0.5"),
        ]);
        let node = ip("10.0.0.5");
        assert_eq!(addresses.bind(ip("10.1.0.5"), node), ip("10.1.0.5"));
        assert_eq!(addresses.bind(ip("10.2.0.5"), node), node);
        assert_eq!(addresses.bind(ip("10.1.0.5"), ip("fd00::5")), ip("fd00::5"));
        addresses.relay_ip_said.v4 = true;
        assert_eq!(addresses.bind(ip("10.1.0.5"), node), node);
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
