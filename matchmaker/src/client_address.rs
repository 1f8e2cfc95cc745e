//! Who is at the other end, where proxies stand between; and whether a page may speak to us.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{FORWARDED, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName};
use clap::ValueEnum;
use ipnet::IpNet;

/// The connection that a request came over.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its other end.
    pub address: SocketAddr,
    /// Whether it is encrypted.
    pub tls: bool,
}

/// Proxies whose word counts.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Where they connect from.
    pub trusted: Vec<IpNet>,
    /// How they say whom they speak for.
    pub header: ForwardedHeader,
}

/// How a proxy says whom it speaks for. Only one counts: proxies pass the other on as the client sent it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For` and `X-Forwarded-Proto`, which nearly all proxies have
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

impl Proxies {
    /// Whether `address` is a proxy's.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// Who asks. Each proxy adds whom it heard at the end; so this is the last one that is not itself a proxy, and what
    /// stands before it may be made up.
    pub fn client(&self, peer: Peer, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.address.ip().to_canonical();
        for hop in self.hops(headers).into_iter().rev() {
            match hop {
                Some(before) if self.trusts(client) => client = before.to_canonical(),
                _ => break,
            }
        }
        client
    }

    /// Whether the browser's own connection is encrypted.
    pub fn is_https(&self, peer: Peer, headers: &HeaderMap) -> bool {
        if peer.tls || !self.trusts(peer.address.ip()) {
            return peer.tls;
        }
        let last = match self.header {
            ForwardedHeader::XForwardedFor => values(headers, &X_FORWARDED_PROTO).pop(),
            ForwardedHeader::Forwarded => values(headers, &FORWARDED)
                .pop()
                .and_then(|hop| part(hop, "proto")),
        };
        last.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
    }

    /// Each hop's word, in order; `None` for what is not an address.
    fn hops(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        match self.header {
            ForwardedHeader::XForwardedFor => {
                let hops = values(headers, &X_FORWARDED_FOR);
                hops.into_iter().map(address).collect()
            }
            ForwardedHeader::Forwarded => {
                let hops = values(headers, &FORWARDED);
                hops.into_iter().map(|hop| address(part(hop, "for")?)).collect()
            }
        }
    }
}

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).iter();
    // What is not text still is a hop.
    let lines = lines.map(|line| line.to_str().unwrap_or_default());
    lines.flat_map(|line| line.split(',').map(str::trim)).collect()
}

fn part<'a>(hop: &'a str, name: &str) -> Option<&'a str> {
    let parts = hop.split(';').filter_map(|part| part.split_once('='));
    let mut named = parts.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    Some(named.next()?.1.trim().trim_matches('"'))
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

/// Whether a page of the origin that the request names may speak to us: one of ours, or one of `allowed` (`*` allows
/// all). Where no origin is named, no browser sent it, or none that lets other pages in. `https`: the browser's connection
/// is known to be encrypted, so that a page that was not is none of ours.
pub fn origin_is_allowed(headers: &HeaderMap, allowed: &[String], https: bool) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let origin = origin.to_str().unwrap_or_default();
    let is_ours = || {
        let (scheme, authority) = origin.split_once("://")?;
        let host = headers.get(HOST)?.to_str().ok()?;
        if https && scheme != "https" {
            return None;
        }
        Some(without_default_port(scheme, authority).eq_ignore_ascii_case(without_default_port(scheme, host)))
    };
    allowed
        .iter()
        .any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
        || is_ours().unwrap_or(false)
}

/// Whether the request was sent to a name that no other site can have: an address, `localhost`, or one of `known`. Any
/// site may have its own name lead to our address (DNS rebinding); to a browser its pages are then ours. Where no host is
/// named no browser sent it.
pub fn host_is_ours(headers: &HeaderMap, known: &[String]) -> bool {
    let Some(host) = headers.get(HOST) else {
        return true;
    };
    let host = host.to_str().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let known = known.iter().map(String::as_str).chain(["localhost"]);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    bare.unwrap_or(name).parse::<IpAddr>().is_ok()
        || known.into_iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    authority.strip_suffix(port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trusted_proxys_word_counts() {
        let proxies = proxies(ForwardedHeader::XForwardedFor);
        for (peer, forwarded, client) in [
            ("192.0.2.1:1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.1:1", &[], "10.0.0.1"),
            ("10.0.0.1:1", &["198.51.100.7"], "198.51.100.7"),
            ("[::ffff:10.0.0.1]:1", &["198.51.100.7"], "198.51.100.7"),
            // The client made the first up; two proxies stand between.
            ("10.0.0.1:1", &["1.2.3.4, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            (
                "10.0.0.1:1",
                &["1.2.3.4", "198.51.100.7", "10.0.0.2"],
                "198.51.100.7",
            ),
            ("10.0.0.1:1", &["[2001:db8::1]:99"], "2001:db8::1"),
            ("10.0.0.1:1", &["198.51.100.7:1234"], "198.51.100.7"),
            // Nonsense ends the search at what is known.
            ("10.0.0.1:1", &["198.51.100.7, unknown"], "10.0.0.1"),
            ("10.0.0.1:1", &[""], "10.0.0.1"),
        ] {
            let headers = headers("x-forwarded-for", forwarded);
            let found = proxies.client(self::peer(peer), &headers);
            assert_eq!(found.to_string(), client, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn the_standard_header_counts_where_it_was_chosen_and_nowhere_else() {
        let standard = ["for=1.2.3.4, For=\"[2001:db8::1]:80\";proto=https"];
        let headers = headers("forwarded", &standard);
        let peer = peer("10.0.0.1:1");
        let [chosen, other] = [ForwardedHeader::Forwarded, ForwardedHeader::XForwardedFor].map(proxies);
        assert_eq!(chosen.client(peer, &headers).to_string(), "2001:db8::1");
        assert!(chosen.is_https(peer, &headers));
        assert_eq!(other.client(peer, &headers).to_string(), "10.0.0.1");
        assert!(!other.is_https(peer, &headers));
    }

    #[test]
    fn the_scheme_is_the_browsers() {
        let proxies = proxies(ForwardedHeader::XForwardedFor);
        let headers = headers("x-forwarded-proto", &["https"]);
        assert!(proxies.is_https(peer("10.0.0.1:1"), &headers));
        assert!(!proxies.is_https(peer("192.0.2.1:1"), &headers));
        let mut own = peer("192.0.2.1:1");
        own.tls = true;
        assert!(proxies.is_https(own, &HeaderMap::new()));
    }

    #[test]
    fn a_page_of_another_site_is_kept_out() {
        let allowed = ["https://portal.example".to_owned()];
        let check = |origin: Option<&str>, host: &str| {
            let mut headers = headers("host", &[host]);
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            origin_is_allowed(&headers, &allowed, false)
        };
        for (origin, host) in [
            (None, "play.example"),
            (Some("https://play.example"), "play.example"),
            (Some("https://play.example"), "play.example:443"),
            (Some("http://Play.example:8080"), "play.example:8080"),
            (Some("https://portal.example"), "play.example"),
        ] {
            assert!(check(origin, host), "{origin:?} {host}");
        }
        for (origin, host) in [
            (Some("https://evil.example"), "play.example"),
            (Some("https://play.example.evil.example"), "play.example"),
            (Some("https://play.example:8443"), "play.example"),
            (Some("http://portal.example"), "play.example"),
            (Some("null"), "play.example"),
            (Some(""), "play.example"),
            (Some("play.example"), "play.example"),
        ] {
            assert!(!check(origin, host), "{origin:?} {host}");
        }
        let mut headers = headers("host", &["play.example"]);
        headers.insert(ORIGIN, "https://evil.example".parse().unwrap());
        assert!(origin_is_allowed(&headers, &["*".to_owned()], false));
    }

    #[test]
    fn a_page_that_came_in_the_clear_is_none_of_ours_behind_tls() {
        let mut headers = headers("host", &["play.example"]);
        headers.insert(ORIGIN, "http://play.example".parse().unwrap());
        assert!(origin_is_allowed(&headers, &[], false));
        assert!(!origin_is_allowed(&headers, &[], true));
        headers.insert(ORIGIN, "https://play.example".parse().unwrap());
        assert!(origin_is_allowed(&headers, &[], true));
    }

    #[test]
    fn a_name_that_other_sites_may_have_is_not_ours() {
        let known = ["play.example".to_owned()];
        let check = |host: &str| host_is_ours(&headers("host", &[host]), &known);
        for ours in [
            "127.0.0.1:8080",
            "192.0.2.1",
            "[::1]:8080",
            "[2001:db8::1]",
            "localhost",
            "Localhost:8080",
            "play.example",
            "Play.Example:443",
        ] {
            assert!(check(ours), "{ours}");
        }
        for other in [
            "evil.example:18080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "play.example.evil.example",
            "",
            "::1.evil.example",
        ] {
            assert!(!check(other), "{other}");
        }
        assert!(host_is_ours(&HeaderMap::new(), &known));
    }

    fn proxies(header: ForwardedHeader) -> Proxies {
        let trusted = vec!["10.0.0.0/8".parse().unwrap()];
        Proxies { trusted, header }
    }

    fn peer(address: &str) -> Peer {
        let address = address.parse().unwrap();
        Peer { address, tls: false }
    }

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| value.parse().unwrap());
        values.map(|value| (HeaderName::from_static(name), value)).fold(
            HeaderMap::new(),
            |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            },
        )
    }
}
