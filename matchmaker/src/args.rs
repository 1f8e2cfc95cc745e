//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{ArgGroup, Parser};
use penstock_shell::logging::LogArgs;
use penstock_shell::secrets::SecretFile;

use crate::auth::options::AccessArgs;
use crate::cluster::ClusterArgs;
use crate::duration::duration;
use crate::ice::{Ice, Turn};
use crate::site::SiteArgs;
use crate::turn_servers::TurnServers;

/// The front door for players: serves the page, queues players, claims a free
/// streamer for the one that has waited longest, and relays their signalling.
///
/// Players open http://<listen address>/. The first to come gets the first streamer
/// that is free; the others see their place in the queue. A link with
/// ?watch=<session> shows a running session without steering it.
///
/// Players from other machines show who they are, by name and password or by a
/// token of an OpenID provider, or have a join link (see "Who gets in"). Operators
/// also see and end sessions, and make join links.
///
/// For pages:      GET /   WebSocket /signalling (and /, for stock Pixel Streaming pages)
/// For programs:   /sessions   /ice-servers   /login   described by GET /openapi.json
/// For operators:  GET /overview   /status   and for all in their network   /healthz   /readyz   /metrics
#[derive(Debug, Clone, Parser)]
#[command(version, verbatim_doc_comment)]
#[command(after_help = "Examples:
  penstock-matchmaker
      streamers of the stand-alone agent on this machine, page on http://127.0.0.1:8080/
  penstock-matchmaker --streamer 127.0.0.1:9001
      one streamer that was started by hand, and no agent
  penstock-matchmaker --listen 0.0.0.0:8080 --auth none --pods --turn-pods --turn-secret-file secret
      streamers and TURN servers in the pods of a cluster that have our labels; anyone may play
  penstock-matchmaker --listen 0.0.0.0:8080 --auth basic --users users --operator ann \
      --turn-url 'turn:198.51.100.7:3478?transport=udp' --turn-secret-file secret
      players from elsewhere who have a password, and a TURN server that knows the same secret
  penstock-matchmaker --listen 0.0.0.0:443 --tls-cert tls.crt --tls-key tls.key --signing-key-file key \
      --auth oidc --oidc-issuer https://id.example.org --oidc-audience penstock
      tokens of an OpenID provider, and join links that several replicas take
  curl -u ann http://HOST:8080/sessions -H 'content-type: application/json' -d '{\"application\": \"chess\"}'
      a link with which somebody may play chess")]
#[command(group = ArgGroup::new("secret").args(["turn_secret", "turn_secret_file"]).multiple(true))]
pub struct Args {
    /// Where to listen for players (HTTP and WebSocket)
    #[arg(long, env = "PENSTOCK_MATCHMAKER_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The directory of the page, as `make player` builds it; by default player/dist beside the working directory
    /// or beside this program
    #[arg(long, env = "PENSTOCK_PAGE", value_name = "DIR")]
    pub page: Option<PathBuf>,

    /// The stand-alone agent's Unix socket, whose slices are the streamers. By default
    /// /run/penstock/agent.sock, unless --streamer or --pods is given
    #[arg(
        long,
        env = "PENSTOCK_AGENT_SOCKET",
        value_name = "SOCKET",
        help_heading = "Streamers"
    )]
    pub agent: Option<PathBuf>,
    /// A streamer that runs without an agent; may be given several times
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Streamers")]
    pub streamer: Vec<SocketAddr>,

    /// A TURN server for pages, such as turn:198.51.100.7:3478?transport=udp; may be given several times
    #[arg(long, env = "PENSTOCK_TURN_URL", value_name = "URL", value_delimiter = ',', value_parser = turn_url)]
    #[arg(requires = "secret", help_heading = "ICE servers")]
    pub turn_url: Vec<String>,
    /// The secret shared with the TURN servers. It shows in the list of processes: prefer the environment, or a file
    #[arg(
        long,
        env = "PENSTOCK_TURN_SECRET",
        value_name = "SECRET",
        hide_env_values = true
    )]
    #[arg(help_heading = "ICE servers")]
    pub turn_secret: Option<String>,
    /// A file with that secret on its first line, which then counts. The TURN servers may read the same file, and take
    /// what is on its other lines too
    #[arg(long, value_name = "FILE", help_heading = "ICE servers")]
    pub turn_secret_file: Option<PathBuf>,
    /// How long a player's TURN credentials last: a number with s, m or h
    #[arg(long, env = "PENSTOCK_TURN_TTL", value_name = "TIME", default_value = "6h", value_parser = duration)]
    #[arg(help_heading = "ICE servers")]
    pub turn_ttl: Duration,
    /// A STUN server for pages, such as stun:198.51.100.7:3478; may be given several times
    #[arg(long, env = "PENSTOCK_STUN_URL", value_name = "URL", value_delimiter = ',', value_parser = stun_url)]
    #[arg(help_heading = "ICE servers")]
    pub stun_url: Vec<String>,

    /// What it does with a cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Who gets in.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Where and how the site is served.
    #[command(flatten)]
    pub site: SiteArgs,
    /// The log options.
    #[command(flatten)]
    pub logs: LogArgs,
}

impl Args {
    /// The agent's socket, if an agent is to be asked.
    pub fn agent(&self) -> Option<PathBuf> {
        let elsewhere = !self.streamer.is_empty() || self.cluster.pods.is_some();
        let default = || (!elsewhere).then(|| PathBuf::from(AGENT_SOCKET));
        self.agent.clone().or_else(default)
    }

    /// The directory with the page in it.
    ///
    /// # Errors
    /// Where there is no `index.html` in it.
    pub fn page(&self) -> anyhow::Result<PathBuf> {
        let candidates = match &self.page {
            Some(page) => vec![page.clone()],
            None => default_pages(),
        };
        let found = candidates.iter().find(|page| page.join("index.html").is_file());
        let Some(found) = found else {
            let places: Vec<_> = candidates.iter().map(|page| page.display().to_string()).collect();
            bail!(
                "looking for the page: there is no index.html in {}. Run `make player`, or name the directory with --page",
                places.join(" nor in ")
            );
        };
        Ok(found.clone())
    }

    /// The ICE servers that pages are told of.
    ///
    /// # Errors
    /// Where the secret's file can't be read, or the secret is empty.
    pub fn ice(&self) -> anyhow::Result<Ice> {
        let some = !self.turn_url.is_empty() || self.cluster.turn_pods.is_some();
        let turn = self.turn_secret()?.filter(|_| some).map(|secret| Turn {
            urls: self.turn_url.clone(),
            servers: TurnServers::default(),
            secret,
            lifetime: self.turn_ttl,
        });
        let stun = self.stun_url.clone();
        Ok(Ice { stun, turn })
    }

    fn turn_secret(&self) -> anyhow::Result<Option<Vec<u8>>> {
        if let Some(file) = &self.turn_secret_file {
            return Ok(TURN_SECRET.lines(file)?.into_iter().next());
        }
        if self.turn_secret.as_deref() == Some("") {
            bail!("--turn-secret is empty: give the secret that the TURN server was started with");
        }
        Ok(self.turn_secret.clone().map(String::into_bytes))
    }
}

/// Beside the working directory, then beside the program, upwards: `target/debug/` is two levels below the page.
fn default_pages() -> Vec<PathBuf> {
    let mut pages = vec![PathBuf::from(PAGE)];
    let program = std::env::current_exe().unwrap_or_default();
    pages.extend(
        program
            .ancestors()
            .skip(1)
            .take(3)
            .map(|directory| directory.join(PAGE)),
    );
    pages
}

fn turn_url(text: &str) -> Result<String, String> {
    url(text, &["turn:", "turns:"])
}

fn stun_url(text: &str) -> Result<String, String> {
    url(text, &["stun:", "stuns:"])
}

/// A page throws on a URL of another scheme, and would show nothing at all.
fn url(text: &str, schemes: &[&str]) -> Result<String, String> {
    let fits = schemes
        .iter()
        .any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
    if fits {
        return Ok(text.to_owned());
    }
    Err(format!(
        "it must begin with {}, then a host",
        schemes.join(" or ")
    ))
}

/// The TURN servers may have an older one on its next lines.
const TURN_SECRET: SecretFile = SecretFile {
    what: "the TURN secret",
    option: "--turn-secret-file",
    with: "the secret that the TURN servers were started with on its first line",
};
const AGENT_SOCKET: &str = "/run/penstock/agent.sock";
const PAGE: &str = "player/dist";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["penstock-matchmaker"], args].concat())
    }

    #[test]
    fn the_agent_is_asked_unless_a_streamer_is_named() {
        assert_eq!(parse(&[]).unwrap().agent(), Some(AGENT_SOCKET.into()));
        let by_hand = parse(&["--streamer", "127.0.0.1:1"]).unwrap();
        assert_eq!(by_hand.agent(), None);
        let both = parse(&["--streamer", "127.0.0.1:1", "--agent", "/a"]).unwrap();
        assert_eq!(both.agent(), Some("/a".into()));
        let pods = parse(&["--pods"]).unwrap();
        assert_eq!(pods.agent(), None);
        assert_eq!(pods.cluster.pods.as_deref(), Some("penstock.dev/streamer=true"));
        let other = parse(&["--pods=app=game"]).unwrap();
        assert_eq!(other.cluster.pods.as_deref(), Some("app=game"));
    }

    #[test]
    fn a_turn_server_needs_a_secret_and_a_url_its_scheme() {
        assert!(parse(&["--turn-url", "turn:h:1"]).is_err());
        assert!(parse(&["--turn-url", "h:1", "--turn-secret", "s"]).is_err());
        let args = parse(&[
            "--turn-url",
            "turn:h:1",
            "--turn-secret",
            "s",
            "--turn-ttl",
            "90s",
        ])
        .unwrap();
        assert_eq!(args.turn_ttl, Duration::from_secs(90));
    }

    #[test]
    fn the_first_line_of_the_turn_servers_file_is_the_secret_to_use() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = |content: &str| {
            std::fs::write(file.path(), content).unwrap();
            let path = file.path().to_str().unwrap();
            parse(&["--turn-secret-file", path]).unwrap().turn_secret()
        };
        assert_eq!(secret("new\nold\n").unwrap().as_deref(), Some(&b"new"[..]));
        let error = secret("\n").unwrap_err().to_string();
        assert!(error.contains("--turn-secret-file"), "{error}");
        let empty = parse(&["--turn-secret", ""]).unwrap().turn_secret();
        assert!(empty.unwrap_err().to_string().contains("--turn-secret"));
    }

    #[test]
    fn a_missing_page_says_how_to_build_it() {
        let args = parse(&["--page", "/nowhere"]).unwrap();
        let error = args.page().unwrap_err().to_string();
        assert!(
            error.contains("/nowhere") && error.contains("make player"),
            "{error}"
        );
    }
}
