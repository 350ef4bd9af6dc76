//! Kafka away for as long as one likes, while calls pass.

use std::time::Duration;

/// How long.
#[derive(clap::Args)]
pub struct Options {
    /// Seconds for which the broker is away.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

/// Lets it be away and prints what was seen; an error is a promise that was broken.
#[expect(clippy::print_stdout, reason = "the line is the command's result")]
pub async fn run(options: Options) -> anyhow::Result<()> {
    println!("{}", custody_tests::outage::run(Duration::from_secs(options.seconds)).await?);
    Ok(())
}
