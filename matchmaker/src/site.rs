//! Where the site is, as those outside see it, and what they may take of it.

use std::path::PathBuf;

use axum::http::HeaderMap;
use axum::http::header::HOST;
use clap::Args;
use ipnet::IpNet;

use crate::addresses::PerAddress;
use crate::client_address::{ForwardedHeader, Proxies, host_is_ours};

/// Where and how the site is served.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Serving")]
pub struct SiteArgs {
    /// The certificate to serve by TLS with, and the chain behind it (PEM). It is read again when it changes
    #[arg(long, env = "PENSTOCK_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "PENSTOCK_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The path that everything is under, such as /play, where an ingress passes it on and shares the host with other
    /// sites. Probes and metrics are also at the root
    #[arg(long, env = "PENSTOCK_PATH_PREFIX", value_name = "PATH", default_value = "", value_parser = prefix)]
    #[arg(hide_default_value = true)]
    pub path_prefix: String,
    /// The page's URL as players have it, for join links [default: as the request for the link was made]. With --auth none
    /// its host name is the only one that is answered, besides localhost, addresses and those of --allow-origin
    #[arg(long, env = "PENSTOCK_PUBLIC_URL", value_name = "URL", value_parser = public_url)]
    pub public_url: Option<String>,
    /// Another site whose pages may connect, such as https://portal.example; * for all; may be given several times
    #[arg(long, env = "PENSTOCK_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,
    /// A proxy, as 10.0.0.0/8 or 10.1.2.3, whose word on whom it speaks for counts; may be given several times. Without
    /// it all who come through a proxy share one address's allowance
    #[arg(long, env = "PENSTOCK_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub trusted_proxy: Vec<IpNet>,
    /// The header by which proxies say whom they speak for
    #[arg(
        long,
        env = "PENSTOCK_FORWARDED_HEADER",
        value_enum,
        default_value = "x-forwarded-for"
    )]
    pub forwarded_header: ForwardedHeader,
    /// Connections and players that one address (IPv6: one /64) may have at once; 0 for no limit
    #[arg(
        long,
        env = "PENSTOCK_MAX_PER_ADDRESS",
        value_name = "N",
        default_value_t = 512
    )]
    pub max_per_address: u32,
    /// New connections and players that one address may make each second, and four times as many in one go; 0 for no
    /// limit
    #[arg(
        long,
        env = "PENSTOCK_NEW_PER_ADDRESS",
        value_name = "N",
        default_value_t = 64
    )]
    pub new_per_address: u32,
}

impl SiteArgs {
    /// What the options come to.
    pub fn site(&self) -> Site {
        Site {
            prefix: self.path_prefix.clone(),
            public_url: self.public_url.clone(),
            allow_origin: self.allow_origin.clone(),
            proxies: Proxies {
                trusted: self.trusted_proxy.clone(),
                header: self.forwarded_header,
            },
        }
    }

    /// What one address may have.
    pub fn per_address(&self) -> PerAddress {
        PerAddress {
            per_second: self.new_per_address,
            burst: self.new_per_address.saturating_mul(4),
            at_once: self.max_per_address,
        }
    }
}

/// The site as those outside see it.
#[derive(Debug, Clone)]
pub struct Site {
    /// Empty, or a path without a slash at its end.
    pub prefix: String,
    /// The page's URL, with a slash at its end.
    pub public_url: Option<String>,
    /// Origins besides our own.
    pub allow_origin: Vec<String>,
    /// Proxies whose word counts.
    pub proxies: Proxies,
}

/// The hosts that these URLs name.
fn hosts<'a>(urls: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    let urls = urls.filter_map(|url| reqwest::Url::parse(url).ok());
    urls.filter_map(|url| Some(url.host_str()?.to_owned()))
}

impl Site {
    /// Whether a request was sent to one of the names that we go by.
    pub fn is_asked_for(&self, headers: &HeaderMap) -> bool {
        let known: Vec<_> = hosts(self.public_url.iter().chain(&self.allow_origin)).collect();
        self.allow_origin.iter().any(|origin| origin == "*") || host_is_ours(headers, &known)
    }

    /// The page's URL, with a slash at its end, for whoever sent a request with these headers.
    pub fn url(&self, https: bool, headers: &HeaderMap) -> String {
        if let Some(url) = &self.public_url {
            return url.clone();
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let scheme = if https { "https" } else { "http" };
        match host {
            Some(host) => format!("{scheme}://{host}{}/", self.prefix),
            None => self.cookie_path(),
        }
    }

    /// The path that cookies are for.
    pub fn cookie_path(&self) -> String {
        format!("{}/", self.prefix)
    }
}

fn prefix(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    let whole = path.is_empty() || (path.starts_with('/') && !path.contains("//"));
    match whole && path.chars().all(is_plain) {
        true => Ok(path.to_owned()),
        false => Err(
            "it must begin with a slash and have letters, digits and -_.~ in it, such as /play".to_owned(),
        ),
    }
}

fn public_url(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).map_err(|error| error.to_string())?;
    let plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    match plain {
        true => Ok(format!("{}/", url.as_str().trim_end_matches('/'))),
        false => Err("it must be a URL such as https://example.org/play/".to_owned()),
    }
}

fn origin(text: &str) -> Result<String, String> {
    let is_origin = || {
        let url = reqwest::Url::parse(text).ok()?;
        Some(url.origin().ascii_serialization() == text)
    };
    match text == "*" || is_origin().unwrap_or(false) {
        true => Ok(text.to_owned()),
        false => {
            Err("it must be a scheme and a host, such as https://portal.example, and nothing more".to_owned())
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let host = || text.parse().map(|address: std::net::IpAddr| address.into());
    text.parse()
        .or_else(|_| host())
        .map_err(|_| "it must be an address or a network, such as 10.0.0.0/8".to_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_prefix_has_no_slash_at_its_end() {
        for (given, taken) in [("", ""), ("/", ""), ("/play", "/play"), ("/a/b/", "/a/b")] {
            assert_eq!(prefix(given).as_deref(), Ok(taken));
        }
        for bad in ["play", "//play", "/{id}", "/a b", "/a?b"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_begins_with_what_players_use() {
        let mut site = Site {
            prefix: "/play".to_owned(),
            public_url: None,
            allow_origin: Vec::new(),
            proxies: Proxies::default(),
        };
        let mut headers = HeaderMap::new();
        assert_eq!(site.url(false, &headers), "/play/");
        headers.insert(HOST, HeaderValue::from_static("h:8080"));
        assert_eq!(site.url(false, &headers), "http://h:8080/play/");
        assert_eq!(site.url(true, &headers), "https://h:8080/play/");
        site.public_url = public_url("https://example.org/x").ok();
        assert_eq!(site.url(false, &headers), "https://example.org/x/");
    }

    #[test]
    fn what_is_no_origin_network_or_url_is_refused() {
        assert!(origin("*").is_ok() && origin("https://a.example:8443").is_ok());
        for bad in [
            "a.example",
            "https://a.example/",
            "https://a.example/x",
            "null",
            "",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
        assert!(network("10.0.0.0/8").is_ok() && network("10.1.2.3").is_ok() && network("fd00::/8").is_ok());
        assert!(network("10.0.0.0/33").is_err() && network("proxy").is_err());
        assert!(public_url("example.org").is_err() && public_url("https://h/?a").is_err());
    }
}
