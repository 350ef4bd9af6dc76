//! `custody keys`: who may record, signed by the deployment's root key.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use custody_journal::keys::{Keys, SignedRing};
use custody_schemas::id::Micros;
use custody_schemas::seal::keyring::{Keyring, WriterKey};
use serde_json::json;

use crate::ConfigFile;
use crate::config::Config;
use crate::serve::journal::control;

/// `custody keys …`
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Makes the root key and the log's key, where they are not there, and says what to keep where.
    ///
    /// The first `custody up` does the same by itself. Doing it twice changes nothing.
    #[command(
        after_help = "Examples:\n  custody keys init\n  custody keys init -c /secure/custody.toml --json"
    )]
    Init(Options),
    /// Shows the keyring after checking its signature.
    #[command(after_help = "Examples:\n  custody keys list\n  custody keys list --json")]
    List(Options),
    /// Puts a writer on the keyring and closes every other key of it; run it where the root key is.
    ///
    /// Without --vkey the writer's key is made in the folder of keys, unless it is there, to be
    /// given to that process. The first one of a deployment makes the root key, too. It also ends a
    /// change of keys (see rotate), and takes a retired writer on again. Doing it twice changes
    /// nothing.
    #[command(
        visible_alias = "enrol",
        after_help = "Examples:\n  custody keys add edge-2\n  custody keys add edge-2 --vkey audit.example/edge-2+1a2b3c4d+AT…\n  custody keys add query-1 -c /etc/custody/custody.toml --json"
    )]
    Add(Named),
    /// Gives a writer a new key, which it takes into use at its next run; run it where the root key
    /// is.
    ///
    /// Both keys are in force until `custody keys add NAME` closes the old one: do that once `keys
    /// list` and the streams in the lake show that the new one is used. A running writer begins a
    /// new run every 24 hours, and at each start. Without --vkey the new key is NAME.next.key in the
    /// folder of keys; where the writer runs elsewhere, bring it there under that name.
    #[command(
        after_help = "Examples:\n  custody keys rotate edge-1\n  custody keys rotate edge-2 --vkey audit.example/edge-2+5e6f7a8b+AT…"
    )]
    Rotate(Named),
    /// Closes every key of a writer that will record no more; run it where the root key is, after
    /// the writer has stopped.
    ///
    /// What it signed before stays valid, what it might sign later is not. Answers do not wait for
    /// it any more.
    #[command(after_help = "Examples:\n  custody keys retire edge-2")]
    Retire {
        /// The writer.
        name: String,
        #[command(flatten)]
        options: Options,
    },
    /// Prints what auditors and witnesses are to be given; nothing of it is secret.
    #[command(
        after_help = "Examples:\n  custody keys export\n  custody keys export root > root.vkey\n  custody keys export log > log.vkey"
    )]
    Export {
        /// Only this, without a word around it.
        what: Option<Exported>,
        #[command(flatten)]
        options: Options,
    },
}

/// Which writer, with which key.
#[derive(clap::Args)]
pub struct Named {
    /// The writer, as its process has it in the setting `deployment.writer`.
    name: String,
    /// Its public key, if its private key is somewhere else.
    #[arg(long)]
    vkey: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// What is exported alone.
#[derive(Clone, Copy, ValueEnum)]
pub enum Exported {
    /// The root's public key: for auditors, to pin.
    Root,
    /// The public keys of the log: for witnesses.
    Log,
    /// The signed keyring.
    Keyring,
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
        KeysCommand::Init(options) => init(&options),
        KeysCommand::List(options) => list(&options),
        KeysCommand::Add(named) => add(&named),
        KeysCommand::Rotate(named) => rotate(&named),
        KeysCommand::Retire { name, options } => retire(&name, &options),
        KeysCommand::Export { what, options } => export(what, &options),
    }
}

/// The keys of the deployment that this configuration is of.
pub fn of(config: &Config) -> Keys {
    let keys = Keys::new(&config.deployment.keys, &config.deployment.name);
    keys.with_sources(config.deployment.signers.clone())
}

fn init(options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.file.load()?;
    let keys = of(&config);
    let control = control(&config, None)?;
    if !keys.has_root() && keys.signed_ring(&control)?.is_some() {
        bail!("this deployment has a root key, which is not here: run this where it is");
    }
    keys.enrol_log(&control)?;
    let signed = keys.signed_ring(&control)?.context("the keyring is not there: run it again")?;
    if options.json {
        return export_json(&signed);
    }
    let folder = config.deployment.keys.display().to_string();
    let mut out = std::io::stdout().lock();
    writeln!(out, "root key  {}", signed.root_vkey)?;
    writeln!(out, "log key   {}", signed.ring.of_log().join("\n          "))?;
    writeln!(out, "\nThe private keys are in {folder}:")?;
    writeln!(
        out,
        "  root.key  says who may record. Only `custody keys` needs it: keep it offline,"
    )?;
    writeln!(out, "            and a copy of it. Without it nobody can be taken on or retired.")?;
    writeln!(out, "  log.key   signs what ingest has verified: bring it to the ingest workers.")?;
    writeln!(out, "  root.vkey is public: give it to your auditors now, by hand.")?;
    writeln!(out, "Whoever holds all of them could write another history, unless somebody else")?;
    writeln!(out, "keeps heads of the log: an auditor, or a witness (`custody witness --help`).")?;
    Ok(ExitCode::SUCCESS)
}

fn add(named: &Named) -> anyhow::Result<ExitCode> {
    let config = named.options.file.load()?;
    let (keys, control) = (of(&config), control(&config, None)?);
    let vkey = match &named.vkey {
        Some(vkey) => vkey.clone(),
        None => {
            let next = keys.next(&control, &named.name)?;
            next.map_or_else(|| keys.writer(&named.name), Ok)?.vkey().to_owned()
        }
    };
    let ring = keys.add(&control, &named.name, &vkey)?;
    let file = named.vkey.is_none().then(|| format!("{}.key", named.name));
    entered(&config, named, &ring, &vkey, file)
}

fn rotate(named: &Named) -> anyhow::Result<ExitCode> {
    let config = named.options.file.load()?;
    let (keys, control) = (of(&config), control(&config, None)?);
    let ring = keys.rotate(&control, &named.name, named.vkey.as_deref())?;
    let newest = ring.writers.iter().rev().find(|key| key.name == named.name && in_force(key));
    let vkey = newest.context("the keyring has lost the writer again: run it again")?.vkey.clone();
    let file = named.vkey.is_none().then(|| format!("{}.next.key", named.name));
    entered(&config, named, &ring, &vkey, file)
}

fn entered(
    config: &Config,
    named: &Named,
    ring: &Keyring,
    vkey: &str,
    file: Option<String>,
) -> anyhow::Result<ExitCode> {
    if named.options.json {
        return show_json(ring);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} is on the keyring, edition {}", named.name, ring.edition)?;
    writeln!(out, "  key   {vkey}")?;
    if let Some(file) = file {
        let path = config.deployment.keys.join(file);
        if path.exists() {
            writeln!(out, "  file  {}", path.display())?;
        }
    }
    let of_name = ring.writers.iter().filter(|key| key.name == named.name && in_force(key));
    if of_name.count() > 1 {
        writeln!(out, "The key before it stays in force until `custody keys add {}`", named.name)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn retire(name: &str, options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.file.load()?;
    let ring = of(&config).retire(&control(&config, None)?, name)?;
    if options.json {
        return show_json(&ring);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{name} is retired, edition {}", ring.edition)?;
    Ok(ExitCode::SUCCESS)
}

fn list(options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.file.load()?;
    let ring = of(&config).ring(&control(&config, None)?)?.unwrap_or_default();
    if options.json {
        return show_json(&ring);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} writers, edition {}", ring.writers.len(), ring.edition)?;
    for key in ring.writers.iter().chain(&ring.log) {
        let since = time(key.from);
        let until = key.until.map_or_else(String::new, |until| format!(" to {}", time(until)));
        writeln!(out, "  {:<9} {}  {}  from {since}{until}", state(key), key.name, key.vkey)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn export(what: Option<Exported>, options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.file.load()?;
    let signed = of(&config).signed_ring(&control(&config, None)?)?;
    let signed = signed.context("there is no keyring yet: run `custody keys init`")?;
    if options.json {
        return export_json(&signed);
    }
    let mut out = std::io::stdout().lock();
    match what {
        Some(Exported::Root) => writeln!(out, "{}", signed.root_vkey)?,
        Some(Exported::Log) => {
            signed.ring.of_log().iter().try_for_each(|vkey| writeln!(out, "{vkey}"))?;
        }
        Some(Exported::Keyring) => write!(out, "{}", signed.note)?,
        None => {
            writeln!(out, "root key, for auditors (custody verify --root):")?;
            writeln!(out, "  {}", signed.root_vkey)?;
            writeln!(out, "keys of the log, for witnesses (custody witness --log):")?;
            signed.ring.of_log().iter().try_for_each(|vkey| writeln!(out, "  {vkey}"))?;
            writeln!(out, "keyring:\n{}", signed.note)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const fn in_force(key: &WriterKey) -> bool {
    !key.retired && key.until.is_none()
}

fn state(key: &WriterKey) -> &'static str {
    match (key.retired, key.until) {
        (true, _) => "retired",
        (false, Some(_)) => "closed",
        (false, None) => "in force",
    }
}

fn time(at: Micros) -> String {
    let at = i64::try_from(at.get()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(at).map_or_else(|_| at.to_string(), |at| at.to_string())
}

fn object(key: &WriterKey) -> serde_json::Value {
    let (from, until) = (key.from.get(), key.until.map(|until| until.get()));
    json!({"name": key.name, "vkey": key.vkey, "from": from, "until": until, "retired": key.retired})
}

fn ring_json(ring: &Keyring) -> serde_json::Value {
    let writers: Vec<_> = ring.writers.iter().map(object).collect();
    let log: Vec<_> = ring.log.iter().map(object).collect();
    json!({"edition": ring.edition, "deployment": ring.deployment, "writers": writers, "log": log})
}

fn show_json(ring: &Keyring) -> anyhow::Result<ExitCode> {
    writeln!(std::io::stdout().lock(), "{}", ring_json(ring))?;
    Ok(ExitCode::SUCCESS)
}

fn export_json(signed: &SignedRing) -> anyhow::Result<ExitCode> {
    let object = json!({
        "root": signed.root_vkey, "log": signed.ring.of_log(), "keyring": signed.note,
        "ring": ring_json(&signed.ring),
    });
    writeln!(std::io::stdout().lock(), "{object}")?;
    Ok(ExitCode::SUCCESS)
}
