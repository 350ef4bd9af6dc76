//! What traces cost: `custody up` without a collector and with one, in turns.

use std::time::Duration;

use bytes::Bytes;
use custody_tests::cluster::processor_seconds;
use custody_tests::product::{Custody, Setup};
use custody_tests::storm;

use super::load::{self, Target};
use super::stub;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Connections.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Seconds of load in each turn.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Turns of each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Calls and prints a table.
#[expect(clippy::print_stdout, reason = "the table is the benchmark's result")]
pub async fn run(options: Options) -> anyhow::Result<()> {
    let (upstream, collector) = (stub::start(300).await?, stub::start(80).await?);
    let folders = [tempfile::tempdir_in(".")?, tempfile::tempdir_in(".")?];
    let setup = Setup::default().server("stub", &upstream, true);
    let endpoint = collector.trim_end_matches("/mcp");
    let traced = setup.clone().query_lines(&format!("[telemetry]\notlp_endpoint = {endpoint:?}"));
    let contenders = [setup.start(folders[0].path())?, traced.start(folders[1].path())?];
    let mut results = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            results[which].push(measure(&contenders[which], &options).await?);
        }
    }
    println!("| | calls/s | CPU µs a call, whole process |\n|---|---|---|");
    for (name, results) in ["without a collector", "every call traced"].into_iter().zip(&results) {
        let middle = |f: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<_> = results.iter().map(f).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!("| {name} | {:.0} | {:.1} |", middle(|r| r.0), middle(|r| r.1));
    }
    Ok(())
}

/// Calls a second, and processor time of each in µs.
async fn measure(custody: &Custody, options: &Options) -> anyhow::Result<(f64, f64)> {
    let target = Target::of(&custody.server("stub"))?;
    let call = Bytes::from(storm::call("read_record"));
    load::run(&target, &call, options.connections, Duration::from_millis(500)).await?;
    let before = processor_seconds(custody.id())?;
    let duration = Duration::from_secs(options.seconds);
    let figures = load::run(&target, &call, options.connections, duration).await?;
    let used = processor_seconds(custody.id())? - before;
    Ok((figures.calls_per_s, used * 1e6 / figures.calls as f64))
}
