//! How fast a journal is carried into a lake, and how many bytes an event takes there.
//!
//! ```text
//! cargo run --release -p custody-ingest --example measure -- file [CALLS] [FOLDER]
//! cargo run --release -p custody-ingest --example measure -- kafka BROKERS [CALLS] [FOLDER]
//! cargo run --release -p custody-ingest --example measure -- encode [CALLS]
//! ```
//! `file` carries a file journal of one writer. `kafka` fills three partitions of topics of its own,
//! counts them with a bare consumer, then carries them with one worker. `encode` is the limit of
//! both: rows that are ready become Parquet files on one thread, and go nowhere. Only that is
//! timed; what is read has been written before. A FOLDER that is named is kept. `events/s` counts
//! events alone, bytes count everything in the table.

#![expect(clippy::print_stdout, reason = "a command that reports on its standard output")]

mod kafka;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use custody_ingest::{Assigned, Ingest, Settings};
use custody_journal::file::FileAppend;
use custody_journal::{Append, EntryKind, Journal, NewEntry, Topic};
use custody_lake::batch::Rows;
use custody_lake::columns::EVENTS;
use custody_lake::files::FileSet;
use custody_lake::rows::{Arrival, Standing};
use custody_lake::{Lake, LakeOptions};
use custody_schemas::decoder::Decoder;
use custody_schemas::id::Uint;
use parquet::file::reader::{FileReader, SerializedFileReader};
use tokio_util::sync::CancellationToken;

use world::{CHECKPOINT_EVERY, World};

type Failure = Box<dyn std::error::Error>;

/// What is done how often, and what it takes.
struct Watch {
    begun: Instant,
    cpu: f64,
}

impl Watch {
    fn start() -> Result<Self, Failure> {
        Ok(Self { begun: Instant::now(), cpu: cpu_seconds()? })
    }

    fn stop(self, what: &str, events: u64) -> Result<(), Failure> {
        let (took, cpu) = (self.begun.elapsed().as_secs_f64(), cpu_seconds()? - self.cpu);
        let (rate, each) = (events as f64 / took, cpu / events as f64 * 1e6);
        println!("{what}: {rate:.0} events/s, {took:.2} s, {each:.1} µs of CPU per event");
        Ok(())
    }
}

/// What `writer` writes in `calls` calls, in appends as a busy committer makes them.
fn write(
    writer: u64,
    calls: u64,
    mut append: impl FnMut(&[NewEntry]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut world, mut entries) = (World::new(writer)?, Vec::new());
    for call in 0..calls {
        world.call(&mut entries)?;
        if entries.len() >= 2_000 || call + 1 == calls {
            append(&entries)?;
            entries.clear();
        }
    }
    Ok(())
}

/// The rows that `events` events of each of `writers` are, checkpoints included.
fn rows(events: u64, writers: u64) -> u64 {
    writers * (events + events / CHECKPOINT_EVERY)
}

async fn file(calls: u64, folder: &Path) -> Result<(), Failure> {
    let mut append = FileAppend::open(&folder.join("journal"), "edge-1", 64 << 20)?;
    let mut bytes = 0;
    write(1, calls, |entries| {
        bytes += entries.iter().map(|e| e.value.len() as u64).sum::<u64>();
        append.append(entries)?;
        Ok(())
    })?;
    println!("{} events, {} bytes each in the journal", 2 * calls, bytes / (2 * calls));
    let journal: Arc<dyn Journal> = append.journal();
    carry("ingest from files", journal, Settings::default(), folder, (2 * calls, 1)).await
}

/// Carries everything that `journal` holds of events into a lake in `folder`.
async fn carry(
    what: &str,
    journal: Arc<dyn Journal>,
    settings: Settings,
    folder: &Path,
    (events, writers): (u64, u64),
) -> Result<(), Failure> {
    let (url, all) = (folder.join("lake"), rows(events, writers));
    let options = LakeOptions::new("audit.st-elsewhere.example");
    let lake = Lake::open(&url.to_string_lossy(), &options).await?;
    let ingest = Ingest::new(journal, lake.clone(), settings);
    let stop = CancellationToken::new();
    let watch = Watch::start()?;
    let all_read = async {
        let read = || {
            let status = ingest.status();
            let events = status.iter().filter(|s| s.partition.topic == Topic::Events);
            events.map(|s| s.read_to).sum::<u64>()
        };
        while read() < all {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(ingest.run(Assigned::All, stop.clone()), all_read);
    ran?;
    watch.stop(what, writers * events)?;
    report(&lake, &url, all, writers * events).await
}

async fn report(lake: &Lake, url: &Path, rows: u64, events: u64) -> Result<(), Failure> {
    let snapshot = lake.events().snapshot().await?;
    let bytes: u64 = snapshot.files().iter().map(|f| f.size).sum();
    let stored: u64 = snapshot.files().iter().filter_map(|f| f.rows).sum();
    if stored != rows {
        return Err(format!("{stored} rows are stored instead of {rows}").into());
    }
    let (files, each) = (snapshot.files().len(), |bytes: f64| bytes / events as f64);
    println!("{files} files, {:.1} bytes per event in the lake, most of it:", each(bytes as f64));
    for (name, size) in columns(&url.join("events"))?.into_iter().take(6) {
        println!("  {:7.2}  {name}", each(size as f64));
    }
    Ok(())
}

/// Files of rows that are ready, one after another as ingest makes them.
fn encode(calls: u64) -> Result<(), Failure> {
    let (mut batches, mut decoder, mut offset) = (Vec::new(), Decoder::default(), 0);
    write(1, calls, |entries| {
        let mut rows = Rows::events();
        for entry in entries {
            let (partition, journaled_at) = ("edge-1", Uint::new(1_795_000_000_000_000 + offset));
            let stored_at = Some(journaled_at);
            let arrival = Arrival { partition, offset, journaled_at, stored_at };
            offset += 1;
            if entry.kind == EntryKind::Checkpoint {
                rows.checkpoint(&entry.value, &arrival);
            } else {
                let decoded = decoder.decode(&entry.value);
                rows.record(&entry.value, &decoded, Standing::Event, &arrival);
            }
        }
        batches.push(rows.finish()?);
        Ok(())
    })?;
    let (watch, mut files) = (Watch::start()?, FileSet::new(EVENTS));
    for batch in &batches {
        files.append(batch)?;
        if files.size() >= Settings::default().flush_bytes {
            files.finish("measure", &BTreeMap::new())?;
        }
    }
    files.finish("measure", &BTreeMap::new())?;
    watch.stop("encode only, one thread", 2 * calls)
}

/// Compressed bytes of each column, largest first.
fn columns(folder: &Path) -> Result<Vec<(String, i64)>, Failure> {
    let mut sizes = BTreeMap::new();
    for day in std::fs::read_dir(folder)? {
        let day = day?.path();
        if !day.file_name().is_some_and(|n| n.to_string_lossy().starts_with("event_date")) {
            continue;
        }
        for file in std::fs::read_dir(day)? {
            let reader = SerializedFileReader::new(std::fs::File::open(file?.path())?)?;
            for group in reader.metadata().row_groups() {
                for column in group.columns() {
                    let name = column.column_path().string();
                    *sizes.entry(name).or_insert(0) += column.compressed_size();
                }
            }
        }
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, size)| -size);
    Ok(sizes)
}

/// What this process has used so far, user and system, from Linux.
fn cpu_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = fields[12].parse::<f64>()? + fields[13].parse::<f64>()?;
    Ok(ticks / 100.0)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_else(|| "file".to_owned());
    let brokers = if mode == "kafka" { arguments.next() } else { None };
    let calls: u64 = arguments.next().map_or(Ok(300_000), |n| n.parse())?;
    let kept = arguments.next().map(PathBuf::from);
    let folder = kept.clone().unwrap_or_else(|| std::env::temp_dir().join("custody-measure"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    match (mode.as_str(), brokers) {
        ("file", _) => file(calls, &folder).await?,
        ("encode", _) => encode(calls)?,
        ("kafka", Some(brokers)) => kafka::run(&brokers, calls, &folder).await?,
        _ => return Err("say file, encode, or kafka BROKERS".into()),
    }
    if kept.is_none() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
