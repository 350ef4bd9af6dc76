//! Changes of a lake's tables that keep their form: single columns, rows, row groups, and the
//! files of the table's own log.

use std::path::{Path, PathBuf};

use arrow::array::{Array as _, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat, concat_batches, take};
use custody_lake::verify::{Request, Verdict};
use custody_schemas::event::Draft;
use custody_schemas::id::StreamId;
use custody_schemas::kind::Kind;
use custody_tests::sealed::{Sealed, call};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;

const STREAM: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";
/// When and where an event arrived is nobody's to sign: docs/evidence.md says so.
const UNSIGNED: [&str; 4] = ["journaled_at", "stored_at", "journal_partition", "journal_offset"];

/// A lake of three data files, with events as unlike each other as can be.
async fn lake(folder: &Path) {
    let mut lake = Sealed::new(folder, "audit.example", &["edge-1"]).await.unwrap();
    let stream: StreamId = STREAM.parse().unwrap();
    for file in 0..3 {
        let alive = Draft::new(Kind::StreamAlive).with("n", file);
        let events = (0..6).map(move |n| (call(n, n % 2 == 0), (10 * file + n) * 1_000));
        let all = events.chain([(alive, (10 * file + 7) * 1_000)]);
        lake.record(&stream, all, &[]).await.unwrap();
    }
}

async fn verify(folder: &Path) -> Result<Verdict, String> {
    let url = folder.to_str().unwrap();
    let verdict = custody_lake::verify::lake(url, &Request::default(), &|_, _| {}).await;
    verdict.map_err(|error| error.to_string())
}

/// Where a changed lake is said to be wrong; nothing when nobody notices.
fn noticed(verdict: &Result<Verdict, String>) -> Option<String> {
    match verdict {
        Err(error) => Some(error.clone()),
        Ok(verdict) if !verdict.is_valid() => Some(verdict.findings[0].place.clone()),
        Ok(verdict) if !verdict.is_complete() => Some(verdict.gaps[0].0.clone()),
        Ok(_) => None,
    }
}

fn files_in(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_in(&path, end));
        } else if path.extension().is_some_and(|found| found == end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> RecordBatch {
    let file = std::fs::File::open(path).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = builder.schema().clone();
    let batches: Vec<_> = builder.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn write(path: &Path, rows: &RecordBatch) {
    // A row group for every three rows.
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(3)).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

fn picked(rows: &RecordBatch, order: &[u32]) -> RecordBatch {
    let order = UInt32Array::from(order.to_vec());
    let columns = rows.columns().iter().map(|column| take(column, &order, None).unwrap());
    RecordBatch::try_new(rows.schema(), columns.collect()).unwrap()
}

/// The rows with another value in one place of one column: that of another row, or none.
fn other_value(rows: &RecordBatch, column: usize) -> Vec<(String, RecordBatch)> {
    let name = rows.schema().field(column).name().clone();
    let values = rows.column(column);
    let last = values.len() - 1;
    let mut changes = Vec::new();
    let mut with = |what: &str, values| {
        let mut columns = rows.columns().to_vec();
        columns[column] = values;
        let changed = RecordBatch::try_new(rows.schema(), columns).unwrap();
        changes.push((format!("{name} {what}"), changed));
    };
    if values.slice(0, 1) != values.slice(last, 1) {
        let mut order: Vec<u32> = (0..=u32::try_from(last).unwrap()).collect();
        order.swap(0, last);
        with("swapped", take(values, &UInt32Array::from(order), None).unwrap());
    }
    if values.is_valid(0) {
        let none = new_null_array(values.data_type(), 1);
        with("removed", concat(&[&*none, &*values.slice(1, last)]).unwrap());
    }
    changes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_a_row_or_a_row_group_that_was_changed_beside_its_record_is_named() {
    let folder = tempfile::tempdir().unwrap();
    lake(folder.path()).await;
    assert_eq!(noticed(&verify(folder.path()).await), None);
    let path = files_in(&folder.path().join("events"), "parquet").remove(1);
    let (bytes, rows) = (std::fs::read(&path).unwrap(), read(&path));
    let mut changes: Vec<_> =
        (0..rows.num_columns()).flat_map(|column| other_value(&rows, column)).collect();
    let columns = changes.len();
    for (what, order) in [
        ("the first row deleted", &[1, 2, 3, 4, 5, 6][..]),
        ("the last row deleted", &[0, 1, 2, 3, 4, 5]),
        ("a row twice", &[0, 1, 2, 3, 4, 5, 6, 6]),
        ("a row in the place of another", &[0, 1, 2, 3, 4, 5, 5]),
        ("a row group deleted", &[0, 1, 2, 6]),
        ("a row group twice", &[0, 1, 2, 3, 4, 5, 3, 4, 5, 6]),
        ("none left", &[]),
    ] {
        changes.push((what.to_owned(), picked(&rows, order)));
    }
    let name = path.file_name().unwrap().to_str().unwrap();
    let (mut unnoticed, mut elsewhere) = (Vec::new(), Vec::new());
    for (what, changed) in &changes {
        write(&path, changed);
        match noticed(&verify(folder.path()).await) {
            None if UNSIGNED.iter().any(|column| what.starts_with(column)) => {}
            None => unnoticed.push(what),
            Some(place) if !place.contains(name) => elsewhere.push(format!("{what}: {place}")),
            Some(_) => {}
        }
    }
    println!("{} changes of columns, {} of rows", columns, changes.len() - columns);
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    assert!(columns > 30, "{columns} columns are no storm");
    // Rows in another order say the same.
    write(&path, &picked(&rows, &[6, 5, 4, 3, 2, 1, 0]));
    assert_eq!(noticed(&verify(folder.path()).await), None);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(noticed(&verify(folder.path()).await), None, "the storm is over");
}

/// The verdict without the moment at which the log says that something was done.
fn meaning(verdict: &Verdict) -> String {
    format!("{verdict:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_the_log_of_a_table_hides_adds_or_changes_no_event_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    lake(folder.path()).await;
    let untouched = meaning(&verify(folder.path()).await.unwrap());
    let log = folder.path().join("events/_delta_log");
    let versions = files_in(&log, "json");
    let (mut tried, mut caught, mut wrong) = (0, 0, Vec::new());
    for (index, version) in versions.iter().enumerate() {
        let bytes = std::fs::read(version).unwrap();
        let neighbour = &versions[(index + 1) % versions.len()];
        let beside = std::fs::read(neighbour).unwrap();
        let cut = |at: usize| Some((bytes[..at].to_vec(), None));
        let mut changes = vec![
            ("removed", None),
            ("cut", cut(bytes.len() / 2)),
            ("emptied", cut(0)),
            ("swapped", Some((beside.clone(), Some(bytes.clone())))),
            ("in the place of another", Some((bytes.clone(), Some(bytes.clone())))),
        ];
        for at in (0..bytes.len()).step_by(bytes.len() / 40) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            changes.push(("flipped", Some((flipped, None))));
        }
        for (what, content) in changes {
            match &content {
                None => std::fs::remove_file(version).unwrap(),
                Some((own, other)) => {
                    std::fs::write(version, own).unwrap();
                    other.iter().for_each(|other| std::fs::write(neighbour, other).unwrap());
                }
            }
            tried += 1;
            let verdict = verify(folder.path()).await;
            caught += u32::from(noticed(&verdict).is_some());
            // A byte that says nothing of events may change, and files may be added in another
            // order: then everything is said as before.
            if noticed(&verdict).is_none() && meaning(verdict.as_ref().unwrap()) != untouched {
                wrong.push(format!("{} {what}", version.display()));
            }
            let loses = ["removed", "cut", "emptied"].contains(&what);
            if noticed(&verdict).is_none() && loses {
                wrong.push(format!("{} {what}: unnoticed", version.display()));
            }
            std::fs::write(version, &bytes).unwrap();
            std::fs::write(neighbour, &beside).unwrap();
        }
    }
    println!("{tried} changes of the table's log: {caught} noticed, the others change nothing");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(caught > 20, "{caught} of {tried}");
    assert_eq!(meaning(&verify(folder.path()).await.unwrap()), untouched, "the storm is over");
}
