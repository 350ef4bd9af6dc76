//! What two awaited appends per call cost: the journal's part of an audited call.
//!
//! Not part of the product; the bench of the whole product calls it, and so does
//! `CUSTODY_BENCH_SECONDS=5 cargo test --release -p custody-journal bench -- --nocapture`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::event::{Agent, Draft, Outcome, Principal, What, Who};
use custody_schemas::id::CallId;
use custody_schemas::kind::Kind;
use custody_schemas::seal::key::Signer;
use custody_schemas::words::Status;

use crate::{Journal, OutBody, Part, Partition, ReadError, Topic, Writer, WriterOptions};

/// What goes wrong in a measurement.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Tasks that made calls, one after the other each.
    pub callers: usize,
    /// Calls of all callers in a second.
    pub calls_per_second: f64,
    /// Median time of a call's two appends.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Events that one sync carried.
    pub events_per_commit: f64,
    /// Processor time of the whole process for each call.
    pub cpu_per_call: Duration,
    /// Records that one reader takes from the journal in a second, chunks beside them skipped.
    pub reads_per_second: f64,
}

/// Makes calls for about `time`: an opening with a request body and an ending with a response
/// body, both awaited, 1 KB each with its record.
///
/// # Errors
/// When the journal cannot be opened or written.
pub async fn calls(
    dir: &Path,
    callers: usize,
    time: Duration,
    sync: bool,
) -> Result<Figures, Failure> {
    let (signer, _) = Signer::from_seed("bench/bench", &[3; 32])?;
    let options = WriterOptions { sync, ..WriterOptions::new(dir, "bench") };
    let (writer, _) = Writer::open(options, signer)?;
    let (before, cpu_before) = (writer.status(), cpu_time());
    let started = Instant::now();
    let mut times = drive(&writer, callers, started + time).await?;
    let took = started.elapsed();
    let cpu = cpu_time().saturating_sub(cpu_before);
    let after = writer.status();
    writer.close().await?;
    let reads_per_second = read_back(&writer)?;
    times.sort_unstable();
    let calls = u32::try_from(times.len()).unwrap_or(u32::MAX).max(1);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    let commits = f64::from(u32::try_from(after.commits - before.commits)?.max(1));
    Ok(Figures {
        callers,
        calls_per_second: f64::from(calls) / took.as_secs_f64(),
        p50: at(50),
        p99: at(99),
        events_per_commit: f64::from(calls) * 2.0 / commits,
        cpu_per_call: cpu / calls,
        reads_per_second,
    })
}

fn read_back(writer: &Writer) -> Result<f64, ReadError> {
    let events = Partition { topic: Topic::Events, name: "bench".to_owned() };
    let mut reader = writer.journal().reader(&events, 0)?;
    let (started, mut read) = (Instant::now(), 0);
    loop {
        let entries = reader.read(4096, 8 << 20, Duration::ZERO)?;
        if entries.is_empty() {
            return Ok(f64::from(read) / started.elapsed().as_secs_f64());
        }
        read += u32::try_from(entries.len()).unwrap_or(0);
    }
}

/// Makes calls on `writer` until `until`, each of `callers` tasks one after the other; how long
/// the two appends of each took.
///
/// # Errors
/// The first append that failed.
pub async fn drive(
    writer: &Writer,
    callers: usize,
    until: Instant,
) -> Result<Vec<Duration>, Failure> {
    let tasks: Vec<_> = (0..callers).map(|_| tokio::spawn(caller(writer.clone(), until))).collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

async fn caller(
    writer: Writer,
    until: Instant,
) -> Result<Vec<Duration>, crate::writer::AppendError> {
    let who = Some(Arc::new(Who {
        agent: Some(Agent { id: "triage-bot".to_owned(), ..Agent::default() }),
        user: Some(Principal { subject: "u-17".to_owned(), ..Principal::default() }),
        ..Who::default()
    }));
    let what = Some(Arc::new(What {
        method: Some("tools/call".to_owned()),
        server: Some("ehr".to_owned()),
        tool: Some("read_patient".to_owned()),
        ..What::default()
    }));
    let body = |part| vec![OutBody { part, bytes: Bytes::from_static(&[b'x'; 300]) }];
    let mut times = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let call = Some(CallId::from_uuid(uuid::Uuid::now_v7()));
        let (who, what) = (who.clone(), what.clone());
        let opening = Draft { call, who, what, ..Draft::new(Kind::CallRequested) };
        let outcome = Some(Outcome { status: Status::Ok, ..Outcome::default() });
        let ending = Draft { kind: Kind::CallEnded, outcome, ..opening.clone() };
        let mut slot = writer.slot(16 << 10)?;
        slot.open(opening, body(Part::Request)).await?;
        slot.end(ending, body(Part::Response)).await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Processor time of this process so far; nothing where `/proc` does not say.
pub fn cpu_time() -> Duration {
    const TICK_MS: u64 = 10;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = behind_name.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * TICK_MS)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bench_calls_are_recorded_and_measured() {
        let seconds = std::env::var("CUSTODY_BENCH_SECONDS").ok().and_then(|s| s.parse().ok());
        let time = Duration::from_secs_f64(seconds.unwrap_or(0.05));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        for sync in [true, false] {
            for callers in [1, 16, 64] {
                let dir = tempfile::tempdir().unwrap();
                let figures = runtime.block_on(calls(dir.path(), callers, time, sync)).unwrap();
                assert!(figures.calls_per_second > 0.0 && figures.p50 <= figures.p99);
                writeln!(std::io::stderr(), "sync {sync}: {figures:?}").unwrap();
            }
        }
    }
}
