//! The two tables that describe: `columns` (what every column of every table and view means) and
//! `completeness` (what this very answer holds).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use custody_lake::columns::describe;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::DataFusionError;
use parking_lot::Mutex;

use crate::completeness::Completeness;
use crate::views;

/// What the columns of these tables mean.
const OWN: &[(&str, &str, &str, &str)] = &[
    ("columns", "table", "text", "name of the table or view"),
    ("columns", "column", "text", "name of the column"),
    ("columns", "type", "text", "its type"),
    ("columns", "meaning", "text", "what it means"),
    ("completeness", "as_of", "text", "when this was judged"),
    ("completeness", "complete", "boolean", "whether nothing is known to be missing up to then"),
    (
        "completeness",
        "complete_through",
        "text",
        "everything recorded up to here is there; NULL when that cannot be said",
    ),
    ("completeness", "held_back_by", "text", "the writer that keeps it from being later"),
    ("completeness", "gaps", "bigint", "events that are missing below later ones"),
    ("completeness", "lost", "bigint", "events that were signed and then lost with a journal"),
    ("completeness", "open_calls", "bigint", "calls without an ending"),
    ("completeness", "unknown_outcomes", "bigint", "calls of which nobody knows how they ended"),
    (
        "completeness",
        "phi_calls",
        "bigint",
        "calls and relayed messages with protected health information",
    ),
    (
        "completeness",
        "phi_calls_without_patient",
        "bigint",
        "ended ones among them without a recognised patient",
    ),
    (
        "completeness",
        "calls_partly_listed",
        "bigint",
        "ended calls of which not every patient is listed",
    ),
    ("completeness", "undecodable", "bigint", "entries that cannot be understood"),
    ("completeness", "conflicts", "bigint", "different records under one identity"),
    ("completeness", "duplicates", "bigint", "records that were sent again and counted once"),
    ("completeness", "late", "bigint", "records that came after later ones of their stream"),
    ("completeness", "degraded_intervals", "bigint", "how often auditing was degraded"),
    ("completeness", "degraded_now", "boolean", "whether it is now"),
    ("completeness", "integrity_failures", "bigint", "bytes that do not match what was signed"),
    ("completeness", "behind", "bigint", "durable entries that are not in the answer"),
    ("completeness", "bodies_behind", "bigint", "the same for the chunks of bodies"),
    (
        "completeness",
        "unheard_since",
        "text",
        "since when the journal has not said how far it goes; NULL while it does",
    ),
    (
        "completeness",
        "cut",
        "text",
        "up to where the answer reads, to be named in another question",
    ),
    ("completeness", "silent", "text", "writers of which nothing was heard"),
    ("completeness", "line", "text", "the same in words, with what cannot be shown"),
];

/// Types of view columns by name, once a view has been planned.
pub(crate) type ViewTypes = Vec<(&'static str, Vec<(String, String)>)>;

static VIEW_TYPES: LazyLock<Mutex<Option<Arc<ViewTypes>>>> = LazyLock::new(|| Mutex::new(None));

/// Remembers the columns of the views, which only planning tells; they are the same for good.
pub(crate) fn remember(types: ViewTypes) {
    *VIEW_TYPES.lock() = Some(Arc::new(types));
}

/// The table `columns`.
pub(crate) fn columns() -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let mut lines: Vec<[String; 4]> = Vec::new();
    let mut known: HashMap<&str, (&str, &str)> = HashMap::new();
    for line in describe() {
        lines.push([line.table, line.column, line.kind, line.meaning].map(str::to_owned));
        known.entry(line.column).or_insert((line.kind, line.meaning));
    }
    let views = VIEW_TYPES.lock().clone();
    for (view, columns) in views.iter().flat_map(|types| types.iter()) {
        for (column, kind) in columns {
            let own = views::MEANINGS.iter().find(|(name, _)| name == column).map(|m| m.1);
            let from_table = known.get(column.as_str());
            let meaning = own.or(from_table.map(|k| k.1)).unwrap_or_default();
            let kind = from_table.filter(|_| own.is_none()).map_or(kind.as_str(), |k| k.0);
            lines.push([view, column.as_str(), kind, meaning].map(str::to_owned));
        }
    }
    lines.extend(OWN.iter().map(|(t, c, k, m)| [*t, *c, *k, *m].map(str::to_owned)));
    let column = |i: usize| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(lines.iter().map(|line| &line[i])))
    };
    memory(RecordBatch::try_from_iter([
        ("table", column(0)),
        ("column", column(1)),
        ("type", column(2)),
        ("meaning", column(3)),
    ])?)
}

/// The table `completeness`.
pub(crate) fn completeness(c: &Completeness) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let text = |t: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![t])) };
    let flag = |b: bool| -> ArrayRef { Arc::new(BooleanArray::from(vec![b])) };
    let int = |n: u64| -> ArrayRef {
        Arc::new(Int64Array::from(vec![i64::try_from(n).unwrap_or(i64::MAX)]))
    };
    memory(RecordBatch::try_from_iter([
        ("as_of", text(Some(&c.as_of))),
        ("complete", flag(c.is_complete())),
        ("complete_through", text(c.complete_through.as_deref())),
        ("held_back_by", text(c.held_back_by.as_deref())),
        ("gaps", int(c.gaps)),
        ("lost", int(c.lost)),
        ("open_calls", int(c.open_calls)),
        ("unknown_outcomes", int(c.unknown_outcomes)),
        ("phi_calls", int(c.phi_calls)),
        ("phi_calls_without_patient", int(c.phi_calls_without_patient)),
        ("calls_partly_listed", int(c.calls_partly_listed)),
        ("undecodable", int(c.undecodable)),
        ("conflicts", int(c.conflicts)),
        ("duplicates", int(c.duplicates)),
        ("late", int(c.late)),
        ("degraded_intervals", int(c.degraded_intervals)),
        ("degraded_now", flag(c.degraded_now)),
        ("integrity_failures", int(c.integrity_failures)),
        ("behind", int(c.behind)),
        ("bodies_behind", int(c.bodies_behind)),
        ("unheard_since", text(c.unheard_since.as_deref())),
        ("cut", text(Some(&c.cut))),
        ("silent", text(Some(&c.silent.join(", ")))),
        ("line", text(Some(&c.line()))),
    ])?)
}

fn memory(batch: RecordBatch) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}
