//! What the lake held at start, summed up: the ledger's first page.
//!
//! Which records are stored is in the tags of the files; the rest is asked in SQL, once.

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use custody_lake::Snapshot;
use custody_schemas::id::StreamId;
use custody_schemas::json::Json;
use custody_schemas::seal::{FLAG_OUTCOME_UNKNOWN, FLAG_UNRECOGNISED};
use datafusion::prelude::SessionContext;

use crate::catalog::Tables;
use crate::completeness::Ledger;
use crate::describe;
use crate::error::QueryError;
use crate::session::Sessions;
use crate::views::VIEWS;

const STREAMS: &str = "SELECT stream, max(at) AS last_at, bool_or(kind = 'stream.closed') AS closed \
    FROM events WHERE entry = 'event' AND stream IS NOT NULL GROUP BY stream";

/// Ranges of what is stored of each stream, for lakes whose files do not say.
const SPANS: &str = "SELECT stream, min(seq) AS first, max(seq) + 1 AS after FROM \
    (SELECT stream, seq, seq - row_number() OVER (PARTITION BY stream ORDER BY seq) AS island \
     FROM (SELECT DISTINCT stream, seq FROM events \
           WHERE entry = 'event' AND stream IS NOT NULL AND seq IS NOT NULL)) \
    GROUP BY stream, island";

/// What each run says of the one before it.
const PREVIOUS: &str = "SELECT json_text(detail, 'previous') AS previous FROM events \
    WHERE entry = 'event' AND kind = 'stream.opened'";

const OPEN: &str = "SELECT o.call, coalesce(o.phi, false) AS phi FROM \
    (SELECT call, phi FROM events WHERE entry = 'event' AND kind = 'call.requested') o \
    LEFT ANTI JOIN (SELECT call FROM events WHERE entry = 'event' AND kind = 'call.ended') e \
    ON o.call = e.call WHERE o.call IS NOT NULL";

fn sums() -> String {
    let kind = |kind: &str| format!("count(*) FILTER (WHERE entry = 'event' AND kind = '{kind}')");
    let ended = |flag: u16| {
        format!(
            "count(*) FILTER (WHERE entry = 'event' AND kind = 'call.ended' AND (flags & {flag}) <> 0)"
        )
    };
    let columns = [
        ended(FLAG_OUTCOME_UNKNOWN),
        "count(*) FILTER (WHERE entry = 'event' AND kind IN ('call.ended', 'message.relayed') \
            AND phi)"
            .to_owned(),
        format!(
            "count(*) FILTER (WHERE entry = 'event' AND ((kind = 'call.ended' \
             AND (flags & {FLAG_UNRECOGNISED}) <> 0) OR (kind = 'message.relayed' AND phi \
             AND coalesce(subject_status, '') <> 'recognised')))"
        ),
        "count(*) FILTER (WHERE entry = 'undecodable')".to_owned(),
        "count(*) FILTER (WHERE entry = 'conflict')".to_owned(),
        kind("audit.degraded"),
        kind("audit.restored"),
        kind("integrity.failed"),
    ];
    let named = columns.iter().enumerate().map(|(i, sql)| format!("{sql} AS s{i}"));
    format!("SELECT {} FROM events", named.collect::<Vec<_>>().join(", "))
}

/// The ledger of a lake at one version.
///
/// # Errors
/// When the lake's files cannot be read.
pub(crate) async fn ledger(
    sessions: &Sessions,
    tables: Tables,
    events: &Snapshot,
) -> Result<Ledger, QueryError> {
    let session = sessions.open(tables)?;
    let mut ledger = Ledger::default();
    spans(&session, events, &mut ledger).await?;
    for batch in collect(&session, STREAMS).await? {
        let last = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let closed: &BooleanArray = batch.column(2).as_boolean();
        for (row, stream) in streams(&batch) {
            let state = ledger.streams.entry(stream).or_default();
            state.last_at = u64::try_from(last.value(row)).unwrap_or(0);
            state.closed = closed.is_valid(row) && closed.value(row);
        }
    }
    for batch in collect(&session, PREVIOUS).await? {
        let texts: &StringArray = batch.column(0).as_string();
        let previous = texts.iter().flatten().map(serde_json::from_str::<Json>);
        previous.flatten().for_each(|previous| ledger.previous(Some(&previous)));
    }
    for batch in collect(&session, OPEN).await? {
        let (calls, phi): (&StringArray, _) =
            (batch.column(0).as_string(), batch.column(1).as_boolean());
        let open = calls.iter().flatten().enumerate();
        ledger.open.extend(open.map(|(row, call)| (call.to_owned(), phi.value(row))));
    }
    for batch in collect(&session, &sums()).await? {
        let sum = |i: usize| {
            let column: &Int64Array = batch.column(i).as_primitive();
            u64::try_from(column.value(0)).unwrap_or(0)
        };
        let sums = &mut ledger.sums;
        (sums.unknown_outcomes, sums.phi_calls) = (sum(0), sum(1));
        (sums.phi_calls_without_patient, sums.undecodable) = (sum(2), sum(3));
        (sums.conflicts, sums.degraded) = (sum(4), sum(5));
        (sums.restored, sums.integrity_failures) = (sum(6), sum(7));
    }
    remember_views(&session).await?;
    Ok(ledger)
}

async fn spans(
    session: &SessionContext,
    events: &Snapshot,
    ledger: &mut Ledger,
) -> Result<(), QueryError> {
    let tags: Option<Vec<_>> = events.files().iter().map(|file| file.streams()).collect();
    if let Some(tags) = tags {
        for (stream, spans) in tags.into_iter().flatten() {
            let state = ledger.streams.entry(stream).or_default();
            spans.iter().for_each(|(first, after)| state.stored.add(*first, *after));
        }
        return Ok(());
    }
    for batch in collect(session, SPANS).await? {
        let number = |i: usize, row: usize| {
            u64::try_from(batch.column(i).as_primitive::<Int64Type>().value(row)).unwrap_or(0)
        };
        for (row, stream) in streams(&batch) {
            let state = ledger.streams.entry(stream).or_default();
            state.stored.add(number(1, row), number(2, row));
        }
    }
    Ok(())
}

/// The rows whose first column names a stream.
fn streams(batch: &RecordBatch) -> impl Iterator<Item = (usize, StreamId)> {
    let names: &StringArray = batch.column(0).as_string();
    let parsed = names.iter().enumerate();
    parsed.filter_map(|(row, name)| Some((row, name?.parse().ok()?)))
}

async fn collect(session: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
    let batches = session.sql(sql).await?.collect().await?;
    Ok(batches.into_iter().filter(|batch| batch.num_rows() > 0).collect())
}

async fn remember_views(session: &SessionContext) -> Result<(), QueryError> {
    let mut types = Vec::new();
    for view in VIEWS.iter() {
        let table = session.table(view.name).await?;
        let fields = table.schema().fields().iter();
        let columns = fields.map(|f| (f.name().clone(), type_name(f.data_type()))).collect();
        types.push((view.name, columns));
    }
    describe::remember(types);
    Ok(())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other types have one name")]
fn type_name(kind: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Timestamp(..) => "timestamp (µs, UTC)".to_owned(),
        DataType::List(of) => format!("list of {}", type_name(of.data_type())),
        other => other.to_string().to_lowercase(),
    }
}
