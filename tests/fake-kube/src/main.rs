//! The stand-in for a Kubernetes API server, to be tried by hand.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use fake_kube::FakeKube;

/// A stand-in for a Kubernetes API server: objects, watches, RBAC. It runs nothing.
#[derive(Debug, Parser)]
#[command(name = "fake-kube", version)]
struct Cli {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// YAML file, directory or kustomization to begin with; may be repeated
    #[arg(long, value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// Kubeconfig to write
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Whose: NAMESPACE/SERVICEACCOUNT [default: the administrator's]
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "kubeconfig")]
    account: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let doing = || format!("listening on {}", cli.listen);
    let kube = FakeKube::start_at(cli.listen).with_context(doing)?;
    cli.manifests.iter().for_each(|path| kube.apply_manifests(path));
    if let Some(path) = &cli.kubeconfig {
        let account = cli.account.as_deref().map(|account| {
            account
                .split_once('/')
                .with_context(|| format!("--account {account} is not NAMESPACE/NAME"))
        });
        let doing = || format!("writing {}", path.display());
        kube.kubeconfig(path, account.transpose()?).with_context(doing)?;
    }
    println!("{}", kube.url());
    loop {
        std::thread::park();
    }
}
