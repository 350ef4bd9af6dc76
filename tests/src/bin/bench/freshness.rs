//! How long after its answer a call is in SQL, while commits happen every minute.

use std::time::{Duration, Instant};

use custody_tests::http::post_mcp;
use custody_tests::product::Setup;
use custody_tests::upstream::{Behaviour, Upstream};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// How many calls to look for.
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// How many clients call all the time beside them.
    #[arg(long, default_value_t = 4)]
    background: usize,
}

/// Calls, asks until the call is there, and prints how long that took.
///
/// Uses the executable that `CUSTODY_BIN` names, else the one beside this benchmark.
#[expect(clippy::print_stdout, reason = "the line is the benchmark's result")]
pub async fn run(options: Options) -> anyhow::Result<()> {
    let upstream = Upstream::start(Behaviour::Echo).await?;
    let folder = tempfile::tempdir_in(".")?;
    let custody = Setup::default().server("s", &upstream.url(), true).start(folder.path())?;
    let url = custody.server("s");
    let busy: Vec<_> = (0..options.background).map(|_| tokio::spawn(load(url.clone()))).collect();
    let mut waits = Vec::new();
    let started = Instant::now();
    for n in 0..options.calls {
        let tool = format!("looked-for-{n}");
        post_mcp(&url, call(&tool)).await?;
        let answered = Instant::now();
        let statement =
            format!("SELECT count(*) FROM calls WHERE tool = '{tool}' AND status = 'ok'");
        while custody.number(&statement).await? == 0 {}
        waits.push(answered.elapsed());
    }
    let elapsed = started.elapsed();
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    let all = custody.number("SELECT count(*) FROM calls").await?;
    waits.sort_unstable();
    let percentile = |percent: usize| waits[(waits.len() - 1) * percent / 100].as_millis();
    println!(
        "in SQL after: p50 {} ms, p99 {} ms, slowest {} ms ({} calls looked for among {all} in {:.0} s; each figure includes the question that found it)",
        percentile(50),
        percentile(99),
        percentile(100),
        options.calls,
        elapsed.as_secs_f64(),
    );
    Ok(())
}

fn call(tool: &str) -> String {
    serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": tool, "arguments": {}}})
    .to_string()
}

/// Calls ten times a second.
async fn load(url: String) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        if post_mcp(&url, call("background")).await.is_err() {
            return;
        }
    }
}
