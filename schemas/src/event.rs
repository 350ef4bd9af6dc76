//! An event: one immutable fact, without bodies.
//!
//! The fields of every struct here are declared in alphabetical order, because that is the order
//! in which a record holds them; `record.rs` has the test. Absent facts are absent keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{BodyId, CallId, Hash, Micros, Salt, StreamId, Uint};
use crate::json::Json;
use crate::kind::Kind;
use crate::words::{
    Activity, Assurance, Direction, Effect, PurposeSource, Relation, Status, SubjectStatus,
};

/// The version of the record format that this build writes.
pub const RECORD_VERSION: u32 = 1;

/// The tenant where none is configured.
pub const DEFAULT_TENANT: &str = "default";

/// A recorded event as it stands in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was recorded; never decreasing in a stream.
    pub at: Micros,
    /// References to the bodies that the record commits to.
    #[serde(default, skip_serializing_if = "Bodies::is_empty")]
    pub bodies: Bodies,
    /// The call or query this belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    /// The number of `kind`, repeated so that a reader that does not know the kind can still
    /// compute the leaf.
    pub code: u16,
    /// What is known of the data that passed.
    #[serde(default, skip_serializing_if = "Data::is_empty")]
    pub data: Data,
    /// What policy decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Arc<Decision>>,
    /// Facts that only this kind has; see `docs/formats.md`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "crate::json::serialize_sorted"
    )]
    pub detail: BTreeMap<String, Json>,
    /// The leaf's flags, see [`flags`](crate::seal::flags).
    pub flags: u16,
    /// What happened.
    pub kind: Kind,
    /// How the call ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The earlier call that this one continues (multi-round-trip requests, tasks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_call: Option<PrevCall>,
    /// 128 random bits that keep the record's hash unguessable.
    pub salt: Salt,
    /// Gapless from 0: the leaf's index in the stream.
    pub seq: Uint,
    /// The run that wrote it.
    pub stream: StreamId,
    /// Whose event it is, where one deployment serves several.
    pub tenant: Arc<str>,
    /// The fields that were longer than allowed and have been cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<String>,
    /// The version of the record format.
    pub v: u32,
    /// What was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<Arc<What>>,
    /// Who called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Arc<Who>>,
}

/// An event before a stream has given it its place: what a proxy, an ingest worker or a query
/// service hands to the journal.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What happened.
    pub kind: Kind,
    /// Whose event it is.
    pub tenant: Arc<str>,
    /// The call or query this belongs to.
    pub call: Option<CallId>,
    /// The earlier call that this one continues.
    pub prev_call: Option<PrevCall>,
    /// Who called.
    pub who: Option<Arc<Who>>,
    /// What was called.
    pub what: Option<Arc<What>>,
    /// What policy decided.
    pub decision: Option<Arc<Decision>>,
    /// How the call ended.
    pub outcome: Option<Outcome>,
    /// References to bodies.
    pub bodies: Bodies,
    /// What is known of the data that passed.
    pub data: Data,
    /// Facts that only this kind has.
    pub detail: BTreeMap<String, Json>,
}

impl Draft {
    /// A draft of `kind` that says nothing else yet.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            tenant: Arc::from(DEFAULT_TENANT),
            call: None,
            prev_call: None,
            who: None,
            what: None,
            decision: None,
            outcome: None,
            bodies: Bodies::default(),
            data: Data::default(),
            detail: BTreeMap::new(),
        }
    }

    /// The same draft with one more fact of its kind.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.detail.insert(name.to_owned(), value.into());
        self
    }
}

/// The link to an earlier call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrevCall {
    /// The call, when it was recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    /// SHA-256 of the `requestState` that links them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Hash>,
}

/// Who: the human and the agent, from verified credentials only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Who {
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// How sure we are.
    pub assurance: Assurance,
    /// What the client says of itself. Never identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_claimed: Option<ClientClaimed>,
    /// Who acts for whom, nearest actor first (RFC 8693 `act`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub delegation: Vec<Principal>,
    /// Why the data is used (HL7 ActReason, for example `TREAT`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Where the purpose comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose_source: Option<PurposeSource>,
    /// Roles of the user or agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Where the request came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The credential's own id (`jti`, key id), never the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// The human.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Principal>,
}

/// A person or service as an issuer knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Principal {
    /// Who vouches for the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// A name to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The identifier that the issuer gives.
    pub subject: String,
}

/// The software that acts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// The identifier in the credential.
    pub id: String,
    /// One running instance of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// A name to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What a client says of itself in `initialize` or `_meta`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientClaimed {
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The network end that the request came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Address of the peer.
    pub ip: String,
    /// Port of the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The `User-Agent` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

/// What was called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct What {
    /// Create, read, update, delete or execute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// The JSON-RPC method, or the kind of query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The prompt's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The MCP revision in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// To whom the data goes or from whom it comes, by configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Recipient>,
    /// The resource's URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The raw JSON token of the request's `id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_id: Option<String>,
    /// The server's name in the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// SHA-256 of the session id; the id itself is a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Hash>,
    /// The tool's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Hash of the tool definition in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_definition: Option<Hash>,
    /// W3C `traceparent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// `streamable-http`, `stdio`, `sse`, `http`, `pgwire`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
}

/// Who is behind a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipient {
    /// Postal or network address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// A name to read.
    pub name: String,
    /// In what relation they stand to us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<Relation>,
}

/// What policy decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// The approval that was spent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// Allowed or denied.
    pub effect: Effect,
    /// The policies that decided.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The version of the policy set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<String>,
    /// Why, in a word, when denied (for example `unauthenticated`, `unknown_server`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a call ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// The raw JSON token of the error's `code`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// From the opening to the ending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<Uint>,
    /// The upstream's HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// `resultType` of 2026-07-28, for example `input_required`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_type: Option<String>,
    /// The ending in one word.
    pub status: Status,
}

/// References from a record to its bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bodies {
    /// How many edits the proxy made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit_count: Option<Uint>,
    /// What the proxy changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edits: Option<BodyRef>,
    /// The bytes of the request, or of a relayed message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<BodyRef>,
    /// The bytes of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<BodyRef>,
}

impl Bodies {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edit_count.is_none()
            && self.edits.is_none()
            && self.request.is_none()
            && self.response.is_none()
    }
}

/// A commitment to a body: SHA-256(nonce ‖ bytes), the nonce being stored with the body only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyRef {
    /// The body's random name.
    pub body: BodyId,
    /// Length of the plain bytes.
    pub bytes: Uint,
    /// Number of chunks it is stored in.
    pub chunks: Uint,
    /// SHA-256(nonce ‖ plain bytes).
    pub commitment: Hash,
}

/// What is known of the data that passed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Data {
    /// The detectors that looked, with their versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<String>,
    /// Whether this is a disclosure, on what basis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disclosure: Option<Disclosure>,
    /// Which of the eighteen HIPAA identifiers were seen (45 CFR 164.514(b)(2)(i)).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identifiers: Vec<String>,
    /// `phi`, `pii`, `credential` …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// `part2`, `psychotherapy` …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sensitivity: Vec<String>,
    /// How many data subjects the call has, those in `subjects.listed` included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject_count: Option<Uint>,
    /// Whether subjects were recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject_status: Option<SubjectStatus>,
    /// The data subjects, at most 64 (256 in `subjects.listed`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<Subject>,
}

impl Data {
    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the data is labelled as protected health information.
    #[must_use]
    pub fn is_phi(&self) -> bool {
        self.labels.iter().any(|label| label == "phi")
    }
}

/// Whether data left the covered entity, and on what basis (45 CFR 164.528).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disclosure {
    /// The legal basis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
    /// The consent on file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consent: Option<String>,
    /// Whether it is a disclosure.
    pub is: bool,
}

/// A person whose data passed, in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// Other identifiers of the same person, `system|value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Kinds of data, for example FHIR resource types.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Whether the agent sent or received it.
    pub direction: Direction,
    /// The identifier.
    pub id: String,
    /// How many records of this person passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<Uint>,
    /// The identifier's system, for example `fhir:Patient` or a FHIR identifier system.
    pub system: String,
}
