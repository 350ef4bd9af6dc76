//! `custody proxy resend`: sends part of a stream from the spool to Kafka once more.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use custody_journal::ship;
use custody_schemas::id::StreamId;

use crate::ConfigFile;
use crate::config::Config;
use crate::serve::journal::{DESK, EDGE};

/// Which part of which stream.
#[derive(clap::Args)]
pub struct Resend {
    #[command(flatten)]
    file: ConfigFile,
    /// The stream, as events name it: writer/run.
    #[arg(long)]
    stream: String,
    /// The first event's number in it.
    #[arg(long, value_name = "SEQ")]
    from: u64,
    /// The last event's number.
    #[arg(long, value_name = "SEQ")]
    to: u64,
    /// How long Kafka has to acknowledge all of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

/// Runs the command.
pub fn run(command: &Resend) -> anyhow::Result<ExitCode> {
    let (config, kafka) = command.file.load_for_kafka("custody proxy resend")?;
    anyhow::ensure!(
        command.from <= command.to,
        "--from {} comes after --to {}: name the first event, then the last",
        command.from,
        command.to
    );
    let stream: StreamId = command.stream.parse().context("--stream names no stream")?;
    let what = ship::Resend {
        dir: folder(&config, &stream),
        seqs: command.from..=command.to,
        patience: Duration::from_secs(command.wait),
        stream,
    };
    let sent = ship::resend(&what, &kafka.settings)?;
    let mut out = std::io::stdout().lock();
    let Some((first, last)) = sent.found else {
        writeln!(out, "The spool has nothing of {} between these numbers any more.", what.stream)?;
        return Ok(ExitCode::FAILURE);
    };
    writeln!(
        out,
        "Sent again and acknowledged: {} events ({first} to {last}), {} checkpoints, {} chunks of bodies.",
        sent.events, sent.checkpoints, sent.chunks
    )?;
    Ok(if sent.events == command.to - command.from + 1 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where the writer's spool is: with the proxies' unless only a query service has it.
fn folder(config: &Config, stream: &StreamId) -> PathBuf {
    let of_desk = config.deployment.data.join(DESK.folder);
    if of_desk.join(stream.writer()).is_dir() {
        return of_desk;
    }
    config.deployment.data.join(EDGE.folder)
}
