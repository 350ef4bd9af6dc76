//! Evidence packages: what an auditor needs to check a report alone, without a network and without
//! trusting us.
//!
//! A package holds the leaf data of every stream over its period with a neighbour on either side,
//! and the few hashes that lead from there to the stream's signed checkpoints; the deployment log
//! with all checkpoints; the keyring; every record that its leaf says is about protected health
//! information, or those that a filter cites; a sample that the auditor has drawn, if they did; and
//! the report that follows from the records. [`export()`] makes one and checks it before it hands it
//! out; [`check()`] needs nothing but the package. Neither holds more in memory than about a hundred
//! bytes for each event of the period, and the log. The format is in docs/formats.md.

pub mod check;
pub mod cite;
pub mod export;
mod leaves;
mod pieces;
mod report;
pub mod sample;
mod spool;
pub mod zip;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

use crate::tiles::WITNESSED_PATH;

pub use check::{Judged, Trust, check};
pub use cite::Filter;
pub use export::{ExportError, Order, export};
pub use sample::Challenge;

/// The format that this version writes and reads.
pub const FORMAT: &str = "custody-evidence-1";

const MANIFEST: &str = "manifest.json";
const README: &str = "README.txt";
const LOG_HEAD: &str = "log/checkpoint";
/// As in `seal`: the newest head that witnesses have cosigned, if there is one.
const LOG_WITNESSED: &str = WITNESSED_PATH;
const LOG_ENTRIES: &str = "log/entries";
const ROOT: &str = "keyring/root";
const RECORDS: &str = "records.jsonl";
const SAMPLE: &str = "sample.jsonl";
const LAWFUL: &str = "lawful.jsonl";
const LAWFUL_PROOFS: &str = "lawful.json";
const REPORT: &str = "report.csv";

/// Which of the flagged records a package holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of them.
    #[default]
    Full,
    /// Those that a filter cites: that it left none out is not proven.
    Flags,
}

/// What `manifest.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    deployment: String,
    /// Microseconds, included.
    from: u64,
    /// Microseconds, excluded.
    to: u64,
    /// Microseconds.
    made_at: u64,
    software: String,
    #[serde(default)]
    population: Scope,
    /// What a record had to fit to be cited, where the population is `flags`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<Filter>,
    /// The sample that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    challenge: Option<Challenge>,
    /// Who asked, for what.
    asked: Map<String, Value>,
    /// SHA-256 of every other file, hexadecimal.
    files: BTreeMap<String, String>,
}

/// What `population/{stream}.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Population {
    stream: String,
    size: u64,
    first: u64,
    end: u64,
    left: Vec<String>,
    right: Vec<String>,
}

/// What `lawful.json` says of each record in `lawful.jsonl`: the way to its stream's checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Proof {
    stream: String,
    seq: u64,
    left: Vec<String>,
    right: Vec<String>,
}

fn population_path(stream: &str) -> String {
    format!("population/{stream}.json")
}

fn leaves_path(stream: &str) -> String {
    format!("population/{stream}.leaves")
}
