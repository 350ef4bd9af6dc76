//! How a server is reached: what the configuration says of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

/// How a server is reached.
#[derive(Clone, Debug)]
pub enum Reach {
    /// Streamable HTTP.
    Http(Address),
    /// HTTP+SSE of 2024-11-05: a stream that is got, and an address to post to that it names.
    LegacySse(Address),
    /// A process of ours that reads messages from its standard input and writes them to its
    /// standard output, one in a line.
    Stdio(Command),
}

/// A server on the network.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where it listens: `http` or `https`.
    pub url: Uri,
    /// Headers that every request to it carries, such as its own credentials.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How the two sides of a TLS connection know each other.
    pub tls: Tls,
    /// Where the proxy gets access tokens for it.
    pub oauth: Option<OAuth>,
    /// When it is left alone for a while.
    pub breaker: Breaker,
}

impl Address {
    /// A server that asks for no credentials, known by the certificates that this machine trusts.
    #[must_use]
    pub fn new(url: Uri) -> Self {
        let (headers, tls, oauth) = (Vec::new(), Tls::default(), None);
        Self { url, headers, tls, oauth, breaker: Breaker::default() }
    }
}

/// How the two sides of a TLS connection know each other.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// PEM file with the only certificates to trust; without it those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// PEM files with our own certificate chain and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// When a server that does not answer is left alone, so that callers need not wait in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// After how many failures in a row; never when 0.
    pub failures: u32,
    /// For how long at first; twice as long each time, up to a minute.
    pub pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_secs(1) }
    }
}

/// Access tokens by OAuth 2.0 client credentials (RFC 6749, section 4.4).
#[derive(Clone, Debug)]
pub struct OAuth {
    /// The token endpoint.
    pub token_url: Uri,
    /// Who the proxy is to the authorization server.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// What is asked for; what the authorization server thinks right when empty.
    pub scopes: Vec<String>,
    /// The resource indicator (RFC 8707).
    pub resource: Option<String>,
}

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A program that is an MCP server.
#[derive(Clone, Debug)]
pub struct Command {
    /// The program: a path, or a name that is looked for in the `PATH` of `env`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: BTreeMap<String, Secret>,
    /// Where it runs.
    pub cwd: Option<PathBuf>,
    /// How many of it may run at a time.
    pub max_processes: usize,
    /// After how long without use one is stopped.
    pub idle: Duration,
}

impl Command {
    /// A program with an empty environment.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            max_processes: 64,
            idle: Duration::from_secs(1800),
        }
    }
}
