//! `custody keys`: who may record, signed by the deployment's root key.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use custody_journal::keys::Keys;
use custody_schemas::seal::keyring::{Keyring, WriterKey};
use serde_json::json;

use crate::ConfigFile;
use crate::config::Config;
use crate::serve::journal::control;

/// `custody keys …`
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Puts a writer on the keyring; run it where the root key is.
    ///
    /// Without --vkey the writer's key is made in the folder of keys, unless it is there, to be
    /// given to that process. The first enrolment of a deployment makes the root key, too. A key
    /// that the writer had before is closed. Doing it twice changes nothing.
    #[command(
        after_help = "Examples:\n  custody keys enrol edge-2\n  custody keys enrol edge-2 --vkey audit.example/edge-2+1a2b3c4d+AT…\n  custody keys enrol query-1 -c /etc/custody/custody.toml --json"
    )]
    Enrol {
        /// The writer, as its process has it in the setting `deployment.writer`.
        name: String,
        /// Its public key, if its private key is somewhere else.
        #[arg(long)]
        vkey: Option<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Shows the keyring after checking its signature.
    #[command(after_help = "Examples:\n  custody keys list\n  custody keys list --json")]
    List(Options),
}

/// Which deployment, and how it is told.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(command: KeysCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeysCommand::Enrol { name, vkey, options } => enrol(&name, vkey.as_deref(), &options),
        KeysCommand::List(options) => list(&options),
    }
}

fn enrol(name: &str, vkey: Option<&str>, options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.file.load()?;
    let keys = keys(&config);
    let control = control(&config, None)?;
    let ring = match vkey {
        Some(vkey) => keys.enrol_vkey(&control, name, vkey)?,
        None => keys.enrol(&control, &keys.writer(name)?)?,
    };
    if options.json {
        return show_json(&ring);
    }
    let entered = ring.writers.iter().rev().find(|key| key.name == name && key.until.is_none());
    let entered =
        entered.context("the keyring has lost the writer again: run the command again")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{name} is on the keyring, edition {}", ring.edition)?;
    writeln!(out, "  key   {}", entered.vkey)?;
    if vkey.is_none() {
        let file = config.deployment.keys.join(format!("{name}.key"));
        writeln!(out, "  file  {}", file.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.file.load()?;
    let ring = keys(&config).ring(&control(&config, None)?)?.unwrap_or_default();
    if options.json {
        return show_json(&ring);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} writers, edition {}", ring.writers.len(), ring.edition)?;
    for key in &ring.writers {
        writeln!(out, "  {:<9} {}  {}", state(key), key.name, key.vkey)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn keys(config: &Config) -> Keys {
    Keys::new(&config.deployment.keys, &config.deployment.name)
}

fn state(key: &WriterKey) -> &'static str {
    match (key.retired, key.until) {
        (true, _) => "retired",
        (false, Some(_)) => "closed",
        (false, None) => "in force",
    }
}

fn show_json(ring: &Keyring) -> anyhow::Result<ExitCode> {
    let writer = |key: &WriterKey| {
        let (from, until) = (key.from.get(), key.until.map(|until| until.get()));
        json!({"name": key.name, "vkey": key.vkey, "from": from, "until": until, "retired": key.retired})
    };
    let writers: Vec<_> = ring.writers.iter().map(writer).collect();
    let object =
        json!({"edition": ring.edition, "deployment": ring.deployment, "writers": writers});
    writeln!(std::io::stdout().lock(), "{object}")?;
    Ok(ExitCode::SUCCESS)
}
