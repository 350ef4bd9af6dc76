//! How fast a spool is carried to Kafka, and what it costs to wait for that.
//!
//! `cargo run --release -p custody-journal --example ship BOOTSTRAP [CALLS] [REPLICAS]`, where
//! `compose/local kafka start DIR` prints a bootstrap. Topics of its own are made and stay. A call
//! is an opening and an ending with bodies of 300 bytes, about 1 KB each with its record.
//!
//! 1. CALLS calls are put into a spool, then the shipper starts: events/s, processor time and
//!    memory until Kafka has acknowledged all of them.
//! 2. 1, 16 and 64 callers make calls for five seconds each, with durability `local` and
//!    `replicated`, the shipper running both times.

#![expect(clippy::print_stdout, reason = "a command that reports on its standard output")]

use std::path::Path;
use std::time::{Duration, Instant};

use custody_journal::bench::{Failure, cpu_time, drive};
use custody_journal::kafka::{KafkaSettings, create};
use custody_journal::ship::Shipper;
use custody_journal::{Durability, Writer, WriterOptions};
use custody_schemas::seal::key::Signer;

const AGAIN: Duration = Duration::from_millis(2);
const TIME: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let brokers = args.next().ok_or("name a broker: HOST:PORT")?;
    let calls: usize = args.next().map_or(Ok(200_000), |calls| calls.parse())?;
    let replicas: i32 = args.next().map_or(Ok(1), |replicas| replicas.parse())?;
    let mut settings = KafkaSettings::new(brokers);
    settings.topics.prefix = Some(format!("bench-{}", std::process::id()));
    settings.topics.replication = replicas;
    settings.topics.min_in_sync = replicas.min(2);
    create(&settings).await?;
    let folder = std::env::temp_dir().join(format!("custody-ship-{}", std::process::id()));
    let measured = measure(&folder, &settings, calls).await;
    std::fs::remove_dir_all(&folder)?;
    measured
}

async fn measure(folder: &Path, settings: &KafkaSettings, calls: usize) -> Result<(), Failure> {
    carry(&folder.join("carry"), settings, calls).await?;
    let rounds = [Durability::Local, Durability::Replicated, Durability::Local];
    for (round, durability) in rounds.into_iter().enumerate() {
        for callers in [1, 16, 64] {
            let name = format!("{round}-{callers}");
            wait(&folder.join(name), settings, durability, callers).await?;
        }
    }
    Ok(())
}

fn open(folder: &Path, durability: Durability) -> Result<Writer, Failure> {
    let (signer, _) = Signer::from_seed("bench/bench", &[3; 32])?;
    let options = WriterOptions { durability, ..WriterOptions::new(folder, "bench") };
    Ok(Writer::open(options, signer)?.0)
}

/// Everything that is in the spool, at once.
async fn carry(folder: &Path, settings: &KafkaSettings, calls: usize) -> Result<(), Failure> {
    let writer = open(folder, Durability::Local)?;
    while writer.status().events < 2 * calls as u64 {
        drive(&writer, 64, Instant::now() + Duration::from_millis(200)).await?;
    }
    let (events, bytes) = (writer.status().events, writer.status().spool_used_bytes);
    let (started, cpu) = (Instant::now(), cpu_time());
    let shipper = Shipper::start(&writer, settings)?;
    while shipper.status().unshipped_entries > 0 {
        tokio::time::sleep(AGAIN).await;
    }
    let (took, cpu) = (started.elapsed(), cpu_time().saturating_sub(cpu));
    let in_second = |number: u64| number as f64 / took.as_secs_f64();
    println!(
        "carry: {events} events, {:.0} events/s, {:.0} MB/s of spool, {:.1} CPU-s per million \
         events, {} (whole process)",
        in_second(events),
        in_second(bytes) / 1e6,
        cpu.as_secs_f64() * 1e6 / events as f64,
        peak_memory()?,
    );
    Ok(())
}

/// What two awaited appends take while a shipper runs.
async fn wait(
    folder: &Path,
    settings: &KafkaSettings,
    durability: Durability,
    callers: usize,
) -> Result<(), Failure> {
    let writer = open(folder, durability)?;
    let shipper = Shipper::start(&writer, settings)?;
    drive(&writer, callers, Instant::now() + Duration::from_secs(1)).await?;
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut times = drive(&writer, callers, started + TIME).await?;
    let took = started.elapsed();
    while shipper.status().unshipped_entries > 0 {
        tokio::time::sleep(AGAIN).await;
    }
    let cpu = cpu_time().saturating_sub(cpu);
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "{durability:?}, {callers} callers: {:.0} calls/s, p50 {:.2?}, p99 {:.2?}, {:.1} CPU-s per \
         million calls",
        times.len() as f64 / took.as_secs_f64(),
        at(50),
        at(99),
        cpu.as_secs_f64() * 1e6 / times.len().max(1) as f64,
    );
    Ok(())
}

/// The most memory that this process had.
fn peak_memory() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(format!("at most {} resident", line.unwrap_or("?").trim()))
}
