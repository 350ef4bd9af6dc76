//! Kills and faults for as long as one likes, in a cluster under load, or in one process.

use custody_tests::havoc::{self, Told};

/// How many.
#[derive(clap::Args)]
pub struct Options {
    /// Kills in all.
    #[arg(long, default_value_t = 1_000)]
    kills: u32,
    /// Kills after which everything is checked and a new cluster is begun.
    #[arg(long, default_value_t = 50)]
    round: u32,
    /// Kills one process that is everything, on local disk, instead of the parts of a cluster.
    #[arg(long)]
    alone: bool,
    /// What everything is drawn from; any if it is not named.
    #[arg(long)]
    seed: Option<u64>,
}

/// Kills, checks, prints a line for each round; an error is a promise that was broken.
#[expect(clippy::print_stdout, reason = "the lines are the command's result")]
pub async fn run(options: Options) -> anyhow::Result<()> {
    let first = options.seed.unwrap_or_else(|| rand::random::<u64>() >> 16);
    let mut all = Told::default();
    let rounds = options.kills.div_ceil(options.round.max(1));
    for seed in first..first + u64::from(rounds) {
        println!("seed {seed}");
        let told = match options.alone {
            true => havoc::alone::run(seed, options.round).await?,
            false => havoc::cluster::run(seed, options.round).await?,
        };
        println!("{told}");
        all.add(&told);
    }
    println!("\nin all: {all}");
    Ok(())
}
