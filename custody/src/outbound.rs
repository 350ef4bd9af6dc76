//! A client for what this process asks of others over HTTP and HTTPS.
//!
//! It trusts the certificates that the system trusts; which answers count says whoever asks.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// A client with pooled connections.
pub type Outbound = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client that waits at most `connect` for a connection. The system's certificates are read only
/// if it is to be `secure`.
pub fn client(secure: bool, connect: Duration) -> anyhow::Result<Outbound> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let tls = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?;
    let tls = if secure {
        tls.with_native_roots().context("the system's certificates")?.with_no_client_auth()
    } else {
        tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
    };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(connect));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(https.wrap_connector(http)))
}
