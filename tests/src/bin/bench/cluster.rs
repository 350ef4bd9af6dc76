//! The whole cluster on one machine: events from proxy to table, what each role costs, what
//! `replicated` costs against `local`, and how soon a call is in SQL.
//!
//! Two proxies record locally and two wait for Kafka; they are measured in turns, over the same
//! broker, store, workers and query nodes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use custody_tests::cluster::{Cluster, Plan, Role, processor_seconds};
use custody_tests::http::post_mcp;
use custody_tests::question::number;
use custody_tests::services::{Kafka, OwnStore};
use custody_tests::{metrics, storm, wait};

use super::load::{self, Figures, Target};
use super::stub;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Connections to each proxy.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Length of an answer in bytes.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// Seconds of load in each turn.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Turns of each kind of durability; none leaves throughput out.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Calls a second while freshness is measured; none leaves it out.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds for which freshness is measured.
    #[arg(long, default_value_t = 60)]
    fresh_seconds: u64,
    /// Ingest workers.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Query nodes.
    #[arg(long, default_value_t = 2)]
    queries: usize,
    /// Seconds after which a worker commits at the latest.
    #[arg(long, default_value_t = 5)]
    flush_seconds: u32,
}

const DURABILITIES: [&str; 2] = ["local", "replicated"];
/// How long storing what a turn has recorded may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Everything that runs.
struct Topology {
    kafka: Kafka,
    store: OwnStore,
    /// Two of each kind of durability.
    proxies: BTreeMap<&'static str, Vec<Role>>,
    workers: Vec<Role>,
    queries: Vec<Role>,
}

/// One turn.
struct Turn {
    figures: Figures,
    events: f64,
    elapsed_s: f64,
    /// Processor seconds by role.
    processor: BTreeMap<&'static str, f64>,
}

/// Starts the cluster, measures, prints two tables and a line.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(".")?;
    let upstream = stub::start(options.bytes).await?;
    let (kafka, store) = (Kafka::own(&[])?, OwnStore::new()?);
    let mut plan = Plan::new(&kafka, &store.store).server("stub", &upstream, true);
    plan.lake = format!("flush_seconds = {}\n", options.flush_seconds);
    let cluster = plan.build(folder.path())?;
    let all = start(&cluster, kafka, store, &options)?;
    if options.rounds > 0 {
        let mut turns: BTreeMap<_, Vec<Turn>> = BTreeMap::new();
        for _ in 0..options.rounds {
            for durability in DURABILITIES {
                turns.entry(durability).or_default().push(turn(&all, durability, &options).await?);
            }
        }
        print(&options, &turns);
    }
    if options.rate > 0 {
        freshness(&all, &options).await?;
    }
    Ok(())
}

fn start(
    cluster: &Cluster,
    kafka: Kafka,
    store: OwnStore,
    options: &Options,
) -> anyhow::Result<Topology> {
    let named =
        |role: &str, n: usize| -> Vec<String> { (1..=n).map(|n| format!("{role}-{n}")).collect() };
    let (proxies, queries) = (named("proxy", 4), named("query", options.queries));
    let writers: Vec<_> = proxies.iter().chain(&queries).map(String::as_str).collect();
    cluster.prepare(&writers)?;
    let started = |names: &[String]| -> anyhow::Result<Vec<Role>> {
        names.iter().map(|name| cluster.start(name)).collect()
    };
    let workers = started(&named("ingest", options.workers))?;
    let queries = started(&queries)?;
    let mut by_durability = BTreeMap::new();
    for (names, durability) in proxies.chunks(2).zip(DURABILITIES) {
        let roles = names.iter().map(|name| {
            let mut command = cluster.command(name)?;
            command.env("CUSTODY__PROXY__DURABILITY", durability);
            cluster.start_with(name, command)
        });
        by_durability.insert(durability, roles.collect::<anyhow::Result<_>>()?);
    }
    Ok(Topology { kafka, store, proxies: by_durability, workers, queries })
}

impl Topology {
    /// Processor seconds that each role has used so far.
    fn processor(&self) -> anyhow::Result<BTreeMap<&'static str, f64>> {
        let sum = |roles: &[Role]| -> anyhow::Result<f64> {
            roles.iter().map(|role| processor_seconds(role.id())).sum()
        };
        let mut used = BTreeMap::from([
            ("ingest", sum(&self.workers)?),
            ("query", sum(&self.queries)?),
            ("Kafka", processor_seconds(self.kafka.process()?)?),
            ("MinIO", processor_seconds(self.store.process()?)?),
        ]);
        for proxies in self.proxies.values() {
            *used.entry("proxy").or_default() += sum(proxies)?;
        }
        Ok(used)
    }

    /// The sum of a metric over these roles.
    async fn sum<'r>(roles: impl Iterator<Item = &'r Role>, metric: &str) -> Option<f64> {
        let mut sum = 0.0;
        for role in roles {
            sum += metrics::sum(&role.url, metric).await.ok()?;
        }
        Some(sum)
    }

    /// Waits until nothing is between a proxy and the table: every entry that Kafka has acknowledged
    /// is a row, or was recognised as one.
    async fn all_stored(&self) -> anyhow::Result<()> {
        let proxies = || self.proxies.values().flatten();
        let acknowledged = wait::within(PATIENCE, "everything in Kafka", || async {
            let left = Self::sum(proxies(), "custody_ship_unshipped_entries").await?;
            let writers = proxies().chain(&self.queries);
            let there = Self::sum(writers, "custody_ship_acknowledged_entries_total").await?;
            (left < 1.0).then_some(there)
        })
        .await?;
        wait::within(PATIENCE, "everything in the table", || async {
            let rows = Self::sum(self.workers.iter(), "custody_ingest_rows_total").await?;
            let again = Self::sum(self.workers.iter(), "custody_ingest_duplicates_total").await?;
            (rows + again >= acknowledged).then_some(())
        })
        .await
    }

    fn query(&self) -> anyhow::Result<&str> {
        Ok(&self.queries.first().context("no query node")?.url)
    }

    async fn events(&self) -> anyhow::Result<f64> {
        Ok(number(self.query()?, "SELECT count(*) FROM events").await? as f64)
    }

    fn targets(&self, durability: &str) -> anyhow::Result<Vec<Target>> {
        let proxies = self.proxies.get(durability).context("no such proxies")?;
        proxies.iter().map(|proxy| Target::of(&proxy.server("stub"))).collect()
    }
}

async fn turn(all: &Topology, durability: &str, options: &Options) -> anyhow::Result<Turn> {
    all.all_stored().await?;
    let targets = all.targets(durability)?;
    let request = Bytes::from(storm::call("read_record"));
    let (events, before, begun) = (all.events().await?, all.processor()?, Instant::now());
    let duration = Duration::from_secs(options.seconds);
    let loads = targets.iter().map(|target| {
        let (target, request, connections) = (target.clone(), request.clone(), options.connections);
        tokio::spawn(async move { load::run(&target, &request, connections, duration).await })
    });
    let mut figures: Option<Figures> = None;
    for load in loads.collect::<Vec<_>>() {
        let one = load.await??;
        figures = Some(figures.map_or(one, |sum| sum.beside(&one)));
    }
    all.all_stored().await?;
    let elapsed_s = begun.elapsed().as_secs_f64();
    let after = all.processor()?;
    let processor = after.iter().map(|(role, used)| (*role, used - before[role])).collect();
    let events = all.events().await? - events;
    Ok(Turn { figures: figures.context("no load")?, events, elapsed_s, processor })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the tables are the benchmark's result")]
fn print(options: &Options, turns: &BTreeMap<&'static str, Vec<Turn>>) {
    println!(
        "\n2 proxies × {} connections, {} B answers, {} workers, {} query nodes, {} rounds of {} s (medians)\n",
        options.connections,
        options.bytes,
        options.workers,
        options.queries,
        options.rounds,
        options.seconds
    );
    println!("| durability | calls/s | p50 µs | p99 µs | events/s to the table |");
    println!("|---|---|---|---|---|");
    for (durability, turns) in turns {
        let of = |f: fn(&Turn) -> f64| median(turns.iter().map(f));
        println!(
            "| {durability} | {:.0} | {:.0} | {:.0} | {:.0} |",
            of(|t| t.figures.calls_per_s),
            of(|t| t.figures.p50_us),
            of(|t| t.figures.p99_us),
            of(|t| t.events / t.elapsed_s),
        );
    }
    let roles = ["proxy", "Kafka", "ingest", "MinIO", "query"];
    println!("\nCPU-seconds for a million events\n\n| durability | {} | all |", roles.join(" | "));
    println!("|---|{}", "---|".repeat(roles.len() + 1));
    for (durability, turns) in turns {
        let each =
            roles.map(|role| median(turns.iter().map(|t| t.processor[role] * 1e6 / t.events)));
        let cells = each.map(|seconds| format!("{seconds:.0}")).join(" | ");
        println!("| {durability} | {cells} | {:.0} |", each.iter().sum::<f64>());
    }
}

/// Looks for single calls in SQL while the proxies are called at a steady rate.
#[expect(clippy::print_stdout, reason = "the line is the benchmark's result")]
async fn freshness(all: &Topology, options: &Options) -> anyhow::Result<()> {
    all.all_stored().await?;
    let targets = all.targets("local")?;
    let request = Bytes::from(storm::call("background"));
    let duration = Duration::from_secs(options.fresh_seconds);
    let rate = options.rate;
    let loading =
        tokio::spawn(async move { load::paced(&targets, &request, rate, duration).await });
    let until = Instant::now() + duration;
    let proxies = all.proxies.get("local").context("no such proxies")?;
    let (mut waits, mut questions, mut n) = (Vec::new(), Vec::new(), 0_usize);
    while Instant::now() < until {
        let tool = format!("looked-for-{n}");
        let (proxy, query) = (&proxies[n % 2], &all.queries[n % all.queries.len()]);
        post_mcp(&proxy.server("stub"), storm::call(&tool)).await?;
        let answered = Instant::now();
        let there =
            format!("SELECT count(*) FROM events WHERE kind = 'call.ended' AND tool = '{tool}'");
        loop {
            let asked = Instant::now();
            let found = number(&query.url, &there).await? > 0;
            questions.push(asked.elapsed());
            if found {
                break;
            }
        }
        waits.push(answered.elapsed());
        n += 1;
    }
    let load = loading.await??;
    let percentile = |times: &mut Vec<Duration>, percent: usize| {
        times.sort_unstable();
        times[(times.len() - 1) * percent / 100].as_millis()
    };
    println!(
        "\nat {:.0} calls/s (p99 {:.0} ms): in SQL after p50 {} ms, p99 {} ms, slowest {} ms ({n} calls looked for in {} s; each figure includes the question that found it, p50 {} ms)",
        load.calls_per_s,
        load.p99_us / 1000.0,
        percentile(&mut waits, 50),
        percentile(&mut waits, 99),
        percentile(&mut waits, 100),
        options.fresh_seconds,
        percentile(&mut questions, 50),
    );
    Ok(())
}
