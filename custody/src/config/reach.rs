//! How a server is reached, as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use custody_journal::kafka::Secret;

/// How a server is reached.
#[derive(Clone, Debug)]
pub enum Reach {
    /// Streamable HTTP.
    Http(Address),
    /// HTTP+SSE of 2024-11-05.
    LegacySse(Address),
    /// A process of ours.
    Stdio(Command),
}

/// A server on the network.
#[derive(Clone, Debug, Default)]
pub struct Address {
    /// Where it is.
    pub url: String,
    /// Headers that every request to it carries.
    pub headers: Pairs,
    /// PEM file with the only certificates to trust.
    pub ca: Option<PathBuf>,
    /// PEM files with our certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Where access tokens come from.
    pub oauth: Option<OAuth>,
    /// After how many failures in a row it is left alone; never when 0.
    pub breaker_failures: Option<u64>,
    /// For how long at first.
    pub breaker_pause_ms: Option<u64>,
}

/// OAuth 2.0 client credentials.
#[derive(Clone, Debug)]
pub struct OAuth {
    /// The token endpoint.
    pub token_url: String,
    /// Who the proxy is there.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// The resource indicator.
    pub resource: Option<String>,
}

/// A program that is an MCP server.
#[derive(Clone, Debug)]
pub struct Command {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Pairs,
    /// Where it runs.
    pub cwd: Option<PathBuf>,
    /// How many of it may run at a time.
    pub max_processes: u64,
    /// After how long without use one is stopped.
    pub idle_seconds: u64,
}

/// Names and values, some of them credentials: the values are not printed.
#[derive(Clone, Default)]
pub struct Pairs(pub BTreeMap<String, String>);

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
