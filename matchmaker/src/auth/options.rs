//! The options of authentication.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use penstock_shell::secrets::SecretFile;

use super::jwt::Rules;
use super::oidc;
use crate::duration::duration;
use crate::signed::SigningKey;

/// Who gets in, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Who gets in")]
pub struct AccessArgs {
    /// How people show who they are; join links admit whoever has one in any case
    /// [default: none where only this machine can connect]
    #[arg(long, env = "PENSTOCK_AUTH", value_enum, value_name = "HOW")]
    pub auth: Option<AuthMode>,
    /// basic: the file with users, a NAME:HASH on each line as `htpasswd -nB NAME` prints it. It is read again when it
    /// changes
    #[arg(long, env = "PENSTOCK_USERS", value_name = "FILE")]
    pub users: Option<PathBuf>,
    /// basic: a user who may see and end all sessions; may be given several times
    #[arg(long, env = "PENSTOCK_OPERATORS", value_name = "NAME", value_delimiter = ',')]
    pub operator: Vec<String>,
    /// oidc: the issuer of tokens, exactly as its tokens and its /.well-known/openid-configuration write it
    #[arg(long, env = "PENSTOCK_OIDC_ISSUER", value_name = "URL", value_parser = issuer)]
    pub oidc_issuer: Option<String>,
    /// oidc: the audience that tokens must be for
    #[arg(long, env = "PENSTOCK_OIDC_AUDIENCE", value_name = "TEXT")]
    pub oidc_audience: Option<String>,
    /// oidc: the claim with the user's roles, a list or a text with spaces; dots lead into claims, as in
    /// realm_access.roles
    #[arg(
        long,
        env = "PENSTOCK_OIDC_ROLES_CLAIM",
        value_name = "CLAIM",
        default_value = "roles"
    )]
    pub oidc_roles_claim: String,
    /// oidc: the role of those who may see and end all sessions
    #[arg(
        long,
        env = "PENSTOCK_OIDC_OPERATOR_ROLE",
        value_name = "ROLE",
        default_value = "penstock:operator"
    )]
    pub oidc_operator_role: String,
    /// oidc: the role of those who may play [default: everyone with a good token may]
    #[arg(long, env = "PENSTOCK_OIDC_PLAYER_ROLE", value_name = "ROLE")]
    pub oidc_player_role: Option<String>,
    /// oidc: how far the issuer's clock and ours may differ: a number with s, m or h
    #[arg(long, env = "PENSTOCK_OIDC_LEEWAY", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub oidc_leeway: Duration,

    /// A file with the secret that signs join links and logins, at least 32 bytes, the same for all replicas. Make one
    /// with `openssl rand -base64 48` [default: a random one, so that both end with this process]
    #[arg(long, env = "PENSTOCK_SIGNING_KEY_FILE", value_name = "FILE")]
    pub signing_key_file: Option<PathBuf>,
    /// How long a join link admits: a number with s, m or h
    #[arg(long, env = "PENSTOCK_JOIN_LINK_TTL", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub join_link_ttl: Duration,
    /// Players that one user may have at once, as each replica counts them; 0 for no limit. A join link to play is always
    /// for one
    #[arg(long, env = "PENSTOCK_MAX_PER_USER", value_name = "N", default_value_t = 4)]
    pub max_per_user: u32,
}

/// How people show who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// Not at all: whoever can connect may do everything
    None,
    /// By name and password, out of --users
    Basic,
    /// By a JSON Web Token of --oidc-issuer
    Oidc,
}

/// What the options come to.
#[derive(Debug)]
pub enum Access {
    /// Everyone is an operator.
    Anyone,
    /// Users from a file.
    Basic {
        /// The file.
        users: PathBuf,
        /// Those of them who are operators.
        operators: BTreeSet<String>,
    },
    /// Tokens.
    Oidc(Rules),
}

impl AccessArgs {
    /// Who gets in at `listen`.
    ///
    /// # Errors
    /// Where that was left open although others can connect, or an option is missing; says which.
    pub fn access(&self, listen: SocketAddr) -> anyhow::Result<Access> {
        match self.auth {
            None if !listen.ip().is_loopback() => bail!(
                "--listen {listen} lets others than this machine connect, and nothing says who may play: choose \
                 --auth basic or --auth oidc, or --auth none where whoever can connect may do everything"
            ),
            None | Some(AuthMode::None) => Ok(Access::Anyone),
            Some(AuthMode::Basic) => {
                let users = self.users.clone();
                Ok(Access::Basic {
                    users: users.context("--auth basic needs the file with users: name it with --users")?,
                    operators: self.operator.iter().cloned().collect(),
                })
            }
            Some(AuthMode::Oidc) => Ok(Access::Oidc(self.rules()?)),
        }
    }

    fn rules(&self) -> anyhow::Result<Rules> {
        let (issuer, audience) = (self.oidc_issuer.clone(), self.oidc_audience.clone());
        Ok(Rules {
            issuer: issuer.context("--auth oidc needs the issuer of tokens: name it with --oidc-issuer")?,
            audience: audience.context(
                "--auth oidc needs to know whom tokens are for: name it with --oidc-audience. Without it, tokens that \
                 the issuer made for quite other programs would get in",
            )?,
            leeway: self.oidc_leeway,
            roles_claim: self.oidc_roles_claim.clone(),
            operator_role: self.oidc_operator_role.clone(),
            player_role: self.oidc_player_role.clone(),
        })
    }

    /// The key that signs join links and logins.
    ///
    /// # Errors
    /// Where the file can't be read, or what is in it is too short.
    pub fn signing_key(&self) -> anyhow::Result<SigningKey> {
        let Some(file) = &self.signing_key_file else {
            return Ok(SigningKey::random());
        };
        let key = SIGNING_KEY.read(file)?;
        let bytes = key.len();
        Ok(SigningKey::new(key).ok_or_else(|| SIGNING_KEY.too_short(file, bytes))?)
    }
}

const SIGNING_KEY: SecretFile = SecretFile {
    what: "the signing key",
    option: "--signing-key-file",
    with: "at least 32 bytes, such as `openssl rand -base64 48` makes",
};

fn issuer(url: &str) -> Result<String, String> {
    oidc::check_url(url).map(|()| url.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        access: AccessArgs,
    }

    fn access(listen: &str, args: &[&str]) -> Result<Access, String> {
        let cli = Cli::try_parse_from([&["test"], args].concat()).map_err(|error| error.to_string())?;
        let access = cli.access.access(listen.parse().unwrap());
        access.map_err(|error| error.to_string())
    }

    #[test]
    fn nobody_gets_in_unasked_from_elsewhere() {
        for local in ["127.0.0.1:80", "[::1]:80"] {
            assert!(matches!(access(local, &[]), Ok(Access::Anyone)));
        }
        for open in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"] {
            let error = access(open, &[]).unwrap_err();
            assert!(error.contains("--auth none") && error.contains(open), "{error}");
            assert!(matches!(access(open, &["--auth", "none"]), Ok(Access::Anyone)));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let all = "0.0.0.0:80";
        let oidc = ["--auth", "oidc", "--oidc-issuer", "https://id.example"];
        for (args, says) in [
            (&["--auth", "basic"][..], "--users"),
            (&["--auth", "oidc"], "--oidc-issuer"),
            (&oidc, "--oidc-audience"),
            (
                &["--auth", "oidc", "--oidc-issuer", "http://id.example"],
                "https://",
            ),
            (&["--join-link-ttl", "0s"], "more than 0"),
        ] {
            let error = access(all, args).unwrap_err();
            assert!(error.contains(says), "{args:?}: {error}");
        }
        let complete = [&oidc[..], &["--oidc-audience", "penstock"]].concat();
        let Ok(Access::Oidc(rules)) = access(all, &complete) else {
            panic!()
        };
        assert_eq!(rules.operator_role, "penstock:operator");
    }

    #[test]
    fn a_signing_key_is_long_enough() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let cli = Cli::parse_from(["test", "--signing-key-file", file.path().to_str().unwrap()]);
            cli.access.signing_key().map_err(|error| error.to_string())
        };
        assert!(key(&"x".repeat(32)).is_ok());
        let error = key(&format!("{}\n", "x".repeat(31))).unwrap_err();
        assert!(error.contains("openssl rand"), "{error}");
        assert!(
            SIGNING_KEY
                .with
                .contains(&crate::signed::MIN_KEY_BYTES.to_string()),
            "it says how long it must be"
        );
    }
}
