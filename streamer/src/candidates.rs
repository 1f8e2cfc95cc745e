//! Which of the addresses that a page names are tried.
//!
//! Whoever has a link may name any address, and each is sent a check 50 times a second and pair until one answers. So only
//! few are tried, of UDP only, and none that a player can't be at.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtc::ice::candidate::{Candidate, unmarshal_candidate};
use rtc::peer_connection::sdp::RTCSessionDescription;

/// Different addresses that are tried for one page. A browser has one by each of its network's interfaces, for each
/// family, and one by each relay.
pub(crate) const MOST_CANDIDATES: usize = 20;

/// The addresses that one page has named.
pub(crate) struct Candidates {
    media_kinds: HashSet<Kind>,
    taken: HashSet<SocketAddr>,
}

impl Candidates {
    /// Of a page that gets media from `media_ips`: what is special about these, its own may be, too.
    pub(crate) fn new(media_ips: &[IpAddr]) -> Self {
        Self {
            media_kinds: media_ips.iter().map(|ip| Kind::of(*ip)).collect(),
            taken: HashSet::new(),
        }
    }

    /// Whether this candidate is to be tried, as in an `iceCandidate` message or an attribute of a description. Of those
    /// with the same address the first one is.
    pub(crate) fn admit(&mut self, text: &str) -> Result<(), Passed> {
        let text = text.strip_prefix("candidate:").unwrap_or(text);
        let candidate = unmarshal_candidate(text).map_err(|_| Passed::Unreadable)?;
        let address = self.acceptable(&candidate)?;
        if self.taken.contains(&address) {
            return Err(Passed::Duplicate);
        }
        if self.taken.len() >= MOST_CANDIDATES {
            return Err(Passed::TooMany);
        }
        self.taken.insert(address);
        Ok(())
    }

    fn acceptable(&self, candidate: &Candidate) -> Result<SocketAddr, Passed> {
        // For a name of multicast DNS nobody is asked: such a page is found by its own checks.
        let ip = candidate
            .address()
            .parse::<IpAddr>()
            .map_err(|_| Passed::Name)?
            .to_canonical();
        if !candidate.network_type().is_udp() {
            return Err(Passed::NotUdp);
        }
        match Kind::of(ip) {
            Kind::Nobody => Err(Passed::Nobody),
            kind if kind != Kind::Usual && !self.media_kinds.contains(&kind) => Err(Passed::Nobody),
            _ => Ok(SocketAddr::new(ip, candidate.port())),
        }
    }

    /// `answer` without the candidates that are not to be tried.
    ///
    /// # Errors
    /// Where it is no session description.
    pub(crate) fn strip(
        &mut self,
        answer: String,
    ) -> Result<RTCSessionDescription, rtc::shared::error::Error> {
        // Read by the same parser that acts on it, so that both see the same attributes.
        let mut parsed = RTCSessionDescription::answer(answer)?.unmarshal()?;
        for media in &mut parsed.media_descriptions {
            media.attributes.retain(|attribute| {
                let candidate = attribute.value.as_deref().unwrap_or_default();
                !attribute.is_ice_candidate() || self.admit(candidate).is_ok()
            });
        }
        RTCSessionDescription::answer(parsed.marshal())
    }
}

/// Why a candidate is not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Passed {
    #[error("it can't be read")]
    Unreadable,
    #[error("it is a name")]
    Name,
    #[error("it is not of UDP")]
    NotUdp,
    #[error("no player is at such an address")]
    Nobody,
    #[error("the same address was named before")]
    Duplicate,
    #[error("{MOST_CANDIDATES} addresses were named before")]
    TooMany,
}

/// What is special about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Usual,
    Loopback,
    LinkLocal,
    /// Multicast, broadcast, unspecified: no single host has it.
    Nobody,
}

impl Kind {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        // "This network" and what is reserved, broadcast among it (RFC 6890).
        let nobody = ip.octets()[0] == 0 || ip.octets()[0] >= 240 || ip.is_multicast();
        match (nobody, ip.is_loopback(), ip.is_link_local()) {
            (true, ..) => Self::Nobody,
            (_, true, _) => Self::Loopback,
            (.., true) => Self::LinkLocal,
            _ => Self::Usual,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        let nobody = ip.is_unspecified() || ip.is_multicast();
        match (nobody, ip.is_loopback(), ip.is_unicast_link_local()) {
            (true, ..) => Self::Nobody,
            (_, true, _) => Self::Loopback,
            (.., true) => Self::LinkLocal,
            _ => Self::Usual,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_udp_is_tried() {
        let mut page = page("10.0.0.1");
        let passive = "candidate:1 1 tcp 1518280447 10.0.0.7 22 typ host tcptype passive";
        assert_eq!(page.admit(passive), Err(Passed::NotUdp));
        let relayed = "1 1 TCP 1518280447 10.0.0.7 22 typ relay raddr 0.0.0.0 rport 9 tcptype passive";
        assert_eq!(page.admit(relayed), Err(Passed::NotUdp));
        assert_eq!(page.admit(&udp("10.0.0.7", 22)), Ok(()));
        assert_eq!(page.admit("candidate:"), Err(Passed::Unreadable));
        assert_eq!(page.admit(&udp("5d9c1a2e.local", 22)), Err(Passed::Name));
        assert!(page.admit(&udp("example.com", 22)).is_err());
    }

    #[test]
    fn no_more_than_twenty_are_tried_each_counted_once() {
        let mut page = page("10.0.0.1");
        for _ in 0..3 {
            for host in 1..=20 {
                let _ = page.admit(&udp(&format!("192.0.2.{host}"), 4000));
            }
        }
        assert_eq!(page.taken.len(), 20);
        assert_eq!(page.admit(&udp("192.0.2.1", 4000)), Err(Passed::Duplicate));
        assert_eq!(page.admit(&udp("::ffff:192.0.2.1", 4000)), Err(Passed::Duplicate));
        assert_eq!(page.admit(&udp("192.0.2.1", 4001)), Err(Passed::TooMany));
    }

    #[test]
    fn addresses_that_no_player_is_at_are_not_tried() {
        let special = [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
        ];
        let nobody = [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "ff02::1",
        ];
        for address in special.iter().chain(&nobody) {
            assert_eq!(
                page("10.0.0.1").admit(&udp(address, 9)),
                Err(Passed::Nobody),
                "{address}"
            );
        }
        for address in nobody {
            assert_eq!(
                page("0.0.0.0").admit(&udp(address, 9)),
                Err(Passed::Nobody),
                "{address}"
            );
        }
        for address in ["192.168.0.7", "10.1.2.3", "203.0.113.9", "fd00::7", "2001:db8::7"] {
            assert_eq!(page("10.0.0.1").admit(&udp(address, 9)), Ok(()), "{address}");
        }
    }

    #[test]
    fn a_stream_from_loopback_goes_to_loopback_and_one_from_a_link_along_it() {
        assert_eq!(page("127.0.0.1").admit(&udp("127.0.0.1", 9)), Ok(()));
        assert_eq!(
            page("127.0.0.1").admit(&udp("169.254.169.254", 9)),
            Err(Passed::Nobody)
        );
        assert_eq!(page("169.254.7.7").admit(&udp("169.254.7.8", 9)), Ok(()));
    }

    #[test]
    fn candidates_of_a_description_count_too() {
        let tcp = "candidate:1 1 tcp 1518280447 192.0.2.7 22 typ host tcptype passive";
        let many = (1..=200).map(|port| udp("192.0.2.7", port));
        let named: Vec<_> = many.chain([tcp.to_owned(), "candidate:bad".to_owned()]).collect();
        let sdp = format!(
            "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n\
             m=video 9 UDP/TLS/RTP/SAVPF 102\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=ice-ufrag:abcd\r\na={}\r\na=recvonly\r\n",
            named.join("\r\na=")
        );
        let mut page = page("10.0.0.1");
        let kept = page.strip(sdp.clone()).unwrap().sdp;
        assert_eq!(kept.matches("a=candidate:").count(), MOST_CANDIDATES);
        assert!(!kept.contains("tcp "), "{kept}");
        let without = |sdp: &str| {
            let others = sdp.lines().filter(|line| !line.starts_with("a=candidate:"));
            others.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(without(&kept), without(&sdp));
        assert_eq!(page.admit(&udp("192.0.2.8", 1)), Err(Passed::TooMany));
    }

    fn page(media_ip: &str) -> Candidates {
        Candidates::new(&[media_ip.parse().unwrap()])
    }

    fn udp(address: &str, port: u16) -> String {
        format!("candidate:1 1 udp 2130706431 {address} {port} typ host")
    }
}
