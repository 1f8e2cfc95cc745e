//! What is read at the start, and again whenever it changes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use penstock_shell::tls;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::Args;
use crate::auth::basic::Users;
use crate::auth::oidc::Provider;
use crate::auth::options::{Access, AccessArgs};
use crate::auth::{Authenticator, How};
use crate::reload::{Reloading, outlive_hang_ups};
use crate::site::SiteArgs;

/// A set for what is followed, in which SIGHUPs are taken already.
///
/// # Errors
/// Where no handler for them can be installed.
pub fn followers(args: &Args) -> anyhow::Result<JoinSet<()>> {
    let has_files = args.access.users.is_some() || args.site.tls_cert.is_some();
    let mut followers = JoinSet::new();
    followers.spawn(outlive_hang_ups(has_files).context("installing a handler for SIGHUP")?);
    Ok(followers)
}

/// Who finds out who asks. What has to be followed for that goes into `followers`.
///
/// # Errors
/// Where the options are not enough, or a file can't be read.
pub fn authenticator(
    args: &AccessArgs,
    listen: SocketAddr,
    followers: &mut JoinSet<()>,
) -> anyhow::Result<Authenticator> {
    let key = args.signing_key()?;
    let how = match args.access(listen)? {
        Access::Anyone => How::Anyone,
        Access::Basic { users, operators } => {
            let known = Arc::new(Users::read(&users)?);
            let missing = operators.iter().find(|name| known.hash(name).is_none());
            if let Some(name) = missing {
                tracing::warn!(name, "--operator names somebody who is not in --users");
            }
            let (values, known) = watch::channel(known);
            let file = users.clone();
            let reloading = Reloading {
                what: "the users",
                files: vec![users],
                read: Box::new(move || Ok(Arc::new(Users::read(&file)?))),
                values,
            };
            followers.spawn(reloading.run());
            How::Basic {
                users: known,
                operators,
            }
        }
        Access::Oidc(rules) => {
            let (provider, keeper) =
                Provider::new(rules).context(
                "reading the certificate authorities that this machine trusts: is the package ca-certificates installed?",
            )?;
            followers.spawn(keeper.run());
            How::Oidc(provider)
        }
    };
    warn(&how, args, listen);
    Ok(Authenticator::new(how, key))
}

fn warn(how: &How, args: &AccessArgs, listen: SocketAddr) {
    let open = matches!(how, How::Anyone);
    if open && !listen.ip().is_loopback() {
        tracing::warn!(
            "--auth none: whoever can connect may see, end and watch all sessions, and use the TURN servers"
        );
    }
    if !open && args.signing_key_file.is_none() {
        tracing::warn!(
            "without --signing-key-file, join links and logins end with this process, and other replicas don't take them"
        );
    }
}

/// The certificate, if there is one. It is followed by a task in `followers`.
///
/// # Errors
/// Where it can't be used.
pub fn certificate(
    args: &SiteArgs,
    followers: &mut JoinSet<()>,
) -> anyhow::Result<Option<watch::Receiver<Arc<ServerConfig>>>> {
    let (Some(certificate), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else {
        return Ok(None);
    };
    let config = tls::load(&certificate, &key, &PROTOCOLS)?;
    let (values, config) = watch::channel(config);
    let reloading = Reloading {
        what: "the certificate",
        files: vec![certificate.clone(), key.clone()],
        read: Box::new(move || Ok(tls::load(&certificate, &key, &PROTOCOLS)?)),
        values,
    };
    followers.spawn(reloading.run());
    Ok(Some(config))
}

/// WebSockets go over this one everywhere.
const PROTOCOLS: [&str; 1] = ["http/1.1"];
