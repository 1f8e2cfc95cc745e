//! The command line, and what it comes to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser};
use ipnet::IpNet;
use penstock_core::turn_rest::split_peers;
use penstock_shell::logging::LogArgs;
use penstock_shell::secrets::{BadSecret, SecretFile};
use penstock_shell::tls::{self, BadCertificate};
use rustls::ServerConfig;

use crate::addresses::{Addresses, ExternalIp};
use crate::core::auth::Users;
use crate::core::family::{ByFamily, Family};
use crate::core::ports::PortRange;
use crate::core::shared::{Limits, Quota};
use crate::core::throttle::Rate;

/// TURN server: relays media between players' browsers and streamers.
///
/// Browsers that can't reach a streamer directly ask this server for a relay address and exchange packets with the
/// streamer through it.
#[derive(Debug, Parser)]
#[command(name = "penstock-turn", version, after_long_help = EXAMPLES)]
pub struct Options {
    /// Address and port for clients. May be given several times. 0.0.0.0 and [::] are all addresses of this machine, those
    /// that it gets later too; each client is answered from the one that it reached, and gets its relay there
    /// [default: 0.0.0.0:3478, and [::]:3478 where there is IPv6]
    #[arg(
        long,
        env = "PENSTOCK_TURN_LISTEN",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    pub listen: Vec<SocketAddr>,

    /// Address and port for clients over TCP. May be given several times [default: the --listen addresses]
    #[arg(
        long,
        env = "PENSTOCK_TURN_LISTEN_TCP",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    pub listen_tcp: Vec<SocketAddr>,

    /// Serves no clients over TCP
    #[arg(long, env = "PENSTOCK_TURN_NO_TCP", conflicts_with = "listen_tcp")]
    pub no_tcp: bool,

    /// Address and port for clients over TLS, such as 0.0.0.0:443. May be given several times
    /// [default: port 5349 at the --listen addresses, where there is a certificate]
    #[arg(
        long,
        env = "PENSTOCK_TURN_LISTEN_TLS",
        value_delimiter = ',',
        value_name = "IP:PORT",
        requires = "tls_cert"
    )]
    pub listen_tls: Vec<SocketAddr>,

    /// The certificate that clients over TLS see, with the chain behind it (PEM). SIGHUP reads it again
    #[arg(
        long,
        env = "PENSTOCK_TURN_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(
        long,
        env = "PENSTOCK_TURN_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// The name that the certificate is for: /status tells it for clients over TLS, in place of an address
    #[arg(
        long,
        env = "PENSTOCK_TURN_TLS_NAME",
        value_name = "NAME",
        requires = "tls_cert"
    )]
    pub tls_name: Option<String>,

    /// The address clients are told their relays are at, where a NAT or a cloud's one-to-one mapping stands before this
    /// machine. May be given several times: one for each address family, which all relays are told at, or EXTERNAL/INTERNAL
    /// for each interface: relays bound to INTERNAL are told at EXTERNAL [default: what relays are bound to]
    #[arg(
        long,
        env = "PENSTOCK_TURN_EXTERNAL_IP",
        value_delimiter = ',',
        value_name = "IP[/INTERNAL]"
    )]
    pub external_ip: Vec<ExternalIp>,

    /// The address all relays are bound to, the one that peers see; one for each address family. With
    /// --external-ip EXTERNAL/INTERNAL, name its EXTERNAL too [default: the one that the client reached; for clients of the
    /// other family or on loopback the first of --listen, or the node's own where that is 0.0.0.0 or [::]]
    #[arg(
        long,
        env = "PENSTOCK_TURN_RELAY_IP",
        value_delimiter = ',',
        value_name = "IP"
    )]
    pub relay_ip: Vec<IpAddr>,

    /// The UDP ports relays are on. Firewalls must let peers reach them
    #[arg(
        long,
        env = "PENSTOCK_TURN_RELAY_PORTS",
        default_value = "49152-65535",
        value_name = "FIRST-LAST"
    )]
    pub relay_ports: PortRange,

    /// What the server calls itself in authentication
    #[arg(long, env = "PENSTOCK_TURN_REALM", default_value = "penstock", value_parser = realm)]
    pub realm: String,

    /// Shared secret for time-limited credentials, the same as coturn's: user name EXPIRY:WHO, WHO:EXPIRY or EXPIRY. Those
    /// for EXPIRY:WHO@PEER-IP, several with commas, as the matchmaker makes them, reach these peers only.
    /// Other users of this machine can see it on the command line: prefer the variable or the file
    #[arg(
        long,
        env = "PENSTOCK_TURN_SECRET",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub auth_secret: Option<String>,

    /// File with a shared secret on each line, all valid: put the new one beside the old one to change it
    #[arg(long, env = "PENSTOCK_TURN_SECRET_FILE", value_name = "FILE")]
    pub auth_secret_file: Option<PathBuf>,

    /// A user who never expires, and who may be many people. May be given several times. NAME@PEER-IP:PASSWORD, with an
    /// IPv6 address in brackets, reaches that peer only
    #[arg(long = "user", env = "PENSTOCK_TURN_USERS", hide_env_values = true, value_delimiter = ',', value_parser = user, value_name = "NAME:PASSWORD")]
    pub users: Vec<(String, String)>,

    /// Lets clients reach these peers although they are private, loopback or otherwise special. May be given several
    /// times. An address of this machine itself is opened only by its full name (10.0.0.5/32)
    #[arg(long = "allow-peer", env = "PENSTOCK_TURN_ALLOW_PEERS", value_delimiter = ',', value_parser = network, value_name = "CIDR")]
    pub allow_peers: Vec<IpNet>,

    /// Lets clients reach the peers named by --allow-peer only, and not the public internet
    #[arg(long, env = "PENSTOCK_TURN_ONLY_ALLOWED_PEERS")]
    pub only_allowed_peers: bool,

    /// How many allocations there may be in all [default: one for each relay port, as far as files may be open
    /// (ulimit -Hn): relays get three quarters of them where TCP and TLS connections want the rest]
    #[arg(long, env = "PENSTOCK_TURN_MAX_ALLOCATIONS", value_name = "N")]
    pub max_allocations: Option<usize>,

    /// How many allocations one user may have [default: 16 with time-limited credentials; no limit for a --user, who may
    /// stand for everybody: --source-quota limits each address then]
    #[arg(long, env = "PENSTOCK_TURN_USER_QUOTA", value_name = "N")]
    pub user_quota: Option<usize>,

    /// How many different peers one user may have permissions for at once, over all allocations [default: 64 with
    /// time-limited credentials; no limit for a --user]
    #[arg(long, env = "PENSTOCK_TURN_USER_PEERS", value_name = "N")]
    pub user_peers: Option<usize>,

    /// How many bytes a second may be relayed for one user, both ways together. Each packet counts as it is between relay
    /// and peer, with 28 bytes of headers (48 over IPv6). The same for a --user [default: no limit]
    #[arg(long, env = "PENSTOCK_TURN_USER_BANDWIDTH", value_name = "BYTES")]
    pub user_bandwidth: Option<NonZeroU64>,

    /// How many allocations one source may have: an IPv4 address, or an IPv6 /64, which many users may share
    /// [default: no limit]
    #[arg(long, env = "PENSTOCK_TURN_SOURCE_QUOTA", value_name = "N")]
    pub source_quota: Option<usize>,

    /// How many different peers one source may have permissions for at once [default: no limit]
    #[arg(long, env = "PENSTOCK_TURN_SOURCE_PEERS", value_name = "N")]
    pub source_peers: Option<usize>,

    /// How many bytes a second may be relayed for one source, both ways together, headers counted likewise
    /// [default: no limit]
    #[arg(long, env = "PENSTOCK_TURN_SOURCE_BANDWIDTH", value_name = "BYTES")]
    pub source_bandwidth: Option<NonZeroU64>,

    /// How many TCP and TLS connections there may be in all, and no more than the files that relays leave, or a quarter
    /// of all. Of the TLS handshakes that are under way, each 10 seconds at most, the oldest end where there are more
    /// than 1,024
    #[arg(
        long,
        env = "PENSTOCK_TURN_MAX_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "N"
    )]
    pub max_connections: usize,

    /// How many TCP and TLS connections one source may have
    #[arg(
        long,
        env = "PENSTOCK_TURN_SOURCE_CONNECTIONS",
        default_value_t = 256,
        value_name = "N"
    )]
    pub source_connections: usize,

    /// How many answers a second one source gets without having authenticated, so that nobody is flooded with answers
    /// to questions in its name; 20 seconds' worth may come at once. 0 for no limit
    #[arg(
        long,
        env = "PENSTOCK_TURN_UNPROVEN_RATE",
        default_value_t = 100,
        value_name = "N"
    )]
    pub unproven_rate: u32,

    /// How often a second one source may fail to authenticate for one user; 30 seconds' worth may come at once, and what
    /// comes after gets no answer. 0 for no limit
    #[arg(
        long,
        env = "PENSTOCK_TURN_AUTH_FAILURE_RATE",
        default_value_t = 1,
        value_name = "N"
    )]
    pub auth_failure_rate: u32,

    /// Lets this network interface relay ChannelData itself, before it comes to this program (XDP): several times as many
    /// packets for the same CPU time. May be given several times; packets come in and leave by these only. IPv4 over UDP,
    /// without a limit of bandwidth; all else goes the usual way. Takes the capabilities BPF and NET_ADMIN, Linux 5.18,
    /// and net.ipv4.conf.IFACE.forwarding=1; the node's firewall sees none of these packets
    #[arg(long, env = "PENSTOCK_TURN_XDP", value_delimiter = ',', value_name = "IFACE")]
    pub xdp: Vec<String>,

    /// Where new clients are sent after SIGTERM (ALTERNATE-SERVER); one for each address family
    /// [default: they are told that this server is full]
    #[arg(
        long,
        env = "PENSTOCK_TURN_ALTERNATE_SERVER",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    pub alternate_server: Vec<SocketAddr>,

    /// Seconds that living allocations get to end by themselves after SIGTERM
    #[arg(
        long,
        env = "PENSTOCK_TURN_GRACE",
        default_value_t = 30,
        value_name = "SECONDS"
    )]
    pub grace: u64,

    /// Address and port of /metrics, /healthz and /readyz, and of /status for the matchmaker
    #[arg(
        long,
        env = "PENSTOCK_TURN_METRICS_LISTEN",
        default_value = "127.0.0.1:9641",
        value_name = "IP:PORT"
    )]
    pub metrics_listen: SocketAddr,

    /// File with options by their long names (YAML): 'realm: example.org', 'allow-peer: [10.42.0.0/16]'. Flags and
    /// variables go before it. SIGHUP reads it again for users, peers and the certificate
    #[arg(long, env = "PENSTOCK_TURN_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,

    /// Variables of another container.
    #[command(flatten)]
    pub container: ContainerEnv,
}

/// The variables that the container of an earlier deployment knew; see [`crate::config_file`].
#[derive(Debug, Clone, Default, Args)]
pub struct ContainerEnv {
    /// What relays are bound to.
    #[arg(long, env = "INTERNAL_IP", hide = true)]
    pub internal_ip: Option<String>,
    /// What clients are told.
    #[arg(
        id = "container_external_ip",
        long = "container-external-ip",
        env = "EXTERNAL_IP",
        hide = true
    )]
    pub external_ip: Option<String>,
    /// Where clients come in.
    #[arg(long, env = "TURN_PORT", hide = true)]
    pub turn_port: Option<String>,
    /// The first relay port.
    #[arg(long, env = "MIN_PORT", hide = true)]
    pub min_port: Option<String>,
    /// The last relay port.
    #[arg(long, env = "MAX_PORT", hide = true)]
    pub max_port: Option<String>,
    /// The realm.
    #[arg(long = "container-realm", env = "REALM", hide = true)]
    pub realm_of_container: Option<String>,
    /// A user's name.
    #[arg(long, env = "TURN_USER", hide = true)]
    pub turn_user: Option<String>,
    /// That user's password.
    #[arg(long, env = "TURN_PASS", hide = true, hide_env_values = true)]
    pub turn_pass: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  Try it on one machine, with peers on loopback:
    penstock-turn --listen 127.0.0.1:3478 --user demo:demo --allow-peer 127.0.0.0/8

  A node of a cluster whose pods are in 10.42.0.0/16, behind a cloud's one-to-one NAT:
    penstock-turn --auth-secret-file /etc/penstock/turn-secret --external-ip 198.51.100.7 \\
        --relay-ip 10.0.0.5 --allow-peer 10.42.0.0/16 --only-allowed-peers

  Also over TLS on port 443, for players behind strict firewalls, with all of it in a file:
    penstock-turn --config /etc/penstock/turn.yaml
        auth-secret-file: /etc/penstock/turn-secret
        allow-peer: [10.42.0.0/16]
        listen-tls: 0.0.0.0:443
        tls-cert: /etc/penstock/tls.crt
        tls-key: /etc/penstock/tls.key

Ask it whether it works (Debian package coturn):
    turnutils_uclient -u demo -w demo -y -c 127.0.0.1

Signals:
  SIGTERM  takes no new allocations, and ends when the last one has, or --grace is over
  SIGHUP   reads users, secrets, --allow-peer and the certificate again. Allocations live on, but reach no peer that is not
           allowed any more, and those of a user who is gone end with the lifetime that they have, an hour at most: they
           are not refreshed. To serve without TLS from then on takes a restart

Variables of the container of an earlier deployment, which go before the file and behind the options they stand for:
  INTERNAL_IP --relay-ip, EXTERNAL_IP --external-ip, TURN_PORT --listen 0.0.0.0:PORT, MIN_PORT and MAX_PORT
  --relay-ports, REALM --realm, TURN_USER and TURN_PASS --user";

/// What the options come to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients come in; empty for everywhere.
    pub listen: Vec<SocketAddr>,
    /// Where clients come in over TCP; else where they do over UDP.
    pub listen_tcp: Option<Vec<SocketAddr>>,
    /// Where clients come in over TLS; else on TLS's own port, if there is a certificate.
    pub listen_tls: Option<Vec<SocketAddr>>,
    /// What clients over TLS see.
    pub tls: Option<Arc<ServerConfig>>,
    /// The name that this is for.
    pub tls_name: Option<String>,
    /// What they are told.
    pub addresses: Addresses,
    /// What relays are bound to, as far as it was said.
    pub relay_ips: ByFamily<Option<IpAddr>>,
    /// Their ports.
    pub relay_ports: PortRange,
    /// The realm.
    pub realm: String,
    /// Who may use the server.
    pub users: Users,
    /// Peers allowed by name.
    pub allow_peers: Vec<IpNet>,
    /// Whether only those.
    pub only_allowed_peers: bool,
    /// How much there may be.
    pub limits: Limits,
    /// How often a source gets an answer without having authenticated.
    pub unproven_answers: Rate,
    /// How often a source may fail to authenticate for one user.
    pub auth_failures: Rate,
    /// Where clients are sent while this server drains.
    pub alternates: ByFamily<Option<SocketAddr>>,
    /// The interfaces that relay by themselves.
    pub xdp: Vec<String>,
    /// How long draining may take.
    pub grace: Duration,
    /// The endpoints for operators.
    pub metrics_listen: SocketAddr,
}

/// Options that can't be used together, or at all.
#[derive(Debug, thiserror::Error)]
pub enum BadOptions {
    /// Nobody could authenticate.
    #[error(
        "nobody could use this server: give --auth-secret-file, PENSTOCK_TURN_SECRET or --user NAME:PASSWORD"
    )]
    NoUsers,
    /// The secret's file.
    #[error(transparent)]
    SecretFile(#[from] BadSecret),
    /// The secret is empty.
    #[error(
        "the shared secret is empty: anybody could make credentials. Check --auth-secret and PENSTOCK_TURN_SECRET"
    )]
    EmptySecret,
    /// A user bound to what is no address.
    #[error(
        "--user {name}: what follows the @ looks like an address, but is none. Write NAME@10.0.3.9:PASSWORD or \
         NAME@[fd00::9]:PASSWORD, or leave out the @"
    )]
    UserPeer {
        /// The user's name.
        name: String,
    },
    /// Two addresses of one family, where one can be used.
    #[error("{option} is given twice for {family}: give one IPv4 and one IPv6 address at most")]
    TwoOfAFamily {
        /// The option.
        option: &'static str,
        /// The family.
        family: Family,
    },
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    /// A relay on every address would be a relay on none that a client could be told.
    #[error("--relay-ip {0}: name one address of this machine")]
    RelayEverywhere(IpAddr),
}

impl Options {
    /// Starts logging. The STUN library warns of every message that it can't read, which would let anybody fill our
    /// log, so it is kept quiet unless it is asked for by name.
    pub fn init_logging(&self) {
        let mut log = self.log.clone();
        if !log.log.to_string().contains(LIBRARY)
            && let Ok(quiet) = format!("{LIBRARY}=error").parse()
        {
            log.log = log.log.add_directive(quiet);
        }
        log.init();
    }

    /// Reads what must be read, and checks what hangs together.
    ///
    /// # Errors
    /// [`BadOptions`] says what to do.
    pub fn settings(self) -> Result<Settings, BadOptions> {
        let relay_ips = one_of_each("--relay-ip", &self.relay_ip, |ip| Family::of(*ip))?;
        let alternates = one_of_each("--alternate-server", &self.alternate_server, |address| {
            Family::of_socket(*address)
        })?;
        if let Some(ip) = self.relay_ip.iter().find(|ip| ip.is_unspecified()) {
            return Err(BadOptions::RelayEverywhere(*ip));
        }
        Ok(Settings {
            relay_ips,
            alternates,
            users: self.users()?,
            limits: self.limits(),
            tls: self.tls()?,
            listen_tcp: if self.no_tcp {
                Some(vec![])
            } else {
                unless_empty(self.listen_tcp)
            },
            listen_tls: unless_empty(self.listen_tls),
            tls_name: self.tls_name,
            unproven_answers: Rate {
                per_second: self.unproven_rate,
                burst: self.unproven_rate.saturating_mul(20),
            },
            auth_failures: Rate {
                per_second: self.auth_failure_rate,
                burst: self.auth_failure_rate.saturating_mul(30),
            },
            listen: self.listen,
            addresses: Addresses {
                external: self.external_ip,
                relay_ip_said: ByFamily {
                    v4: relay_ips.v4.is_some(),
                    v6: relay_ips.v6.is_some(),
                },
            },
            relay_ports: self.relay_ports,
            realm: self.realm,
            allow_peers: self.allow_peers,
            only_allowed_peers: self.only_allowed_peers,
            xdp: self.xdp,
            grace: Duration::from_secs(self.grace),
            metrics_listen: self.metrics_listen,
        })
    }

    fn limits(&self) -> Limits {
        let most = self.max_allocations.unwrap_or(usize::MAX);
        Limits {
            total: most.min(self.relay_ports.count()),
            ports: usize::MAX,
            user: self.quota_of_user(USER_QUOTA, USER_PEERS),
            fixed_user: self.quota_of_user(usize::MAX, usize::MAX),
            source: Quota {
                allocations: self.source_quota.unwrap_or(usize::MAX),
                peers: self.source_peers.unwrap_or(usize::MAX),
                bytes_per_second: self.source_bandwidth,
            },
            connections: self.max_connections,
            connections_per_source: self.source_connections,
        }
    }

    /// With those where none were given.
    fn quota_of_user(&self, allocations: usize, peers: usize) -> Quota {
        Quota {
            allocations: self.user_quota.unwrap_or(allocations),
            peers: self.user_peers.unwrap_or(peers),
            bytes_per_second: self.user_bandwidth,
        }
    }

    fn tls(&self) -> Result<Option<Arc<ServerConfig>>, BadCertificate> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => tls::load(certificate, key, &PROTOCOLS).map(Some),
            _ => Ok(None),
        }
    }

    fn users(&self) -> Result<Users, BadOptions> {
        let mut secrets = Vec::new();
        if let Some(secret) = &self.auth_secret {
            if secret.is_empty() {
                return Err(BadOptions::EmptySecret);
            }
            secrets.push(secret.as_bytes().to_vec());
        }
        if let Some(path) = &self.auth_secret_file {
            secrets.extend(SECRETS.lines(path)?);
        }
        if let Some((name, _)) = self.users.iter().find(|user| !says_its_peer(user)) {
            return Err(BadOptions::UserPeer { name: name.clone() });
        }
        let fixed: HashMap<_, _> = self.users.iter().cloned().collect();
        if secrets.is_empty() && fixed.is_empty() {
            return Err(BadOptions::NoUsers);
        }
        Ok(Users { secrets, fixed })
    }
}

fn unless_empty<T>(things: Vec<T>) -> Option<Vec<T>> {
    (!things.is_empty()).then_some(things)
}

fn one_of_each<T: Copy>(
    option: &'static str,
    given: &[T],
    family: impl Fn(&T) -> Family,
) -> Result<ByFamily<Option<T>>, BadOptions> {
    let mut each: ByFamily<Option<T>> = ByFamily { v4: None, v6: None };
    for one in given {
        let family = family(one);
        if each[family].replace(*one).is_some() {
            return Err(BadOptions::TwoOfAFamily { option, family });
        }
    }
    Ok(each)
}

fn user(text: &str) -> Result<(String, String), String> {
    let of_brackets = || {
        let (name, rest) = text.split_once("@[").filter(|(name, _)| !name.contains(':'))?;
        let (peer, password) = rest.split_once("]:")?;
        Some((format!("{name}@{peer}"), password))
    };
    let plain = || {
        text.split_once(':')
            .map(|(name, password)| (name.to_owned(), password))
    };
    match of_brackets().or_else(plain) {
        Some((name, password)) if !name.is_empty() && !password.is_empty() && name.len() <= MAX_NAME_LEN => {
            Ok((name, password.to_owned()))
        }
        // The text may be a password, so it isn't repeated here.
        _ => Err("write NAME:PASSWORD, both not empty".to_owned()),
    }
}

/// Whether a user's name has addresses behind its `@`, or nothing like one. A name ends at the first colon, so without
/// brackets it would have but the beginning of an IPv6 address, and that looks like a word.
fn says_its_peer((name, password): &(String, String)) -> bool {
    match split_peers(name) {
        None => false,
        Some((_, Some(_))) => true,
        Some((_, None)) => !name.rsplit_once('@').is_some_and(|(_, begin)| {
            let all = format!("{begin}:{password}");
            let mut colons = all.match_indices(':');
            colons.any(|(end, _)| all[..end].parse::<Ipv6Addr>().is_ok())
        }),
    }
}

fn realm(text: &str) -> Result<String, String> {
    if (1..=MAX_REALM_LEN).contains(&text.len()) && !text.contains(['"', '\\']) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "write 1 to {MAX_REALM_LEN} bytes without quotes and backslashes, such as a domain name"
        ))
    }
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| one())
        .map_err(|_| "write a network such as 10.42.0.0/16, or one address".to_owned())
}

const SECRETS: SecretFile = SecretFile {
    what: "the shared secret",
    option: "--auth-secret-file",
    with: "a secret on each line",
};
const LIBRARY: &str = "stun_types";
/// USERNAME's longest value (RFC 8489, section 14.3).
const MAX_NAME_LEN: usize = 508;
/// Allocations of a user whose credentials expire: one browser may take several for one session.
const USER_QUOTA: usize = 16;
/// Peers of one such.
const USER_PEERS: usize = 64;
/// Short, since it is in every challenge.
const MAX_REALM_LEN: usize = 127;

/// RFC 7443, section 3, for clients that ask by name; most don't.
const PROTOCOLS: [&str; 2] = ["stun.turn", "stun.nat-discovery"];

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn an_option_that_can_not_be_used_says_what_to_do() {
        let cases: [(&[&str], &str); 10] = [
            (&[], "--user NAME:PASSWORD"),
            (
                &["--user", "bot@10.0.3:pw"],
                "--user bot@10.0.3: what follows the @",
            ),
            (&["--user", "bot@:pw"], "looks like an address"),
            (&["--user", "bot@fd00::9:pw"], "NAME@[fd00::9]:PASSWORD"),
            (&["--user", "bot@[fd00::9::]:pw"], "looks like an address"),
            (
                &["--user", "a:b", "--relay-ip", "10.0.0.5,10.0.0.6"],
                "one IPv4 and one IPv6",
            ),
            (&["--user", "a:b", "--relay-ip", "0.0.0.0"], "one address"),
            (&["--auth-secret", ""], "empty"),
            (&["--auth-secret-file", "/nonexistent"], "--auth-secret-file"),
            (&["--auth-secret-file", "/dev/null"], "a secret on each line"),
        ];
        for (args, part) in cases {
            let error = settings(args).unwrap_err().to_string();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_user_is_bound_to_a_peer_by_its_name() {
        for (user, name, password) in [
            ("bot@10.0.3.9:pw", "bot@10.0.3.9", "pw"),
            ("bot@[fd00::9]:p:w", "bot@fd00::9", "p:w"),
            ("ann@example.org:pw", "ann@example.org", "pw"),
            ("ann@cafe:pw", "ann@cafe", "pw"),
            ("ann:p@[fd00::9]:w", "ann", "p@[fd00::9]:w"),
        ] {
            let users = settings(&["--user", user]).unwrap().users;
            assert_eq!(users.fixed, HashMap::from([(name.into(), password.into())]));
        }
    }

    #[test]
    fn a_password_is_not_repeated_in_an_error() {
        let error = Options::try_parse_from(["t", "--user", "nocolon"]).unwrap_err();
        assert!(error.to_string().contains("NAME:PASSWORD"));
    }

    #[test]
    fn every_line_of_the_secret_file_is_a_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "new\n\nold\n").unwrap();
        let settings = settings(&["--auth-secret-file", file.path().to_str().unwrap()]).unwrap();
        assert_eq!(settings.users.secrets, [b"new".to_vec(), b"old".to_vec()]);
    }

    #[test]
    fn a_user_who_never_expires_has_only_the_limits_that_were_given() {
        let limits = |args: &[&str]| {
            let limits = settings(&[&["--user", "a:b"], args].concat()).unwrap().limits;
            let of = |quota: Quota| (quota.allocations, quota.peers);
            (of(limits.user), of(limits.fixed_user))
        };
        let none = usize::MAX;
        assert_eq!(limits(&[]), ((16, 64), (none, none)));
        assert_eq!(limits(&["--user-quota", "3"]), ((3, 64), (3, none)));
        assert_eq!(limits(&["--user-peers", "5"]), ((16, 5), (none, 5)));
        let both = settings(&["--user", "a:b", "--user-bandwidth", "7"])
            .unwrap()
            .limits;
        assert_eq!(both.user.bytes_per_second, NonZeroU64::new(7));
        assert_eq!(both.fixed_user.bytes_per_second, NonZeroU64::new(7));
    }

    fn settings(args: &[&str]) -> Result<Settings, BadOptions> {
        let args = ["penstock-turn"].iter().chain(args);
        Options::try_parse_from(args).unwrap().settings()
    }
}
