//! Benchmarks of the product, as commands. Nothing here asserts a time: it prints ratios of
//! figures that were measured in turns in one run. `docs/benchmarks.md` has the results.

mod cluster;
mod evidence;
mod freshness;
mod gateway;
mod inspect;
mod load;
mod minimal;
mod outage;
mod proxy;
mod sessions;
mod soak;
mod storm;
mod stub;
mod telemetry;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Benchmarks; see docs/benchmarks.md")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Direct, minimal proxy, custody without and with flushing, in turns.
    Proxy(proxy::Options),
    /// Idle sessions and busy agents for a long time: what grows, what stays behind.
    Soak(soak::Options),
    /// How long after its answer a call is in SQL.
    Freshness(freshness::Options),
    /// A whole cluster: events/s, processor time of each role, replicated against local, freshness.
    Cluster(cluster::Options),
    /// Kafka away while calls pass; ends with an error when a promise does not hold.
    Outage(outage::Options),
    /// Kills and faults in a cluster under load; ends with an error when a promise does not hold.
    Storm(storm::Options),
    /// What traces cost.
    Telemetry(telemetry::Options),
    /// Our proxy alone (a process of its own).
    Gateway(gateway::Options),
    /// Packages and lakes of so many events: making, size, checking, memory.
    Evidence(evidence::Options),
    /// How fast messages are looked through for patients.
    Inspect(inspect::Options),
    /// An upstream that answers every call with the same bytes (a process of its own).
    Stub(stub::Options),
    /// An MCP server with sessions (a process of its own).
    Sessions(sessions::Options),
    /// A byte-transparent proxy without anything else (a process of its own).
    Minimal(minimal::Options),
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Arguments::parse().command {
        Command::Proxy(options) => runtime.block_on(proxy::run(options)),
        Command::Soak(options) => runtime.block_on(soak::run(options)),
        Command::Sessions(options) => runtime.block_on(sessions::run(options)),
        Command::Freshness(options) => runtime.block_on(freshness::run(options)),
        Command::Cluster(options) => runtime.block_on(cluster::run(options)),
        Command::Outage(options) => runtime.block_on(outage::run(options)),
        Command::Storm(options) => runtime.block_on(storm::run(options)),
        Command::Telemetry(options) => runtime.block_on(telemetry::run(options)),
        Command::Gateway(options) => runtime.block_on(gateway::run(options)),
        Command::Evidence(options) => runtime.block_on(evidence::run(options)),
        Command::Inspect(options) => inspect::run(&options),
        Command::Stub(options) => runtime.block_on(stub::run(options)),
        Command::Minimal(options) => runtime.block_on(minimal::run(options)),
    }
}
