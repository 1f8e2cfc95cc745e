//! Which peers may be reached. What is not the public internet is denied unless the administrator allowed it by
//! name, whatever form the address comes in.
//!
//! ```text
//!  peer ──► canonical form ──► named by --allow-peer? ──yes──► allowed
//!           (mapped, NAT64,      │ no
//!            6to4 → IPv4)        ▼
//!                        our own? special-purpose? only named ones? ──yes──► denied, and why
//!                                │ no
//!                                ▼
//!                             allowed
//! ```
//!
//! An address of the server itself is opened only by its own full address (`/32`, `/128`): who allows `10.0.0.0/8`
//! means the pods in it, and not the node's own services. Loopback counts as a network here, not as the server's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why a peer is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Denied {
    /// It is this server.
    OwnAddress,
    /// 0.0.0.0/8, `::`.
    Unspecified,
    /// 127.0.0.0/8, `::1`.
    Loopback,
    /// 169.254.0.0/16, fe80::/10. The metadata services of clouds are here.
    LinkLocal,
    /// RFC 1918, RFC 6598 (100.64.0.0/10), ULA fc00::/7, site-local fec0::/10.
    Private,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// Reserved, for documentation, benchmarks, protocol assignments (RFC 6890, and what came after).
    Reserved,
    /// Public, and this server reaches only what it was given by name.
    NotNamed,
    /// The credentials are for another peer.
    OtherPeer,
}

/// The peers that may be reached.
#[derive(Debug, Clone, Default)]
pub struct PeerPolicy {
    allowed: Vec<IpNet>,
    own: BTreeSet<IpAddr>,
    named_only: bool,
}

impl PeerPolicy {
    /// Allows `allowed` by name, and public addresses too unless `named_only`. `own` are the server's addresses.
    pub fn new(allowed: Vec<IpNet>, own: impl IntoIterator<Item = IpAddr>, named_only: bool) -> Self {
        Self {
            allowed,
            own: own.into_iter().map(canonical).collect(),
            named_only,
        }
    }

    /// Whether `peer` may be reached.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, peer: IpAddr) -> Result<(), Denied> {
        let ip = canonical(peer);
        if self.is_named(ip) {
            return Ok(());
        }
        if self.own.contains(&ip) && !ip.is_loopback() {
            return Err(Denied::OwnAddress);
        }
        if let Some(denied) = special_purpose(ip) {
            return Err(denied);
        }
        if self.named_only {
            Err(Denied::NotNamed)
        } else {
            Ok(())
        }
    }

    fn is_named(&self, ip: IpAddr) -> bool {
        let own = self.own.contains(&ip) && !ip.is_loopback();
        self.allowed
            .iter()
            .filter(|net| !own || net.prefix_len() == net.max_prefix_len())
            .any(|net| net.contains(&ip))
    }
}

/// The address that a packet would really go to: IPv4-mapped and IPv4-compatible (RFC 4291, section 2.5.5), NAT64
/// (64:ff9b::/96, RFC 6052) and 6to4 (2002::/16, RFC 3056) addresses give the IPv4 address inside.
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => embedded(v6).map_or(ip, IpAddr::V4),
    }
}

fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match ip.segments() {
        // `::` and `::1` are themselves, not 0.0.0.0 and 0.0.0.1.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Some(v4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

fn special_purpose(ip: IpAddr) -> Option<Denied> {
    match ip {
        IpAddr::V4(ip) => special_v4(ip),
        IpAddr::V6(ip) => special_v6(ip),
    }
}

/// The IANA IPv4 special-purpose address registry.
fn special_v4(ip: Ipv4Addr) -> Option<Denied> {
    match ip.octets() {
        [0, ..] => Some(Denied::Unspecified),
        [127, ..] => Some(Denied::Loopback),
        [169, 254, ..] => Some(Denied::LinkLocal),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Some(Denied::Private),
        [224..=239, ..] => Some(Denied::Multicast),
        [255, 255, 255, 255] => Some(Denied::Broadcast),
        // Protocol assignments, documentation, AS112, 6to4 relays, AMT, benchmarks, future use.
        [192, 0, 0 | 2, _]
        | [192, 31, 196, _]
        | [192, 52, 193, _]
        | [192, 88, 99, _]
        | [192, 175, 48, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => Some(Denied::Reserved),
        _ => None,
    }
}

/// The IANA IPv6 special-purpose address registry; only 2000::/3 is handed out for global unicast at all.
fn special_v6(ip: Ipv6Addr) -> Option<Denied> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Denied::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Denied::Loopback),
        [0xfe80..=0xfebf, ..] => Some(Denied::LinkLocal),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Some(Denied::Private),
        [0xff00..=0xffff, ..] => Some(Denied::Multicast),
        // Protocol assignments with Teredo, ORCHID and benchmarks (2001::/23), and documentation.
        [0x2001, 0x0000..=0x01ff, ..] | [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => {
            Some(Denied::Reserved)
        }
        [0x2000..=0x3fff, ..] => None,
        _ => Some(Denied::Reserved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_internet_is_denied() {
        use Denied::*;
        let table = [
            ("0.0.0.0", Unspecified),
            ("0.1.2.3", Unspecified),
            ("127.0.0.1", Loopback),
            ("127.255.0.3", Loopback),
            ("169.254.169.254", LinkLocal),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("100.127.255.255", Private),
            ("224.0.0.1", Multicast),
            ("239.255.255.255", Multicast),
            ("255.255.255.255", Broadcast),
            ("240.0.0.1", Reserved),
            ("192.0.0.8", Reserved),
            ("192.0.2.1", Reserved),
            ("198.51.100.1", Reserved),
            ("203.0.113.1", Reserved),
            ("198.18.0.1", Reserved),
            ("198.19.255.255", Reserved),
            ("192.88.99.1", Reserved),
            ("::", Unspecified),
            ("::1", Loopback),
            ("fe80::1", LinkLocal),
            ("fec0::1", Private),
            ("fc00::1", Private),
            ("fd12:3456::1", Private),
            ("ff02::1", Multicast),
            ("2001:db8::1", Reserved),
            ("3fff::1", Reserved),
            ("2001::1", Reserved),
            ("2001:2::1", Reserved),
            ("100::1", Reserved),
            ("64:ff9b:1::1", Reserved),
            ("4000::1", Reserved),
        ];
        for (ip, denied) in table {
            assert_eq!(PeerPolicy::default().check(parse(ip)), Err(denied), "{ip}");
        }
    }

    #[test]
    fn the_public_internet_is_allowed() {
        for ip in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "223.255.255.255",
        ] {
            assert_eq!(PeerPolicy::default().check(parse(ip)), Ok(()), "{ip}");
        }
        for ip in [
            "2606:4700::1111",
            "2a00::1",
            "2002:0101:0101::1",
            "64:ff9b::1.1.1.1",
        ] {
            assert_eq!(PeerPolicy::default().check(parse(ip)), Ok(()), "{ip}");
        }
    }

    #[test]
    fn a_denied_address_stays_denied_in_every_disguise() {
        use Denied::*;
        let table = [
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:0.0.0.0", Unspecified),
            ("::127.0.0.1", Loopback),
            ("64:ff9b::10.0.0.1", Private),
            ("64:ff9b::7f00:1", Loopback),
            ("2002:7f00:0001::1", Loopback),
            ("2002:c0a8:0101::5", Private),
            ("::ffff:169.254.169.254", LinkLocal),
        ];
        for (ip, denied) in table {
            assert_eq!(PeerPolicy::default().check(parse(ip)), Err(denied), "{ip}");
        }
    }

    #[test]
    fn a_network_is_opened_by_name_and_nothing_beside_it() {
        let policy = PeerPolicy::new(vec![net("10.42.0.0/16")], [], false);
        assert_eq!(policy.check(parse("10.42.3.9")), Ok(()));
        assert_eq!(policy.check(parse("::ffff:10.42.3.9")), Ok(()));
        assert_eq!(policy.check(parse("10.43.0.1")), Err(Denied::Private));
    }

    #[test]
    fn the_servers_own_address_is_opened_by_its_full_name_only() {
        let own = [parse("10.42.0.1"), parse("8.8.4.4")];
        let wide = PeerPolicy::new(vec![net("10.0.0.0/8")], own, false);
        assert_eq!(wide.check(parse("10.42.0.1")), Err(Denied::OwnAddress));
        assert_eq!(wide.check(parse("::ffff:8.8.4.4")), Err(Denied::OwnAddress));
        let exact = PeerPolicy::new(vec![net("10.42.0.1/32")], own, false);
        assert_eq!(exact.check(parse("10.42.0.1")), Ok(()));
    }

    #[test]
    fn loopback_is_opened_as_a_network_though_the_server_listens_there() {
        let policy = PeerPolicy::new(vec![net("127.0.0.0/8")], [parse("127.0.0.1")], false);
        assert_eq!(policy.check(parse("127.0.0.1")), Ok(()));
        assert_eq!(
            PeerPolicy::new(vec![], [parse("127.0.0.1")], false).check(parse("127.0.0.1")),
            Err(Denied::Loopback)
        );
    }

    #[test]
    fn a_server_for_named_peers_reaches_no_other() {
        let policy = PeerPolicy::new(vec![net("10.42.0.0/16")], [], true);
        assert_eq!(policy.check(parse("10.42.0.1")), Ok(()));
        assert_eq!(policy.check(parse("1.1.1.1")), Err(Denied::NotNamed));
    }

    fn parse(ip: &str) -> IpAddr {
        ip.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}
