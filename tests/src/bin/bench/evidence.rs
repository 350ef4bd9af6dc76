//! Evidence of many events: how long a package takes to make and to check, how large it is, how
//! much memory either takes; and how long `custody verify --lake` takes.
//!
//! The lake is made up: one run of one writer, every event the ending of a call of 600 to 700 bytes.
//! Memory is the largest resident set of this process within a phase.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, ensure};
use custody_lake::evidence::Judged;
use custody_lake::verify::{Request, lake};
use custody_tests::sealed::{Sealed, calls, judge};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Events in the lake.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// One event in so many is about a patient.
    #[arg(long, default_value_t = 1)]
    phi: u64,
}

/// Prints a line for each phase.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (count, name) = (options.events, "edge-1/0190c8a0-7b1e-7000-8000-000000000001");
    let mut sealed = Sealed::new(folder.path(), "bench.example", &["edge-1"]).await?;
    let phase = Phase::begin("made")?;
    sealed.record(&name.parse()?, calls(count, options.phi), &[]).await?;
    phase.end(count, "")?;

    let phase = Phase::begin("exported")?;
    let (mut package, judged) = sealed.package((0, count * 1_000), |_| {}).await?;
    phase.end(count, &size(&package)?)?;
    sound(&judged)?;

    let phase = Phase::begin("package checked")?;
    let judged = judge(&mut package, sealed.root())?;
    let what = format!("{} leaves, {} records", judged.population, judged.opened);
    phase.end(count, &what)?;
    sound(&judged)?;

    let phase = Phase::begin("lake verified")?;
    let url = folder.path().to_str().context("a path that is text")?;
    let verdict = lake(url, &Request::default(), &|_, _| {}).await?;
    phase.end(count, &format!("{} records", verdict.records))?;
    ensure!(verdict.is_valid() && verdict.is_complete(), "{:?}", verdict.findings);
    Ok(())
}

fn sound(judged: &Judged) -> anyhow::Result<()> {
    ensure!(judged.is_valid() && judged.lacking == 0, "{:?}", judged.findings);
    Ok(())
}

fn size(package: &File) -> anyhow::Result<String> {
    Ok(format!("{:.1} MB", package.metadata()?.len() as f64 / 1e6))
}

/// A part of the work.
struct Phase {
    name: &'static str,
    begun: Instant,
    cpu: f64,
}

impl Phase {
    fn begin(name: &'static str) -> anyhow::Result<Self> {
        // Forgets the largest resident set so far.
        std::fs::write("/proc/self/clear_refs", "5")?;
        Ok(Self { name, begun: Instant::now(), cpu: cpu_seconds()? })
    }

    #[expect(clippy::print_stdout, reason = "the lines are the benchmark's result")]
    fn end(self, count: u64, what: &str) -> anyhow::Result<()> {
        let (took, cpu) = (self.begun.elapsed().as_secs_f64(), cpu_seconds()? - self.cpu);
        let status = std::fs::read_to_string("/proc/self/status")?;
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = most.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        let megabytes = kib.context("no VmHWM")? * 1024.0 / 1e6;
        let rate = count as f64 / cpu;
        println!(
            "{:<16} {took:>7.2} s, {cpu:>7.2} s of processor, {rate:>9.0} events/s per core, \
             {megabytes:>5.0} MB of memory; {what}",
            self.name
        );
        Ok(())
    }
}

/// Processor time that this process has taken.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit(") ").next().context("no stat")?.split(' ').collect();
    let ticks: f64 = fields.get(11).context("no utime")?.parse()?;
    let system: f64 = fields.get(12).context("no stime")?.parse()?;
    Ok((ticks + system) / 100.0)
}
