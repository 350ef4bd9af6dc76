//! `custody`: one binary, one subcommand for each part. It reads the configuration, connects the
//! parts and holds no logic of its own.
//!
//! Exit codes: 0 done · 1 failed · 3 the answer is incomplete (`report --strict`) · 64 wrong
//! usage or configuration.

#[cfg(feature = "query")]
mod ask;
mod config;
#[cfg(feature = "demo")]
mod demo;
#[cfg(feature = "query")]
mod http;
mod serve;
mod token;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use config::{Config, Mistakes};

/// Wrong usage or configuration (sysexits.h: EX_USAGE).
const EXIT_USAGE: u8 = 64;

#[derive(Parser)]
#[command(
    name = "custody",
    version,
    about = "An unbroken, provable chain of custody for everything AI agents do with your data",
    after_help = "Begin with:\n  custody demo            a synthetic record, agents, and the PHI-access report\n  custody up              proxy, ingest and query in one process\n\nExit codes: 0 done, 1 failed, 3 incomplete (report --strict), 64 wrong usage or configuration"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A synthetic EHR, agents that call it through the proxy, and the PHI-access report.
    ///
    /// Needs no configuration and no network. Everything is kept in a temporary folder unless
    /// --data names one.
    #[cfg(feature = "demo")]
    #[command(
        after_help = "Examples:\n  custody demo\n  custody demo --once\n  custody demo --data ./demo-data"
    )]
    Demo(demo::Options),
    /// Proxy, ingest and query in one process; journal and lake on local disk unless configured.
    #[cfg(all(feature = "proxy", feature = "ingest", feature = "query"))]
    #[command(
        after_help = "Examples:\n  custody up\n  custody up -c /etc/custody/custody.toml\n  CUSTODY__PROXY__LISTEN=127.0.0.1:7500 custody up"
    )]
    Up(ConfigFile),
    /// Asks a question in SQL; the question is itself recorded.
    #[cfg(feature = "query")]
    #[command(
        after_help = "Examples:\n  custody sql \"SELECT agent_id, count(*) FROM calls GROUP BY 1\"\n  custody sql --format csv \"SELECT * FROM phi_access\" > access.csv\n  custody sql \"SELECT table_name, column_name, meaning FROM columns\""
    )]
    Sql(ask::Sql),
    /// Makes a report.
    #[cfg(feature = "query")]
    #[command(
        after_help = "Examples:\n  custody report phi-access --from 2026-01-01 --to 2026-03-31\n  custody report phi-access --from 2026-01-01 --to 2026-03-31 --patient synthetic-001 --format csv"
    )]
    Report(ask::Report),
    /// Makes bearer tokens and agents' keys.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Checks a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum TokenCommand {
    /// A new token; only its hash goes into the configuration.
    #[command(
        after_help = "Examples:\n  custody token create\n  custody token create --name compliance --json"
    )]
    Create {
        /// Who will hold it.
        #[arg(long, default_value = "token")]
        name: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Reports every mistake with its line; exit code 64 when there is one.
    #[command(
        after_help = "Examples:\n  custody config check\n  custody config check -c /etc/custody/custody.toml"
    )]
    Check(ConfigFile),
}

/// Which configuration to use.
#[derive(clap::Args, Clone, Debug)]
struct ConfigFile {
    /// The configuration file; without it ./custody.toml if there is one, else the defaults.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Mistakes> {
        let standard = PathBuf::from("custody.toml");
        match &self.file {
            Some(file) => Config::load(file, std::env::vars()),
            None if standard.exists() => Config::load(&standard, std::env::vars()),
            None => Config::parse("", std::env::vars())
                .map_err(|mistakes| Mistakes { file: "the environment".into(), mistakes }),
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let wrong = error.use_stderr();
            drop(error.print());
            return if wrong { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            let mut stderr = std::io::stderr().lock();
            drop(writeln!(stderr, "custody: {error:#}"));
            let usage = error.downcast_ref::<Mistakes>().is_some();
            ExitCode::from(if usage { EXIT_USAGE } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(options) => serve::block_on(demo::run(options)),
        #[cfg(all(feature = "proxy", feature = "ingest", feature = "query"))]
        Command::Up(file) => serve::role(file.load()?, serve::up::start),
        #[cfg(feature = "query")]
        Command::Sql(question) => serve::block_on(ask::sql(question)),
        #[cfg(feature = "query")]
        Command::Report(question) => serve::block_on(ask::report(question)),
        Command::Token(TokenCommand::Create { name, json }) => create_token(&name, json),
        Command::Config(ConfigCommand::Check(file)) => check(&file),
    }
}

fn create_token(name: &str, json: bool) -> anyhow::Result<ExitCode> {
    let (token, hash) = token::create();
    let mut out = std::io::stdout().lock();
    if json {
        let line = serde_json::json!({"name": name, "token": token, "hash": hash});
        writeln!(out, "{line}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "token   {token}")?;
    writeln!(out, "hash    {hash}\n")?;
    writeln!(out, "The token is shown this once. The configuration holds only its hash:")?;
    writeln!(out, "  for people and tools   [query]  tokens = [\"{name}={hash}\"]")?;
    writeln!(out, "  for an agent           [[key]]  hash = \"{hash}\"  agent = \"{name}\"")?;
    Ok(ExitCode::SUCCESS)
}

fn check(file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let config = file.load()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "The configuration is valid.")?;
    for (what, says) in config.summary() {
        writeln!(out, "  {what:<11} {says}")?;
    }
    Ok(ExitCode::SUCCESS)
}
