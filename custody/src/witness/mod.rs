//! `custody witness`: a witness that an auditor runs, or anybody whom the operator does not command.
//!
//! It keeps the newest checkpoint of each log that it knows, and cosigns only one that has grown out
//! of it (C2SP tlog-witness). What it has cosigned is on its disk before it says so, so a log cannot
//! show it an older state after a crash either. It learns sizes and hashes, nothing of what is
//! recorded.

mod server;
mod store;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use custody_schemas::seal::key;
use custody_schemas::seal::witness::Logs;

use crate::serve::process::{Part, Process, listen};
use crate::serve::{block_on, until_stopped};
use crate::telemetry;

use store::Store;

/// `custody witness …`
#[derive(clap::Args)]
pub struct Witness {
    /// Folder of the witness's key and of what it has seen; made if it is not there.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The public key of a log (`name+id+key`), or a file with one on each line; may be repeated.
    #[arg(long, value_name = "VKEY|FILE", required = true)]
    log: Vec<String>,
    /// The witness's name, as a URL without a scheme; needed at the first start only.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where logs submit their checkpoints.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7490")]
    listen: SocketAddr,
}

/// Runs the command.
pub fn run(options: Witness) -> anyhow::Result<ExitCode> {
    telemetry::start(None)?;
    block_on(async {
        let process = start(options).await?;
        process.announce()?;
        process.run(until_stopped()).await
    })
}

async fn start(options: Witness) -> anyhow::Result<Process> {
    let logs = logs(&options.log)?;
    let store = Store::open(&options.data, options.name.as_deref())?;
    let listener = listen(options.listen, "--listen").await?;
    let address = listener.local_addr()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "key {}", store.cosigner().vkey())?;
    writeln!(out, "line in a policy: witness NAME {} http://{address}", store.cosigner().vkey())?;
    drop(out);
    let mut process = Process::default();
    process.listens("witness", address);
    let serving = Arc::new(server::Server::new(logs, store));
    process.then(Part::start("witness", |stop| async move {
        server::serve(listener, serving, stop).await;
        Ok(())
    }));
    Ok(process)
}

/// The keys of each log by its name.
fn logs(given: &[String]) -> anyhow::Result<Logs> {
    let mut logs = Logs::new();
    for given in given {
        let text = match std::fs::read_to_string(given) {
            Ok(text) => text,
            Err(_) if given.contains('+') => given.clone(),
            Err(error) => bail!("{given} is neither a key nor a file that can be read: {error}"),
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            key::check(line).with_context(|| format!("{line:?} is no log's key"))?;
            let name = line.split('+').next().unwrap_or_default().to_owned();
            let keys = logs.entry(name).or_default();
            if !keys.iter().any(|known| known == line) {
                keys.push(line.to_owned());
            }
        }
    }
    if logs.is_empty() {
        bail!("no log's key was given: `custody keys export log` prints it");
    }
    Ok(logs)
}
