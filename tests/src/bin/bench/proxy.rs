//! The proxy against the same calls sent directly and through a minimal proxy.
//!
//! Each contender is a process of its own. Every round measures each of them once, in an order
//! that rotates, so that a slow phase of the machine does not fall on one of them.

use std::net::TcpStream as Probe;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;

use super::load::{self, Figures, Target};
use super::stub::Form;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<usize>,
    /// Lengths of answers in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [300, 10_000])]
    bytes: Vec<usize>,
    /// What answers look like.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["json", "sse"])]
    forms: Vec<Form>,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// First of five ports on loopback.
    #[arg(long, default_value_t = 17_400)]
    port: u16,
}

const CONTENDERS: [&str; 5] =
    ["direct", "minimal proxy", "custody, audit off", "custody, unsynced", "custody, audit local"];

/// A process that ends with the benchmark.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        child.map(Self).with_context(|| format!("cannot start {command:?}"))
    }

    /// Resident memory (proc_pid_status(5)).
    fn rss_mib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    }

    /// CPU time in microseconds, user and system, all threads (proc_pid_stat(5)).
    fn cpu_us(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("an unknown form of /proc/PID/stat")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks * 10_000.0)
    }
}

/// Runs all measurements and prints a table for each length and form of answer.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let forms = options.forms.iter();
    let answers = forms.flat_map(|form| options.bytes.iter().map(move |bytes| (*bytes, *form)));
    for (bytes, form) in answers {
        let data = tempfile::tempdir_in(".")?;
        let running = start(&options, (bytes, form), data.path())?;
        let targets = targets(&options);
        for connections in &options.connections {
            let results = measure(&options, &targets, &running, *connections).await?;
            print((bytes, form), *connections, &results);
        }
    }
    Ok(())
}

fn targets(options: &Options) -> Vec<Target> {
    let at = |offset: u16, path: &str| Target { port: options.port + offset, path: path.into() };
    vec![
        at(0, "/mcp"),
        at(1, "/mcp"),
        at(2, "/servers/stub/mcp"),
        at(3, "/servers/stub/mcp"),
        at(4, "/servers/stub/mcp"),
    ]
}

fn start(
    options: &Options,
    (bytes, form): (usize, Form),
    data: &Path,
) -> anyhow::Result<Vec<Running>> {
    let this = std::env::current_exe()?;
    let port = |offset: u16| (options.port + offset).to_string();
    let bytes = bytes.to_string();
    let mut running = vec![
        Running::start(Command::new(&this).args([
            "stub",
            "--port",
            &port(0),
            "--bytes",
            &bytes,
            "--form",
            form.word(),
        ]))?,
        Running::start(Command::new(&this).args([
            "minimal",
            "--port",
            &port(1),
            "--upstream",
            &port(0),
        ]))?,
    ];
    for (offset, audit) in [(2, "off"), (3, "unsynced"), (4, "local")] {
        let mut command = Command::new(&this);
        command.args(["gateway", "--port", &port(offset), "--upstream", &port(0)]);
        command.args(["--audit", audit, "--data"]).arg(data.join(audit));
        running.push(Running::start(&mut command)?);
    }
    for offset in 0..5 {
        wait_for(options.port + offset)?;
    }
    Ok(running)
}

/// Waits until something listens on `port`, for at most half a minute.
///
/// # Errors
/// When nothing does.
pub fn wait_for(port: u16) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    while Probe::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > until {
            bail!("nothing listens on port {port}");
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// What one round gave: calls per second and latencies, CPU per call and resident memory of the
/// contender's own process.
#[derive(Clone, Copy)]
struct Round {
    figures: Figures,
    cpu_us: f64,
    rss_mib: f64,
}

/// The rounds of each contender.
type Results = Vec<Vec<Round>>;

async fn measure(
    options: &Options,
    targets: &[Target],
    running: &[Running],
    connections: usize,
) -> anyhow::Result<Results> {
    let call = Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_record","arguments":{"record":"r-0001","fields":["a","b"],"limit":20,"note":"a request of a common length, as agents send them"}}}"#);
    let mut results: Results = vec![Vec::new(); targets.len()];
    let warm = Duration::from_millis(300);
    for round in 0..options.rounds {
        for turn in 0..targets.len() {
            let contender = (round + turn) % targets.len();
            let target = &targets[contender];
            load::run(target, &call, connections, warm).await?;
            let before = running[contender].cpu_us()?;
            let duration = Duration::from_secs(options.seconds);
            let figures = load::run(target, &call, connections, duration).await?;
            let cpu_us = (running[contender].cpu_us()? - before) / figures.calls as f64;
            let rss_mib = running[contender].rss_mib()?;
            results[contender].push(Round { figures, cpu_us, rss_mib });
        }
    }
    Ok(results)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the table is the benchmark's result")]
fn print((bytes, form): (usize, Form), connections: usize, results: &Results) {
    println!(
        "\n{bytes} B answers ({}), {connections} connections (medians of rounds; ratios round by round)\n",
        form.word()
    );
    println!(
        "| contender | calls/s | of direct | of minimal | of audit off | p50 µs | p99 µs | CPU µs/call | RSS MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let of = |contender: usize, base: usize| {
        let pairs = results[contender].iter().zip(&results[base]);
        median(pairs.map(|(a, b)| a.figures.calls_per_s / b.figures.calls_per_s).collect())
    };
    for (i, name) in CONTENDERS.iter().enumerate() {
        let each = |f: fn(&Round) -> f64| median(results[i].iter().map(f).collect());
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} |",
            each(|r| r.figures.calls_per_s),
            of(i, 0),
            of(i, 1),
            of(i, 2),
            each(|r| r.figures.p50_us),
            each(|r| r.figures.p99_us),
            each(|r| r.cpu_us),
            each(|r| r.rss_mib),
        );
    }
}
