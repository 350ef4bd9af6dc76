//! The configuration: `custody.toml` and `CUSTODY__…` variables, validated into plain data.
//!
//! This is the only place that reads either. Every setting has a default that suits one machine;
//! all mistakes are reported together, each with its line.

mod document;
pub mod reach;
mod read;
mod section;
mod summary;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use custody_journal::kafka::KafkaSettings;
use custody_journal::keys::Source;
use custody_schemas::seal::policy::Policy;

pub use document::Mistake;
use reach::Reach;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[deployment]`
    pub deployment: Deployment,
    /// `[proxy]`
    pub proxy: Proxy,
    /// `[[server]]`
    pub servers: Vec<Server>,
    /// `[[key]]`
    pub keys: Vec<Key>,
    /// `[journal]`
    pub journal: Journal,
    /// `[lake]`
    pub lake: Lake,
    /// `[ingest]`
    pub ingest: Ingest,
    /// `[query]`
    pub query: Query,
    /// `[witness]`
    pub witness: Witness,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// SHA-256 of the file's text and of the overrides, without their secrets, recorded when a
    /// stream opens.
    pub hash: String,
}

/// Who runs this and where it keeps things.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The deployment's name, origin of its checkpoints.
    pub name: String,
    /// The writer's name, if it is given: one per process that writes.
    pub writer: Option<String>,
    /// Folder for journal, keys and, by default, the lake.
    pub data: PathBuf,
    /// Folder for keys, `{data}/keys` unless given.
    pub keys: PathBuf,
    /// Where single keys are instead, by their names.
    pub signers: Vec<(String, Source)>,
}

impl Deployment {
    /// The writer's name, or `usual`.
    pub fn writer_or(&self, usual: &str) -> String {
        self.writer.clone().unwrap_or_else(|| usual.to_owned())
    }
}

/// When something recorded counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk of the process that recorded it.
    Local,
    /// On that disk, and acknowledged by Kafka.
    Replicated,
}

/// The gateway.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// What openings and endings wait for.
    pub durability: Durability,
    /// How long an opening or an ending may take to become durable.
    pub audit_wait_ms: u64,
    /// The longest message in either direction.
    pub max_message_bytes: u64,
    /// How long a server may take to answer.
    pub upstream_timeout_ms: u64,
    /// Names in `Host` beside the loopback ones.
    pub allowed_hosts: Vec<String>,
    /// Web origins that may call.
    pub allowed_origins: Vec<String>,
    /// How many calls may be in flight.
    pub max_calls: u64,
    /// How many sessions of legacy clients are remembered.
    pub max_sessions: u64,
    /// After how many seconds without use one is forgotten.
    pub session_idle_seconds: u64,
}

/// An MCP server behind the gateway.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name in `/servers/{name}/mcp` and in SQL.
    pub name: String,
    /// How it is reached.
    pub reach: Reach,
    /// How long it may take to answer, if not as long as any other.
    pub timeout_ms: Option<u64>,
    /// Whether its data are protected health information.
    pub phi: bool,
    /// Who is behind it.
    pub recipient: Option<Recipient>,
    /// What to look for in its messages.
    pub rules: Vec<Rule>,
    /// Which of its tools may be used.
    pub tools: Tools,
}

/// Which tools of a server may be used.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// Only these, if any are given; `*` stands for anything.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
    /// Whether their definitions may change.
    pub pin: Pin,
}

/// Whether a tool's definition may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// Nothing is pinned.
    Off,
    /// A change is shown until it is approved.
    #[default]
    Observe,
    /// A tool that has changed is hidden and refused until it is approved.
    Enforce,
}

/// Who is behind a server.
#[derive(Clone, Debug)]
pub struct Recipient {
    /// A name to read.
    pub name: String,
    /// Postal or network address.
    pub address: Option<String>,
    /// `internal`, `business_associate` or `external`.
    pub relation: Option<String>,
}

/// Where a tool's messages name patients.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The tool; every tool when absent.
    pub tool: Option<String>,
    /// Whether this tool's data are protected health information.
    pub phi: Option<bool>,
    /// The identifiers' system, for example `mrn`.
    pub system: Option<String>,
    /// JSONPath expressions (RFC 9535) over the arguments.
    pub arguments: Vec<String>,
    /// JSONPath expressions (RFC 9535) over the result.
    pub result: Vec<String>,
    /// `C`, `R`, `U`, `D` or `E`.
    pub activity: Option<String>,
}

/// A static key of an agent.
#[derive(Clone, Debug)]
pub struct Key {
    /// SHA-256 of the key, lower-case hexadecimal.
    pub sha256: String,
    /// The agent that holds it.
    pub agent: String,
    /// The agent's name to read.
    pub agent_name: Option<String>,
    /// The human it acts for.
    pub user: Option<String>,
    /// The human's name to read.
    pub user_name: Option<String>,
    /// Roles.
    pub roles: Vec<String>,
    /// Why it uses the data (HL7 ActReason).
    pub purpose: Option<String>,
}

/// The spool, and what is behind it.
#[derive(Clone, Debug)]
pub struct Journal {
    /// The most disk that the spool may use.
    pub max_bytes: u64,
    /// Length of one segment file.
    pub segment_bytes: u64,
    /// Where the spool is shipped to; without it the spool is the journal.
    pub kafka: Option<Kafka>,
}

/// A journal on Apache Kafka.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// How it is reached, and what its topics are to be like.
    pub settings: KafkaSettings,
    /// The cluster's name in the lake's positions.
    pub cluster: String,
    /// Counted up when the topics were made anew.
    pub epoch: u32,
    /// The group that ingest workers share the partitions in.
    pub group: String,
    /// This worker's fixed name in the group, if it has one.
    pub instance: Option<String>,
}

/// The tables.
#[derive(Clone, Debug)]
pub struct Lake {
    /// `file:` and a folder, or a bucket and a prefix.
    pub url: String,
    /// `[lake.storage]`
    pub storage: Options,
    /// Commit at the latest after this time …
    pub flush_seconds: u64,
    /// … or this much.
    pub flush_bytes: u64,
}

/// Options of a library, by the names that it gives them. What they say is not printed: some are
/// credentials.
#[derive(Clone, Default)]
pub struct Options(pub BTreeMap<String, String>);

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The worker that carries the journal into the lake.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// Where its health and its metrics are.
    pub listen: SocketAddr,
}

/// The SQL service.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where people and tools connect.
    pub listen: SocketAddr,
    /// Who may ask: `NAME=sha256:HEX;ROLES`.
    pub tokens: Vec<String>,
    /// Names in `Host` beside the loopback ones.
    pub allowed_hosts: Vec<String>,
    /// A date means a day in this zone.
    pub time_zone: String,
    /// How long a query may take.
    pub deadline_ms: u64,
    /// Memory that one question may take before it spills to disk.
    pub memory_bytes: u64,
    /// How many rows an answer may have.
    pub max_rows: u64,
}

/// Who cosigns the deployment's log.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    /// Whom to ask, and how many are enough; nobody without it.
    pub policy: Option<Arc<Policy>>,
}

/// What is told to those who watch the process.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// Where traces go, in OTLP over HTTP; nowhere without it.
    pub otlp_endpoint: Option<String>,
}

/// A configuration that cannot be used.
#[derive(Debug)]
pub struct Mistakes {
    /// The file.
    pub file: PathBuf,
    /// All that is wrong.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        let plural = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} has {count} {plural}:", self.file.display())?;
        for mistake in &self.mistakes {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl Config {
    /// Reads and validates a file, with the overrides in `environment`.
    ///
    /// # Errors
    /// All the mistakes that it has.
    pub fn load(
        file: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        let whole = |text: String| Mistakes {
            file: file.to_owned(),
            mistakes: vec![Mistake { line: 0, text }],
        };
        let text = std::fs::read_to_string(file)
            .map_err(|e| whole(format!("cannot be read: {e}; name a file with -c FILE")))?;
        Self::parse(&text, environment)
            .map_err(|mistakes| Mistakes { file: file.to_owned(), mistakes })
    }

    /// Validates a text.
    ///
    /// # Errors
    /// All the mistakes that it has.
    pub fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Mistake>> {
        read::config(text, environment)
    }
}
