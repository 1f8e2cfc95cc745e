//! The certificate that clients over TLS see.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum BadCertificate {
    /// A file.
    #[error("reading {what} from {}: check {option}", path.display())]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The option that names it.
        option: &'static str,
        /// Why not.
        source: pem::Error,
    },
    /// The two don't fit each other, or can't be used.
    #[error("using the certificate in {} with its key: do --tls-cert and --tls-key belong together?", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// Reads a certificate, with the chain to its authority behind it, and its key; both PEM. Clients that name a protocol
/// (RFC 7301) must name one of `protocols`.
///
/// # Errors
/// [`BadCertificate`] says which file is to blame.
pub fn load(certificate: &Path, key: &Path, protocols: &[&str]) -> Result<Arc<ServerConfig>, BadCertificate> {
    let file = |what, path: &Path, option| {
        let path = path.to_owned();
        move |source| BadCertificate::File {
            what,
            path,
            option,
            source,
        }
    };
    let blame = file("a certificate", certificate, "--tls-cert");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain
        .and_then(|chain| {
            if chain.is_empty() {
                Err(pem::Error::NoItemsFound)
            } else {
                Ok(chain)
            }
        })
        .map_err(blame)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(file("a private key", key, "--tls-key"))?;
    let unusable = |source| BadCertificate::Unusable {
        path: certificate.to_owned(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = protocols
        .iter()
        .map(|protocol| protocol.as_bytes().to_vec())
        .collect();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_with_its_key_is_taken() {
        let (folder, certificate, key) = files();
        let config = load(&certificate, &key, &["http/1.1"]).unwrap();
        assert!(config.alpn_protocols.contains(&b"http/1.1".to_vec()));
        drop(folder);
    }

    #[test]
    fn the_file_to_blame_is_named() {
        let (_folder, certificate, key) = files();
        let (_other_folder, other, _) = files();
        let nowhere = Path::new("/nonexistent.pem");
        for (certificate, key, part) in [
            (nowhere, &*key, "--tls-cert"),
            (&*certificate, nowhere, "--tls-key"),
            (&*key, &*key, "--tls-cert"),
            (&*certificate, &*certificate, "--tls-key"),
            (&*other, &*key, "belong together"),
        ] {
            let error = load(certificate, key, &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (folder, certificate, key)
    }
}
