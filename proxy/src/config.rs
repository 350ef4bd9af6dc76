//! What a proxy needs to know: plain values, already valid where a type can say so.
//!
//! Reading files and naming lines is the binary's part; [`Config::mistakes`] reports everything
//! that only the values together can get wrong, all at once.

use std::net::SocketAddr;
use std::time::Duration;

use custody_journal::control::Control;
use custody_schemas::event::Recipient;
use http::Uri;

use crate::identity::Identity;
use crate::inspect::Rules;
use crate::tools::ToolSettings;
use crate::upstream::reach::{Address, Reach};

/// The settings of a proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// How callers are told apart.
    pub identity: Identity,
    /// The servers, by name.
    pub servers: Vec<Server>,
    /// How long a call waits for its opening, and an answer for its ending, to be durable.
    pub audit_wait: Duration,
    /// The longest message, either way, in bytes.
    pub max_message_bytes: usize,
    /// Values of `Host` that are served besides loopback names; `host` or `host:port`.
    pub allowed_hosts: Vec<String>,
    /// Values of `Origin` that are served besides loopback ones.
    pub allowed_origins: Vec<String>,
    /// The version of the policy set that decisions name.
    pub policy_version: Option<String>,
    /// How long things may take.
    pub limits: Limits,
    /// What the deployment's processes share, such as the tools whose definitions are approved;
    /// without it this proxy knows what it sees itself.
    pub control: Option<Control>,
}

/// How long things may take, and how many there may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Waiting for a request's head, on a kept connection too.
    pub head: Duration,
    /// Reading a request's body.
    pub body: Duration,
    /// Connecting to an upstream.
    pub connect: Duration,
    /// Waiting for the head of an upstream's answer.
    pub response: Duration,
    /// Reading the body of an upstream's JSON answer, once its head is there.
    pub answer: Duration,
    /// Waiting for the next piece of an upstream's event stream.
    pub stream_idle: Duration,
    /// After how much silence a comment keeps a client's event stream open.
    pub keep_alive: Duration,
    /// How long a client may take nothing of what there is for it.
    pub stall: Duration,
    /// How long a server may still answer a call that its client has cancelled.
    pub cancelled: Duration,
    /// How long calls in flight may go on after a stop was asked for.
    pub drain: Duration,
    /// Open connections from clients.
    pub connections: usize,
    /// Sessions that are remembered.
    pub sessions: usize,
    /// After how long without use a session is forgotten.
    pub session_idle: Duration,
}

/// An MCP server behind the proxy.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name in the path `/servers/{name}/mcp`.
    pub name: String,
    /// How it is reached.
    pub reach: Reach,
    /// How long it may take to begin its answer, if that is not as with all others.
    pub response: Option<Duration>,
    /// Whether it holds protected health information.
    pub phi: bool,
    /// Who is behind it.
    pub recipient: Option<Recipient>,
    /// What happens when a call cannot be recorded.
    pub on_audit_failure: OnAuditFailure,
    /// What is known of its tools and data.
    pub rules: Rules,
    /// Which of its tools may be used.
    pub tools: ToolSettings,
}

/// What happens when a call cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAuditFailure {
    /// The call is refused.
    #[default]
    Deny,
    /// The call goes on unrecorded, and an alarm says so. Never for a `phi` server.
    AllowAndAlert,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            identity: Identity::None,
            servers: Vec::new(),
            audit_wait: Duration::from_secs(1),
            max_message_bytes: 16 << 20,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            policy_version: None,
            limits: Limits::default(),
            control: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            body: Duration::from_secs(60),
            connect: Duration::from_secs(5),
            response: Duration::from_secs(300),
            answer: Duration::from_secs(60),
            stream_idle: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            cancelled: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            connections: 10_000,
            sessions: 10_000,
            session_idle: Duration::from_secs(24 * 3600),
        }
    }
}

impl Server {
    /// A server that holds protected data and about which nothing else is known.
    #[must_use]
    pub fn new(name: impl Into<String>, url: Uri) -> Self {
        Self::reached(name, Reach::Http(Address::new(url)))
    }

    /// The same, however it is reached.
    #[must_use]
    pub fn reached(name: impl Into<String>, reach: Reach) -> Self {
        Self {
            name: name.into(),
            reach,
            response: None,
            phi: true,
            recipient: None,
            on_audit_failure: OnAuditFailure::Deny,
            rules: Rules::default(),
            tools: ToolSettings::default(),
        }
    }
}

/// Something in the configuration that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A name that a path cannot hold.
    #[error("server name {0:?}: use 1 to 64 of a-z A-Z 0-9 . _ -")]
    Name(String),
    /// Two servers of one name.
    #[error("server name {0:?} stands twice; give each server its own")]
    Twice(String),
    /// Not an address of an MCP server.
    #[error("server {0:?}: its url must begin with http:// or https:// and name a host")]
    Url(String),
    /// Not a program.
    #[error("server {0:?}: its command must name a program, and let one of it run at least")]
    Command(String),
    /// A server with protected data that would go on unrecorded.
    #[error(
        "server {0:?}: on_audit_failure = \"allow_and_alert\" is refused for a phi server; use \
         \"deny\", or say phi = false if it holds no protected data"
    )]
    PhiUnrecorded(String),
    /// Calls that go on unrecorded are not built yet.
    #[error(
        "server {0:?}: on_audit_failure = \"allow_and_alert\" is not available yet; use \"deny\""
    )]
    NotAvailable(String),
    /// Everybody in the network would be nobody.
    #[error(
        "listening on {0}, which others can reach, needs identities: configure keys, or listen on \
         127.0.0.1"
    )]
    OpenToAll(SocketAddr),
    /// Nothing could pass.
    #[error("max_message_bytes is {0}; at least 1024 are needed")]
    MessageBytes(usize),
}

impl Config {
    /// Everything that is wrong, if the proxy listens on `listen`.
    #[must_use]
    pub fn mistakes(&self, listen: SocketAddr) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if matches!(self.identity, Identity::None) && !listen.ip().is_loopback() {
            mistakes.push(Mistake::OpenToAll(listen));
        }
        if self.max_message_bytes < 1024 {
            mistakes.push(Mistake::MessageBytes(self.max_message_bytes));
        }
        for (i, server) in self.servers.iter().enumerate() {
            if self.servers[..i].iter().any(|earlier| earlier.name == server.name) {
                mistakes.push(Mistake::Twice(server.name.clone()));
            }
            mistakes.extend(server.mistakes());
        }
        mistakes
    }
}

impl Server {
    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(allowed) {
            mistakes.push(Mistake::Name(self.name.clone()));
        }
        let wrong = |url: &Uri| {
            let scheme = matches!(url.scheme_str(), Some("http" | "https"));
            !scheme || url.host().is_none_or(str::is_empty)
        };
        match &self.reach {
            Reach::Http(address) | Reach::LegacySse(address) if wrong(&address.url) => {
                mistakes.push(Mistake::Url(self.name.clone()));
            }
            Reach::Stdio(command) if command.program.is_empty() || command.max_processes == 0 => {
                mistakes.push(Mistake::Command(self.name.clone()));
            }
            Reach::Http(_) | Reach::LegacySse(_) | Reach::Stdio(_) => {}
        }
        match (self.on_audit_failure, self.phi) {
            (OnAuditFailure::AllowAndAlert, true) => {
                mistakes.push(Mistake::PhiUnrecorded(self.name.clone()));
            }
            (OnAuditFailure::AllowAndAlert, false) => {
                mistakes.push(Mistake::NotAvailable(self.name.clone()));
            }
            (OnAuditFailure::Deny, _) => {}
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let server = |name: &str, url: &'static str| Server::new(name, Uri::from_static(url));
        let unrecorded = Server {
            on_audit_failure: OnAuditFailure::AllowAndAlert,
            ..server("ehr", "http://127.0.0.1:1/mcp")
        };
        let config = Config {
            servers: vec![unrecorded, server("ehr", "ftp://x/"), server("a/b", "https://x/mcp")],
            ..Config::default()
        };
        let mistakes = config.mistakes(SocketAddr::from(([0, 0, 0, 0], 7400)));
        assert_eq!(
            mistakes,
            [
                Mistake::OpenToAll(SocketAddr::from(([0, 0, 0, 0], 7400))),
                Mistake::PhiUnrecorded("ehr".into()),
                Mistake::Twice("ehr".into()),
                Mistake::Url("ehr".into()),
                Mistake::Name("a/b".into()),
            ]
        );
    }
}
