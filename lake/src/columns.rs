//! The columns of the lake's tables, each with its type, its layout and its meaning, exactly once.
//!
//! Arrow schemas, the Delta tables, Parquet settings, the `columns` table in SQL and the docs all
//! come from the two lists here. Columns are added at the end of a group, never renamed and never
//! given another type; a reader finds NULL where an older file does not have one.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// The column that both tables are partitioned by. It stands in the log, not in the files.
pub const EVENT_DATE: &str = "event_date";

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A day.
    Date,
    /// UTF-8.
    Text,
    /// A signed 64-bit number.
    Int,
    /// Microseconds, UTC.
    Moment,
    /// True or false.
    Flag,
    /// Bytes as they are.
    Bytes,
    /// Several texts.
    Texts,
    /// Data subjects: `{system, id, direction, categories, records, aliases}`.
    Subjects,
}

/// How a column lies in a Parquet file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Few distinct values: a dictionary.
    Words,
    /// Few or many distinct values that people look for: a dictionary and a Bloom filter.
    Sought,
    /// Nearly every value occurs once, and people look for it: a Bloom filter, no dictionary.
    Unique,
    /// Nearly every value occurs once: no dictionary.
    Plain,
    /// Numbers that grow from row to row: the differences.
    Rising,
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name in SQL.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// How it lies in a file.
    pub layout: Layout,
    /// Whether files carry its smallest and largest value, so that queries can skip them.
    pub stats: bool,
    /// What it means.
    pub meaning: &'static str,
}

use Layout::{Plain, Rising, Sought, Unique, Words};
use Type::{Bytes, Date, Flag, Int, Moment, Subjects, Text, Texts};

const fn col(name: &'static str, kind: Type, layout: Layout, meaning: &'static str) -> Column {
    Column { name, kind, layout, stats: false, meaning }
}

/// A column that queries filter on.
const fn key(name: &'static str, kind: Type, layout: Layout, meaning: &'static str) -> Column {
    Column { name, kind, layout, stats: true, meaning }
}

/// The columns of `events`.
pub const EVENTS: &[Column] = &[
    col(EVENT_DATE, Date, Words, "UTC day of `at`, at most 30 days before and 1 day after arrival"),
    key(
        "entry",
        Text,
        Words,
        "`event`, `conflict` (a second record under a known identity), `checkpoint`, `undecodable`",
    ),
    key("stream", Text, Words, "the run that wrote it, `{writer}/{run}`"),
    key("seq", Int, Rising, "index in the stream, gapless from 0"),
    key("at", Moment, Rising, "when it was recorded; never decreasing in a stream"),
    key("kind", Text, Words, "what happened, for example `call.requested`"),
    col("flags", Int, Words, "the flags in the leaf, as bits"),
    key("tenant", Text, Words, "whose event it is"),
    key("call", Text, Unique, "the call or query it belongs to (UUIDv7)"),
    col("prev_call", Text, Plain, "the earlier call that this one continues"),
    col("user_issuer", Text, Words, "who vouches for the user"),
    key("user_subject", Text, Sought, "the user, as the issuer identifies them"),
    col("user_name", Text, Words, "the user's name"),
    key("agent_id", Text, Sought, "the agent, from the verified credential"),
    col("agent_name", Text, Words, "the agent's name"),
    col("agent_instance", Text, Words, "one running instance of the agent"),
    col("agent_version", Text, Words, "the agent's version"),
    col("client_name", Text, Words, "what the client calls itself; never identity"),
    col("client_version", Text, Words, "the version the client claims"),
    col("delegation", Texts, Words, "who acts for whom, nearest actor first, `issuer|subject`"),
    col(
        "assurance",
        Text,
        Words,
        "how the identity was established: `token`, `mtls`, `key`, `none`",
    ),
    col("token_id", Text, Words, "the id of the credential, never the credential"),
    col("roles", Texts, Words, "roles of the user or agent"),
    col("purpose", Text, Words, "purpose of use (HL7 ActReason)"),
    col(
        "purpose_source",
        Text,
        Words,
        "where the purpose comes from: `token`, `policy`, `claimed`",
    ),
    col("source_ip", Text, Words, "address that the request came from"),
    col("user_agent", Text, Words, "its User-Agent header"),
    key("method", Text, Words, "the JSON-RPC method or the kind of query"),
    key("server", Text, Words, "the MCP server's name in the configuration"),
    col("recipient", Text, Words, "who is behind the server"),
    col("recipient_relation", Text, Words, "`internal`, `business_associate` or `external`"),
    key("tool", Text, Words, "the tool's name"),
    col("tool_definition", Text, Words, "hash of the tool definition in force"),
    col("resource", Text, Words, "the resource's URI"),
    col("prompt", Text, Words, "the prompt's name"),
    col("activity", Text, Words, "`C`reate, `R`ead, `U`pdate, `D`elete, `E`xecute"),
    col("protocol", Text, Words, "the MCP revision in force"),
    col("transport", Text, Words, "for example `streamable-http`"),
    col("rpc_id", Text, Plain, "the raw JSON token of the request's `id`"),
    col("session", Text, Words, "hash of the session id"),
    col("trace", Text, Plain, "W3C traceparent"),
    key("effect", Text, Words, "`allow` or `deny`"),
    col("reason", Text, Words, "why it was denied"),
    col("policies", Texts, Words, "the policies that decided"),
    col("policy_version", Text, Words, "the version of the policy set"),
    col("approval", Text, Words, "the approval that was spent"),
    key("status", Text, Words, "how the call ended, for example `ok`, `tool_error`, `unknown`"),
    col("http_status", Int, Words, "the upstream's HTTP status"),
    col("code", Text, Words, "the raw JSON token of the error's code"),
    col("duration_us", Int, Plain, "microseconds from the opening to the ending"),
    col("result_type", Text, Words, "`resultType` of the answer"),
    col("request_body", Text, Plain, "id of the request's body"),
    col("request_bytes", Int, Plain, "length of the request"),
    col("response_body", Text, Plain, "id of the response's body"),
    col("response_bytes", Int, Plain, "length of the response"),
    col("edits_body", Text, Plain, "id of the body that says what the proxy changed"),
    col("edit_count", Int, Words, "how many edits the proxy made"),
    key("phi", Flag, Plain, "whether the leaf says protected health information"),
    col("labels", Texts, Words, "`phi`, `pii`, `credential` …"),
    col("identifiers", Texts, Words, "which of the 18 HIPAA identifiers were seen"),
    col("sensitivity", Texts, Words, "`part2`, `psychotherapy` …"),
    col("disclosure", Flag, Plain, "whether data left the covered entity"),
    col("detector", Text, Words, "the detectors that looked"),
    key("subject_status", Text, Words, "`recognised`, `unrecognised`, `not_examined`, `ambiguous`"),
    col(
        "subject_count",
        Int,
        Words,
        "data subjects of the call, those in `subjects.listed` included",
    ),
    col("subjects", Subjects, Sought, "the data subjects in this event"),
    col("detail", Text, Plain, "facts that only this kind has, as JSON"),
    col("truncated", Texts, Words, "fields that were cut because they were too long"),
    col("record", Text, Plain, "the canonical bytes that the leaf commits to"),
    col("raw", Bytes, Plain, "whole bytes of a checkpoint message or of what is no text"),
    col("problem", Text, Words, "what could not be understood"),
    col("journaled_at", Moment, Rising, "when the journal took it"),
    col(
        "stored_at",
        Moment,
        Words,
        "when ingest put it into a file; NULL while only in the journal",
    ),
    key("journal_partition", Text, Words, "the journal partition it was read from"),
    key("journal_offset", Int, Rising, "its position there"),
];

/// The columns of `bodies`.
pub const BODIES: &[Column] = &[
    col(EVENT_DATE, Date, Words, "UTC day of `journaled_at`"),
    key("body", Text, Unique, "the body's random id"),
    col("index", Int, Words, "place of this chunk, from 0"),
    col("count", Int, Words, "number of the body's chunks"),
    col("length", Int, Plain, "length of the whole plain body"),
    col("encoding", Text, Words, "`identity` or `zstd`"),
    col("cipher", Text, Words, "`none` or `aes-256-gcm`"),
    col("key", Text, Words, "id of the wrapped data key"),
    col("nonce", Bytes, Plain, "what the commitment begins with"),
    col("bytes", Bytes, Plain, "the chunk"),
    col("problem", Text, Words, "why the chunk's header could not be read"),
    col("raw_header", Bytes, Plain, "the header that could not be read"),
    key("journaled_at", Moment, Rising, "when the journal took it"),
    col("stored_at", Moment, Words, "when ingest put it into a file"),
    key("journal_partition", Text, Words, "the journal partition it was read from"),
    key("journal_offset", Int, Rising, "its position there"),
];

/// One line of the `columns` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Name of the table.
    pub table: &'static str,
    /// Name of the column.
    pub column: &'static str,
    /// Its type, as SQL users know it.
    pub kind: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// Every column of the lake's tables, in order.
pub fn describe() -> impl Iterator<Item = Description> {
    let of = |table: &'static str, columns: &'static [Column]| {
        columns.iter().map(move |c| Description {
            table,
            column: c.name,
            kind: c.kind.name(),
            meaning: c.meaning,
        })
    };
    of("events", EVENTS).chain(of("bodies", BODIES))
}

/// The Arrow schema of `events`, `event_date` included.
#[must_use]
pub fn events_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| schema(EVENTS));
    Arc::clone(&SCHEMA)
}

/// The Arrow schema of `bodies`, `event_date` included.
#[must_use]
pub fn bodies_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| schema(BODIES));
    Arc::clone(&SCHEMA)
}

fn schema(columns: &[Column]) -> SchemaRef {
    let fields: Fields = columns.iter().map(|c| Field::new(c.name, c.kind.arrow(), true)).collect();
    Arc::new(Schema::new(fields))
}

impl Type {
    /// The type's name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Date => "date",
            Self::Text => "text",
            Self::Int => "bigint",
            Self::Moment => "timestamp (µs, UTC)",
            Self::Flag => "boolean",
            Self::Bytes => "bytes",
            Self::Texts => "list of text",
            Self::Subjects => {
                "list of {system, id, direction, categories: list, records: bigint, aliases: list}"
            }
        }
    }

    /// The Arrow type.
    #[must_use]
    pub fn arrow(self) -> DataType {
        match self {
            Self::Date => DataType::Date32,
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Moment => DataType::Timestamp(TimeUnit::Microsecond, Some(utc())),
            Self::Flag => DataType::Boolean,
            Self::Bytes => DataType::Binary,
            Self::Texts => DataType::List(element(DataType::Utf8)),
            Self::Subjects => DataType::List(element(DataType::Struct(subject_fields()))),
        }
    }
}

/// The time zone of every moment.
pub(crate) fn utc() -> Arc<str> {
    static UTC: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("UTC"));
    Arc::clone(&UTC)
}

/// The field of a list's elements, named as Parquet and Delta name it.
pub(crate) fn element(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", kind, true))
}

/// The fields of one data subject.
pub(crate) fn subject_fields() -> Fields {
    static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
        Fields::from(vec![
            Field::new("system", DataType::Utf8, true),
            Field::new("id", DataType::Utf8, true),
            Field::new("direction", DataType::Utf8, true),
            Field::new("categories", Type::Texts.arrow(), true),
            Field::new("records", DataType::Int64, true),
            Field::new("aliases", Type::Texts.arrow(), true),
        ])
    });
    FIELDS.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_described_once_and_in_words() {
        let mut seen = std::collections::HashSet::new();
        for line in describe() {
            assert!(seen.insert((line.table, line.column)), "{} twice", line.column);
            assert!(line.meaning.len() > 8, "{} has no meaning", line.column);
        }
        assert_eq!(seen.len(), EVENTS.len() + BODIES.len());
        assert_eq!(events_schema().fields().len(), EVENTS.len());
    }
}
