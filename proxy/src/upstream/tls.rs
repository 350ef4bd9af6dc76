//! TLS towards a server: whom to trust, and who we are.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::reach::{Address, Tls};

/// TLS cannot be set up for a server.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS for server {server:?}: {reason}")]
pub struct TlsError {
    server: String,
    reason: String,
}

/// The settings of TLS towards the server `name`.
///
/// # Errors
/// [`TlsError`], which says what is wrong with which file.
pub fn config(name: &str, address: &Address) -> Result<ClientConfig, TlsError> {
    let wrong = |reason: String| TlsError { server: name.to_owned(), reason };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let builder = builder.with_root_certificates(roots(address).map_err(wrong)?);
    match &address.tls.client {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => {
            let unread = |file: &std::path::Path, error: String| {
                wrong(format!("{} cannot be used: {error}", file.display()))
            };
            let certificates = CertificateDer::pem_file_iter(chain)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| unread(chain, error.to_string()))?;
            if certificates.is_empty() {
                return Err(unread(chain, "it holds no certificate".to_owned()));
            }
            let private = PrivateKeyDer::from_pem_file(key);
            let private = private.map_err(|error| unread(key, error.to_string()))?;
            let ours = builder.with_client_auth_cert(certificates, private);
            ours.map_err(|error| unread(key, error.to_string()))
        }
    }
}

/// Whom to trust.
fn roots(address: &Address) -> Result<RootCertStore, String> {
    match &address.tls {
        Tls { ca: Some(file), .. } => {
            let mut roots = RootCertStore::empty();
            let wrong = |error: String| format!("{} cannot be used: {error}", file.display());
            for certificate in
                CertificateDer::pem_file_iter(file).map_err(|e| wrong(e.to_string()))?
            {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                Err(wrong("it holds no certificate".to_owned()))
            } else {
                Ok(roots)
            }
        }
        Tls { ca: None, .. } if needs_roots(address) => native(),
        Tls { ca: None, .. } => Ok(RootCertStore::empty()),
    }
}

/// Whether anything is reached over TLS.
fn needs_roots(address: &Address) -> bool {
    let tokens = address.oauth.as_ref().map(|oauth| &oauth.token_url);
    [Some(&address.url), tokens].iter().flatten().any(|url| url.scheme_str() == Some("https"))
}

/// What this machine trusts.
fn native() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "this machine trusts no certificate{why}; install the system's CA certificates or set `ca`"
        ));
    }
    Ok(roots)
}
