//! The small vocabularies of a record.
//!
//! Each has a variant `Other`, so that a word written by a later version is read, kept and shown
//! as it is instead of being an error.

use serde::{Deserialize, Serialize};

/// How a call ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It succeeded.
    Ok,
    /// The tool said that it failed (`isError`).
    ToolError,
    /// A JSON-RPC error.
    RpcError,
    /// The upstream answered with an HTTP error or with something that is not MCP.
    HttpError,
    /// The upstream took too long.
    Timeout,
    /// No connection to the upstream.
    Unreachable,
    /// The client cancelled.
    Cancelled,
    /// The client left.
    Abandoned,
    /// The answer exceeds the size limit.
    TooLarge,
    /// It was recorded but never sent to the upstream.
    NotForwarded,
    /// Its ending could not be recorded in time.
    AuditFailed,
    /// Nobody knows: the process ended between opening and ending.
    #[default]
    Unknown,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl Status {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Ok => "ok",
            Self::ToolError => "tool_error",
            Self::RpcError => "rpc_error",
            Self::HttpError => "http_error",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Cancelled => "cancelled",
            Self::Abandoned => "abandoned",
            Self::TooLarge => "too_large",
            Self::NotForwarded => "not_forwarded",
            Self::AuditFailed => "audit_failed",
            Self::Unknown => "unknown",
            Self::Other(word) => word,
        }
    }
}

/// What policy decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The call may go on.
    Allow,
    /// The call is refused.
    #[default]
    Deny,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl Effect {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Other(word) => word,
        }
    }
}

/// How an identity was established.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assurance {
    /// A verified access token.
    Token,
    /// A verified client certificate.
    Mtls,
    /// A static key.
    Key,
    /// Not at all.
    #[default]
    None,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl Assurance {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Token => "token",
            Self::Mtls => "mtls",
            Self::Key => "key",
            Self::None => "none",
            Self::Other(word) => word,
        }
    }
}

/// Where a purpose of use comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurposeSource {
    /// The credential says it.
    Token,
    /// Policy or configuration says it.
    Policy,
    /// The client says it.
    Claimed,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl PurposeSource {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Token => "token",
            Self::Policy => "policy",
            Self::Claimed => "claimed",
            Self::Other(word) => word,
        }
    }
}

/// In what relation the other side of a server stands to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// The same organisation.
    Internal,
    /// Under a business associate agreement.
    BusinessAssociate,
    /// Anybody else.
    External,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl Relation {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Internal => "internal",
            Self::BusinessAssociate => "business_associate",
            Self::External => "external",
            Self::Other(word) => word,
        }
    }
}

/// What was done, in one letter (FHIR AuditEvent.action).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Create.
    C,
    /// Read.
    R,
    /// Update.
    U,
    /// Delete.
    D,
    /// Execute.
    E,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl Activity {
    /// The letter in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::C => "C",
            Self::R => "R",
            Self::U => "U",
            Self::D => "D",
            Self::E => "E",
            Self::Other(word) => word,
        }
    }
}

/// Which way data went, seen from the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The agent sent it.
    Sent,
    /// The agent received it.
    #[default]
    Received,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl Direction {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
            Self::Other(word) => word,
        }
    }
}

/// Whether the data subjects of a call are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectStatus {
    /// At least one was recognised.
    Recognised,
    /// The content was examined and none was recognised.
    Unrecognised,
    /// The content was not, or not wholly, examined.
    NotExamined,
    /// The content can be read in more than one way (duplicate keys).
    Ambiguous,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

impl SubjectStatus {
    /// The word in records and SQL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Recognised => "recognised",
            Self::Unrecognised => "unrecognised",
            Self::NotExamined => "not_examined",
            Self::Ambiguous => "ambiguous",
            Self::Other(word) => word,
        }
    }
}
