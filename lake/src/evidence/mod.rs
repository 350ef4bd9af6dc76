//! Evidence packages: what an auditor needs to check a report alone, without a network and without
//! trusting us.
//!
//! A package holds the leaf data of every stream over its period with a neighbour on either side,
//! and the few hashes that lead from there to the stream's signed checkpoint; the deployment log
//! with all checkpoints; the keyring; every record that its leaf says is about protected health
//! information; and the report that follows from them. [`export()`] makes one and checks it before
//! it hands it out; [`check()`] needs nothing but the package. The format is in docs/formats.md.

pub mod check;
pub mod export;
mod report;
pub mod zip;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub use check::{Judged, check};
pub use export::{ExportError, Order, export};

/// The format that this version writes and reads.
pub const FORMAT: &str = "custody-evidence-1";

const MANIFEST: &str = "manifest.json";
const README: &str = "README.txt";
const LOG_HEAD: &str = "log/checkpoint";
const LOG_ENTRIES: &str = "log/entries";
const ROOT: &str = "keyring/root";
const RECORDS: &str = "records.jsonl";
const REPORT: &str = "report.csv";

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

fn population_path(stream: &str) -> String {
    format!("population/{stream}.json")
}

fn leaves_path(stream: &str) -> String {
    format!("population/{stream}.leaves")
}
