//! How the files that a process may have open are shared out: a relay is one, and so is a TCP or TLS connection. Anybody
//! may connect, and only users get relays, so connections must not take the relays' files.
//!
//! ```text
//!  │ reserve │ connections ◄── a quarter, or what relays leave │ relays │
//! ```

/// Files for relays and for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Relays' sockets; an allocation has one, or two.
    pub relays: usize,
    /// Clients' connections.
    pub connections: usize,
}

impl Shares {
    /// As many of `self` as `files` are enough for. Where they are not, connections get a quarter of them, or more if relays
    /// leave more.
    #[must_use]
    pub fn within(self, files: usize) -> Self {
        let for_connections = (files / 4).max(files.saturating_sub(self.relays));
        let connections = self.connections.min(for_connections);
        Self {
            relays: self.relays.min(files - connections),
            connections,
        }
    }
}

/// What shards have open besides: their listeners, an epoll instance and an eventfd each.
pub fn of_shards(shards: usize, listeners: usize) -> usize {
    shards * (listeners + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_out() {
        let cases = [
            // Files, wanted, given.
            (usize::MAX, (16_384, 10_000), (16_384, 10_000)),
            (26_384, (16_384, 10_000), (16_384, 10_000)),
            (26_383, (16_384, 10_000), (16_384, 9_999)),
            (20_000, (16_384, 10_000), (15_000, 5_000)),
            (20_000, (16_384, 0), (16_384, 0)),
            (20_000, (32_768, 100), (19_900, 100)),
            (20_000, (100, 100_000), (100, 19_900)),
            (960, (16_384, 10_000), (720, 240)),
            (3, (16_384, 10_000), (3, 0)),
            (0, (16_384, 10_000), (0, 0)),
        ];
        for (files, wanted, given) in cases {
            let of = |(relays, connections)| Shares { relays, connections };
            assert_eq!(of(wanted).within(files), of(given), "{files} files, {wanted:?}");
        }
    }

    #[test]
    fn each_shard_has_its_own_listeners() {
        assert_eq!(of_shards(16, 6), 128);
    }
}
