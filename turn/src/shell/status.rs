//! `GET /status`: what clients are to be told, and how much there is to do. Whoever hands out ICE servers asks for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use penstock_core::wire::turn::TurnStatus;
use tokio::time::MissedTickBehavior;

use super::clock;
use super::metrics::Meter;
use crate::addresses::Addresses;
use crate::core::family::{ByFamily, Family};

/// What there is to say.
#[derive(Clone)]
pub(super) struct Status {
    urls: Arc<[String]>,
    most: u64,
    meter: Meter,
    bytes_per_second: Arc<AtomicU64>,
}

/// Where clients come in.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(super) udp: Vec<SocketAddr>,
    pub(super) tcp: Vec<SocketAddr>,
    pub(super) tls: Vec<SocketAddr>,
}

impl Status {
    pub(super) fn new(urls: Vec<String>, most: usize, meter: Meter) -> Self {
        Self {
            urls: urls.into(),
            most: u64::try_from(most).unwrap_or(u64::MAX),
            meter,
            bytes_per_second: Arc::default(),
        }
    }

    /// The endpoint.
    pub(super) fn router(self, is_draining: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Router {
        let status = async move || Json(self.now(is_draining()));
        Router::new().route("/status", get(status))
    }

    fn now(&self, draining: bool) -> TurnStatus {
        TurnStatus {
            urls: self.urls.to_vec(),
            draining,
            allocations: self.meter.allocations(),
            max_allocations: self.most,
            bytes_per_second: self.bytes_per_second.load(Ordering::Relaxed),
        }
    }

    /// Measures what is relayed, for ever.
    pub(super) async fn measure(self) {
        let mut ticks = tokio::time::interval(MEASURED_OVER);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = || (clock::read().instant, self.meter.relayed_bytes());
        let (mut since, mut before) = now();
        loop {
            ticks.tick().await;
            let (at, relayed) = now();
            let seconds = at.saturating_duration_since(since).as_secs_f64();
            if seconds > 0.0 {
                let rate = (relayed - before) as f64 / seconds;
                self.bytes_per_second.store(rate as u64, Ordering::Relaxed);
            }
            (since, before) = (at, relayed);
        }
    }
}

/// What clients are told of these listeners: of one at a named address the external address that leads there, or itself;
/// of one everywhere all external addresses, or this node's own. Of TLS, `name` in their place, which the certificate is
/// for.
pub(super) fn urls(
    listeners: &Listeners,
    addresses: &Addresses,
    node: ByFamily<Option<IpAddr>>,
    name: Option<&str>,
) -> Vec<String> {
    let hosts = |address: SocketAddr| {
        let hosts = reached_at(address.ip(), addresses, node).into_iter();
        hosts.map(move |ip| SocketAddr::new(ip, address.port()).to_string())
    };
    let plain = |at: &[SocketAddr], transport| {
        at.iter()
            .copied()
            .flat_map(hosts)
            .map(move |host| format!("turn:{host}?transport={transport}"))
            .collect::<Vec<_>>()
    };
    let tls = listeners.tls.iter().flat_map(|address| match name {
        Some(name) => vec![format!("{name}:{}", address.port())],
        None => hosts(*address).collect(),
    });
    let tls = tls.map(|host| format!("turns:{host}?transport=tcp"));
    let mut all = plain(&listeners.udp, "udp");
    all.extend(plain(&listeners.tcp, "tcp"));
    all.extend(tls);
    // One name may stand for several listeners.
    let mut seen = std::collections::HashSet::new();
    all.retain(|url| seen.insert(url.clone()));
    all
}

fn reached_at(listen: IpAddr, addresses: &Addresses, node: ByFamily<Option<IpAddr>>) -> Vec<IpAddr> {
    let family = Family::of(listen);
    let external = addresses.external.iter();
    let external: Vec<_> = external
        .filter(|known| Family::of(known.external) == family)
        .collect();
    if !listen.is_unspecified() {
        return vec![addresses.told(listen)];
    }
    if !external.is_empty() {
        return external.iter().map(|known| known.external).collect();
    }
    node[family].into_iter().collect()
}

const MEASURED_OVER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn told(udp: &[&str], tls: &[&str], external: &[&str], name: Option<&str>) -> Vec<String> {
        let at = |all: &[&str]| all.iter().map(|at| at.parse().unwrap()).collect::<Vec<_>>();
        let listeners = Listeners {
            udp: at(udp),
            tcp: Vec::new(),
            tls: at(tls),
        };
        let addresses = Addresses {
            external: external.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Addresses::default()
        };
        let node = ByFamily {
            v4: "10.0.0.5".parse().ok(),
            v6: "fd00::5".parse().ok(),
        };
        urls(&listeners, &addresses, node, name)
    }

    #[test]
    fn clients_are_told_external_addresses_else_the_nodes() {
        let everywhere = ["0.0.0.0:3478", "[::]:3478"];
        assert_eq!(
            told(&everywhere, &[], &[], None),
            [
                "turn:10.0.0.5:3478?transport=udp",
                "turn:[fd00::5]:3478?transport=udp"
            ]
        );
        assert_eq!(
            told(&everywhere, &[], &["198.51.100.7", "2001:db8::7"], None),
            [
                "turn:198.51.100.7:3478?transport=udp",
                "turn:[2001:db8::7]:3478?transport=udp"
            ]
        );
        let interfaces = ["198.51.100.7/10.0.0.5", "198.51.100.8/10.1.0.5"];
        assert_eq!(
            told(&["10.1.0.5:3478"], &[], &interfaces, None),
            ["turn:198.51.100.8:3478?transport=udp"]
        );
        assert_eq!(
            told(&["10.2.0.5:3478"], &[], &interfaces, None),
            ["turn:10.2.0.5:3478?transport=udp"],
            "none of them leads there"
        );
    }

    #[test]
    fn over_tls_a_name_stands_for_the_addresses() {
        let tls = ["0.0.0.0:443", "[::]:443"];
        assert_eq!(
            told(&[], &tls, &["198.51.100.7"], Some("turn.example.org")),
            ["turns:turn.example.org:443?transport=tcp"]
        );
        assert_eq!(
            told(&[], &tls[..1], &["198.51.100.7"], None),
            ["turns:198.51.100.7:443?transport=tcp"]
        );
    }
}
