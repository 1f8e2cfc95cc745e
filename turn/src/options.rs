//! The command line, and what it comes to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;
use penstock_shell::logging::LogArgs;

use crate::core::auth::Users;
use crate::core::ports::PortRange;
use crate::core::table::Limits;

/// TURN server: relays media between players' browsers and streamers.
///
/// Browsers that can't reach a streamer directly ask this server for a relay address and exchange packets with the
/// streamer through it. UDP over IPv4.
#[derive(Debug, Parser)]
#[command(name = "penstock-turn", version, after_long_help = EXAMPLES)]
pub struct Options {
    /// Address and port for clients. May be given several times. With 0.0.0.0, clients are told the address that
    /// they reached, unless --external-ip says another
    #[arg(
        long,
        env = "PENSTOCK_TURN_LISTEN",
        value_delimiter = ',',
        default_value = "0.0.0.0:3478",
        value_name = "IP:PORT"
    )]
    pub listen: Vec<SocketAddr>,

    /// The address clients are told to send to, where a NAT or a cloud's one-to-one mapping stands before this machine
    /// [default: the one they reached]
    #[arg(long, env = "PENSTOCK_TURN_EXTERNAL_IP", value_name = "IP")]
    pub external_ip: Option<IpAddr>,

    /// The address relays are bound to, the one that peers see
    /// [default: the --listen address]
    #[arg(long, env = "PENSTOCK_TURN_RELAY_IP", value_name = "IP")]
    pub relay_ip: Option<IpAddr>,

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

    /// Shared secret for time-limited credentials (user name EXPIRY:WHO or EXPIRY:WHO@PEER-IP, as the matchmaker makes
    /// them). Other users of this machine can see it on the command line: prefer the variable or the file
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

    /// A user who never expires. May be given several times
    #[arg(long = "user", env = "PENSTOCK_TURN_USERS", hide_env_values = true, value_delimiter = ',', value_parser = user, value_name = "NAME:PASSWORD")]
    pub users: Vec<(String, String)>,

    /// Lets clients reach these peers although they are private, loopback or otherwise special. May be given several
    /// times. An address of this machine itself is opened only by its full name (10.0.0.5/32)
    #[arg(long = "allow-peer", env = "PENSTOCK_TURN_ALLOW_PEERS", value_delimiter = ',', value_parser = network, value_name = "CIDR")]
    pub allow_peers: Vec<IpNet>,

    /// Lets clients reach the peers named by --allow-peer only, and not the public internet
    #[arg(long, env = "PENSTOCK_TURN_ONLY_ALLOWED_PEERS")]
    pub only_allowed_peers: bool,

    /// How many allocations there may be in all [default: one for each relay port]
    #[arg(long, env = "PENSTOCK_TURN_MAX_ALLOCATIONS", value_name = "N")]
    pub max_allocations: Option<usize>,

    /// How many allocations one user may have
    #[arg(
        long,
        env = "PENSTOCK_TURN_USER_QUOTA",
        default_value_t = 16,
        value_name = "N"
    )]
    pub user_quota: usize,

    /// Seconds that living allocations get to end by themselves after SIGTERM
    #[arg(
        long,
        env = "PENSTOCK_TURN_GRACE",
        default_value_t = 30,
        value_name = "SECONDS"
    )]
    pub grace: u64,

    /// Address and port of /metrics, /healthz and /readyz
    #[arg(
        long,
        env = "PENSTOCK_TURN_METRICS_LISTEN",
        default_value = "127.0.0.1:9641",
        value_name = "IP:PORT"
    )]
    pub metrics_listen: SocketAddr,

    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

const EXAMPLES: &str = "\
Examples:
  Try it on one machine, with peers on loopback:
    penstock-turn --listen 127.0.0.1:3478 --user demo:demo --allow-peer 127.0.0.0/8

  A node of a cluster whose pods are in 10.42.0.0/16, behind a cloud's one-to-one NAT:
    penstock-turn --auth-secret-file /etc/penstock/turn-secret --external-ip 198.51.100.7 \\
        --relay-ip 10.0.0.5 --allow-peer 10.42.0.0/16 --only-allowed-peers

Ask it whether it works (Debian package coturn):
    turnutils_uclient -u demo -w demo -y -c 127.0.0.1";

/// What the options come to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients come in.
    pub listen: Vec<SocketAddr>,
    /// What they are told; else what they reached.
    pub external_ip: Option<IpAddr>,
    /// What relays are bound to.
    pub relay_ip: IpAddr,
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
    /// How many allocations there may be.
    pub limits: Limits,
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
    #[error("reading the shared secret from {}: check --auth-secret-file", path.display())]
    SecretFile {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The secret's file is empty.
    #[error("{} holds no secret: write one per line", .0.display())]
    EmptySecretFile(PathBuf),
    /// The secret is empty.
    #[error(
        "the shared secret is empty: anybody could make credentials. Check --auth-secret and PENSTOCK_TURN_SECRET"
    )]
    EmptySecret,
    /// IPv6.
    #[error("{option} {ip}: IPv6 is not served yet; give an IPv4 address")]
    NotV4 {
        /// The option.
        option: &'static str,
        /// The address.
        ip: IpAddr,
    },
    /// An external address that nobody can send to.
    #[error("--external-ip {0}: clients can't send to that; give the address that they reach this server by")]
    UselessExternal(IpAddr),
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
        let listen_ips = self.listen.iter().map(|listen| ("--listen", listen.ip()));
        let others = [("--external-ip", self.external_ip), ("--relay-ip", self.relay_ip)];
        let others = others.into_iter().filter_map(|(option, ip)| Some((option, ip?)));
        for (option, ip) in listen_ips.chain(others) {
            if ip.is_ipv6() {
                return Err(BadOptions::NotV4 { option, ip });
            }
        }
        if let Some(ip) = self.external_ip.filter(IpAddr::is_unspecified) {
            return Err(BadOptions::UselessExternal(ip));
        }
        let users = self.users()?;
        Ok(Settings {
            relay_ip: self.relay_ip.unwrap_or_else(|| self.default_relay_ip()),
            limits: Limits {
                total: self
                    .max_allocations
                    .unwrap_or(usize::MAX)
                    .min(self.relay_ports.count()),
                per_user: self.user_quota,
            },
            listen: self.listen,
            external_ip: self.external_ip,
            relay_ports: self.relay_ports,
            realm: self.realm,
            users,
            allow_peers: self.allow_peers,
            only_allowed_peers: self.only_allowed_peers,
            grace: Duration::from_secs(self.grace),
            metrics_listen: self.metrics_listen,
        })
    }

    /// With several listeners relays take any address, as with 0.0.0.0.
    fn default_relay_ip(&self) -> IpAddr {
        match self.listen.as_slice() {
            [one] => one.ip(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
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
            secrets.extend(secrets_of_file(path)?);
        }
        let fixed: HashMap<_, _> = self.users.iter().cloned().collect();
        if secrets.is_empty() && fixed.is_empty() {
            return Err(BadOptions::NoUsers);
        }
        Ok(Users { secrets, fixed })
    }
}

fn secrets_of_file(path: &PathBuf) -> Result<Vec<Vec<u8>>, BadOptions> {
    let text = std::fs::read_to_string(path).map_err(|source| BadOptions::SecretFile {
        path: path.clone(),
        source,
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Vec<_> = lines.map(|line| line.as_bytes().to_vec()).collect();
    if secrets.is_empty() {
        return Err(BadOptions::EmptySecretFile(path.clone()));
    }
    Ok(secrets)
}

fn user(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, password)) if !name.is_empty() && !password.is_empty() && name.len() <= MAX_NAME_LEN => {
            Ok((name.to_owned(), password.to_owned()))
        }
        // The text may be a password, so it isn't repeated here.
        _ => Err("write NAME:PASSWORD, both not empty".to_owned()),
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

const LIBRARY: &str = "stun_types";
/// USERNAME's longest value (RFC 8489, section 14.3).
const MAX_NAME_LEN: usize = 508;
/// Short, since it is in every challenge.
const MAX_REALM_LEN: usize = 127;

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
        let cases: [(&[&str], &str); 6] = [
            (&[], "--user NAME:PASSWORD"),
            (&["--user", "a:b", "--listen", "[::1]:3478"], "IPv4"),
            (&["--user", "a:b", "--external-ip", "0.0.0.0"], "--external-ip"),
            (&["--auth-secret", ""], "empty"),
            (&["--auth-secret-file", "/nonexistent"], "--auth-secret-file"),
            (&["--auth-secret-file", "/dev/null"], "one per line"),
        ];
        for (args, part) in cases {
            let error = settings(args).unwrap_err().to_string();
            assert!(error.contains(part), "{args:?}: {error}");
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
    fn relays_are_bound_where_clients_come_in_unless_told_otherwise() {
        let one = settings(&["--user", "a:b", "--listen", "127.0.0.1:1"]).unwrap();
        assert_eq!(one.relay_ip, Ipv4Addr::LOCALHOST);
        let told = settings(&[
            "--user",
            "a:b",
            "--relay-ip",
            "127.0.0.2",
            "--listen",
            "127.0.0.1:1",
        ])
        .unwrap();
        assert_eq!(told.relay_ip, Ipv4Addr::new(127, 0, 0, 2));
    }

    fn settings(args: &[&str]) -> Result<Settings, BadOptions> {
        let args = ["penstock-turn"].iter().chain(args);
        Options::try_parse_from(args).unwrap().settings()
    }
}
