//! What rows sum up to: the ledger's first page at start, and the whole ledger at a cut.
//!
//! Which records are stored is in the tags of the files, as far as they say; the rest is asked in
//! SQL, once, of the few columns that it takes.

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use custody_schemas::id::StreamId;
use custody_schemas::json::Json;
use custody_schemas::seal::{FLAG_OUTCOME_UNKNOWN, FLAG_SUBJECTS_PARTIAL, FLAG_UNRECOGNISED};
use datafusion::prelude::SessionContext;

use crate::catalog::Tables;
use crate::describe;
use crate::error::QueryError;
use crate::ledger::{Ledger, Sums};
use crate::session::Sessions;
use crate::slice::Slice;
use crate::sources::View;
use crate::views::VIEWS;

/// Where the rows lie of which no tag tells.
const UNTOLD: &str = "untold";

/// Ranges of what is stored of each stream, where tags do not say.
const SPANS: &str = "SELECT stream, min(seq) AS first, max(seq) + 1 AS after FROM \
    (SELECT stream, seq, seq - row_number() OVER (PARTITION BY stream ORDER BY seq) AS island \
     FROM (SELECT DISTINCT stream, seq FROM untold \
           WHERE entry = 'event' AND stream IS NOT NULL AND seq IS NOT NULL)) \
    GROUP BY stream, island";

/// What each run says of the one before it.
const PREVIOUS: &str = "SELECT json_text(detail, 'previous') AS previous FROM events \
    WHERE entry = 'event' AND kind = 'stream.opened'";

/// Calls without an ending. Grouped, because that can be spilled.
const OPEN: &str = "SELECT call, coalesce(bool_or(phi), false) AS phi FROM events \
    WHERE entry = 'event' AND kind IN ('call.requested', 'call.ended') AND call IS NOT NULL \
    GROUP BY call HAVING NOT bool_or(kind = 'call.ended')";

/// How many subjects are listed apart from each ending, and how many it says there are.
fn listed() -> String {
    let count = "CAST(cardinality(subjects) AS BIGINT)";
    format!(
        "SELECT coalesce(e.call, l.call) AS call, e.n AS said, coalesce(l.n, 0) AS listed FROM \
         (SELECT call, subject_count - coalesce({count}, 0) AS n FROM events \
          WHERE entry = 'event' AND kind = 'call.ended' \
            AND (flags & {FLAG_SUBJECTS_PARTIAL}) <> 0) e \
         FULL JOIN (SELECT call, sum({count}) AS n FROM events \
          WHERE entry = 'event' AND kind = 'subjects.listed' AND call IS NOT NULL \
          GROUP BY call) l ON e.call = l.call"
    )
}

/// Per stream: its last moment, whether it is closed, and sums in the order of [`add`].
fn streams_and_sums() -> String {
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
    format!(
        "SELECT stream, max(at) FILTER (WHERE entry = 'event') AS last_at, \
         bool_or(entry = 'event' AND kind = 'stream.closed') AS closed, {} \
         FROM events GROUP BY stream",
        named.collect::<Vec<_>>().join(", ")
    )
}

fn add(sums: &mut Sums, sum: impl Fn(usize) -> u64) {
    sums.unknown_outcomes += sum(0);
    sums.phi_calls += sum(1);
    sums.phi_calls_without_patient += sum(2);
    sums.undecodable += sum(3);
    sums.conflicts += sum(4);
    sums.degraded += sum(5);
    sums.restored += sum(6);
    sums.integrity_failures += sum(7);
}

/// The ledger of the events in a slice of the lake and the rows of the tail behind it.
///
/// # Errors
/// When the lake's files cannot be read.
pub(crate) async fn ledger(
    sessions: &Sessions,
    events: Slice<'_>,
    tail: &[RecordBatch],
) -> Result<Ledger, QueryError> {
    let mut tables = Tables::from([("events", events.table(tail)?)]);
    let (told, untold) = events.records(tail)?;
    let has_untold = untold.is_some();
    tables.extend(untold.map(|untold| (UNTOLD, untold)));
    let session = sessions.open(tables)?;
    let mut ledger = Ledger::default();
    for (stream, spans) in told {
        let state = ledger.streams.entry(stream).or_default();
        spans.iter().for_each(|(first, after)| state.stored.add(*first, *after));
    }
    if has_untold {
        spans(&session, &mut ledger).await?;
    }
    streams(&session, &mut ledger).await?;
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
    for batch in collect(&session, &listed()).await? {
        let calls: &StringArray = batch.column(0).as_string();
        let said: &Int64Array = batch.column(1).as_primitive();
        for (row, call) in calls.iter().enumerate().filter_map(|(row, call)| Some((row, call?))) {
            let said = said.is_valid(row).then(|| number(&batch, 1, row));
            ledger.listed(call, said, number(&batch, 2, row));
        }
    }
    Ok(ledger)
}

async fn streams(session: &SessionContext, ledger: &mut Ledger) -> Result<(), QueryError> {
    for batch in collect(session, &streams_and_sums()).await? {
        let last = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let closed: &BooleanArray = batch.column(2).as_boolean();
        for row in 0..batch.num_rows() {
            add(&mut ledger.sums, |i| number(&batch, 3 + i, row));
        }
        for (row, stream) in named(&batch).filter(|(row, _)| last.is_valid(*row)) {
            let state = ledger.streams.entry(stream).or_default();
            state.last_at = u64::try_from(last.value(row)).unwrap_or(0);
            state.closed = closed.is_valid(row) && closed.value(row);
        }
    }
    Ok(())
}

async fn spans(session: &SessionContext, ledger: &mut Ledger) -> Result<(), QueryError> {
    for batch in collect(session, SPANS).await? {
        for (row, stream) in named(&batch) {
            let state = ledger.streams.entry(stream).or_default();
            state.stored.add(number(&batch, 1, row), number(&batch, 2, row));
        }
    }
    Ok(())
}

fn number(batch: &RecordBatch, column: usize, row: usize) -> u64 {
    u64::try_from(batch.column(column).as_primitive::<Int64Type>().value(row)).unwrap_or(0)
}

/// The rows whose first column names a stream.
fn named(batch: &RecordBatch) -> impl Iterator<Item = (usize, StreamId)> {
    let names: &StringArray = batch.column(0).as_string();
    let parsed = names.iter().enumerate();
    parsed.filter_map(|(row, name)| Some((row, name?.parse().ok()?)))
}

async fn collect(session: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
    let batches = session.sql(sql).await?.collect().await?;
    Ok(batches.into_iter().filter(|batch| batch.num_rows() > 0).collect())
}

/// Plans each view once, so that the table `columns` can tell their types.
///
/// # Errors
/// When one cannot be planned.
pub(crate) async fn remember_views(sessions: &Sessions, view: &View) -> Result<(), QueryError> {
    let mut tables = Tables::new();
    for (name, snapshot) in [("events", &view.events), ("bodies", &view.bodies)] {
        let schema = snapshot.schema();
        tables.insert(name, Slice::of(name, snapshot, &schema, None).table(&[])?);
    }
    let session = sessions.open(tables)?;
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
