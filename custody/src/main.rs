//! `custody`: one binary, one subcommand for each part. It reads the configuration, connects the
//! parts and holds no logic of its own.
//!
//! Exit codes: 0 done · 1 failed · 3 the answer is incomplete (`report --strict`) · 64 wrong
//! usage or configuration.

#![cfg_attr(
    not(feature = "demo"),
    allow(
        dead_code,
        reason = "all roles share one configuration; a build of some reads some of it"
    )
)]

#[cfg(feature = "query")]
mod ask;
mod config;
#[cfg(feature = "proxy")]
mod connect;
#[cfg(feature = "demo")]
mod demo;
#[cfg(any(feature = "ingest", feature = "query"))]
mod evidence;
#[cfg(feature = "query")]
mod http;
mod keys;
mod metrics;
mod outbound;
#[cfg(feature = "proxy")]
mod resend;
mod serve;
mod telemetry;
mod token;
#[cfg(feature = "query")]
mod tools;
mod topics;
#[cfg(any(feature = "ingest", feature = "query"))]
mod verify;
mod witness;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use config::{Config, Kafka, Mistakes};

/// Wrong usage or configuration (sysexits.h: EX_USAGE).
const EXIT_USAGE: u8 = 64;

#[derive(Parser)]
#[command(
    name = "custody",
    version,
    about = "An unbroken, provable chain of custody for everything AI agents do with your data",
    after_help = "Begin with:\n  custody demo            a synthetic record, agents, and the PHI-access report\n  custody up              proxy, ingest and query in one process\n\nApart, with Kafka between them and an object store below:\n  custody topics create   once for each deployment\n  custody keys add NAME   once for each process that records\n  custody proxy           one for each place where agents are\n  custody ingest          as many as there is work, at most one for each partition\n  custody query           one for each place where people ask\n\nExit codes: 0 done, 1 failed, 3 incomplete (report --strict), 64 wrong usage or configuration"
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
    /// The proxy alone; what it records goes to Kafka.
    ///
    /// Its spool keeps everything until Kafka has acknowledged it. On a stop, calls in flight are
    /// ended, the stream is closed and signed, and the spool is shipped; what could not be shipped
    /// in time stays and goes at the next start.
    #[cfg(feature = "proxy")]
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  custody proxy -c /etc/custody/custody.toml\n  CUSTODY__DEPLOYMENT__WRITER=edge-2 custody proxy\n  custody proxy resend --stream edge-1/0199… --from 0 --to 5000"
    )]
    Proxy {
        #[command(flatten)]
        file: ConfigFile,
        #[command(subcommand)]
        action: Option<ProxyCommand>,
    },
    /// An MCP server on standard input and output that is the server at URL: for clients that only
    /// start programs.
    ///
    /// The agent's key is taken from the environment variable CUSTODY_KEY. Everything passes the
    /// proxy at URL, which records it. Ends when its input is closed.
    #[cfg(feature = "proxy")]
    #[command(
        after_help = "Examples:\n  CUSTODY_KEY=… custody connect http://127.0.0.1:7400/servers/ehr/mcp\n  custody connect --key-env EHR_KEY --ca /etc/custody/ca.pem https://proxy.example/servers/ehr/mcp\n\nIn a client's configuration:\n  { \"command\": \"custody\", \"args\": [\"connect\", \"http://127.0.0.1:7400/servers/ehr/mcp\"],\n    \"env\": { \"CUSTODY_KEY\": \"…\" } }"
    )]
    Connect(connect::Connect),
    /// One ingest worker alone: from Kafka into the lake, exactly once.
    ///
    /// Workers of one group share the partitions; more of them may come and go at any time.
    #[cfg(feature = "ingest")]
    #[command(
        after_help = "Examples:\n  custody ingest -c /etc/custody/custody.toml\n  CUSTODY__INGEST__LISTEN=127.0.0.1:7471 custody ingest"
    )]
    Ingest(ConfigFile),
    /// One query service alone: the lake, and the tail of Kafka that is not in it yet.
    #[cfg(feature = "query")]
    #[command(
        after_help = "Examples:\n  custody query -c /etc/custody/custody.toml\n  CUSTODY__DEPLOYMENT__WRITER=query-2 CUSTODY__QUERY__LISTEN=127.0.0.1:7481 custody query"
    )]
    Query(ConfigFile),
    /// Makes the topics on Kafka and checks them.
    #[command(subcommand)]
    Topics(topics::TopicsCommand),
    /// Lists those who may record, where the root key is.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
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
    /// Makes evidence packages for auditors.
    #[cfg(feature = "query")]
    #[command(subcommand)]
    Evidence(evidence::EvidenceCommand),
    /// Checks that a package or a lake is what its writers have signed; needs no running part.
    ///
    /// Exit codes: 0 valid · 1 invalid · 3 incomplete · 64 wrong usage.
    #[cfg(any(feature = "ingest", feature = "query"))]
    #[command(
        after_help = "Examples:\n  custody verify q1.evidence --root root.vkey --head head-of-march\n  custody verify --lake ./custody-data/lake\n  custody verify --lake s3://records/custody -c custody.toml --root audit.example/root+1a2b3c4d+AT…\n  custody verify --lake ./lake --head head-of-march --save-head head-of-april"
    )]
    Verify(verify::Verify),
    /// A witness: cosigns a log only if it has grown out of what it saw last.
    ///
    /// For auditors, and for anybody whom the operator of the log does not command. It needs no
    /// configuration, keeps one small file for each log, and learns sizes and hashes only.
    #[command(
        after_help = "Examples:\n  custody witness --data ./witness --name auditor.example/w1 --log audit.example+1a2b3c4d+AT…\n  custody witness --data ./witness --log log.vkey --listen 0.0.0.0:7490\n\nThe operator's side: the line that it prints goes into the file that witness.policy names."
    )]
    Witness(witness::Witness),
    /// Shows what tools the servers offer, how their definitions have changed, and approves changes.
    #[cfg(feature = "query")]
    #[command(
        after_help = "Examples:\n  custody tools list --changed\n  custody tools diff ehr search\n  custody tools approve ehr search --definition 9f2c…"
    )]
    Tools(tools::Tools),
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

#[cfg(feature = "proxy")]
#[derive(Subcommand)]
enum ProxyCommand {
    /// Sends part of a stream from the spool to Kafka once more; always safe.
    ///
    /// What is stored already is recognised and dropped. Shipped segments stay in the spool for 72
    /// hours unless its disk needs the room.
    #[command(
        after_help = "Examples:\n  custody proxy resend --stream edge-1/0199e0a4-… --from 0 --to 5000\n  custody proxy resend -c custody.toml --stream edge-1/0199e0a4-… --from 120 --to 121"
    )]
    Resend(resend::Resend),
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

    /// The configuration of what works only with a journal on Kafka.
    fn load_for_kafka(&self, command: &str) -> Result<(Config, Kafka), Mistakes> {
        let config = self.load()?;
        if let Some(kafka) = config.journal.kafka.clone() {
            return Ok((config, kafka));
        }
        let text = format!(
            "`{command}` needs [journal] kind = \"kafka\" and brokers; `custody up` does all of it on local disk"
        );
        let file = self.file.clone().unwrap_or_else(|| "custody.toml".into());
        Err(Mistakes { file, mistakes: vec![config::Mistake { line: 0, text }] })
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
            drop(writeln!(stderr, "custody: {}", told(&error)));
            let usage = error.downcast_ref::<Mistakes>().is_some();
            ExitCode::from(if usage { EXIT_USAGE } else { 1 })
        }
    }
}

/// An error with its causes, each told once: many of ours tell their cause themselves.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(options) => serve::block_on(demo::run(options)),
        #[cfg(all(feature = "proxy", feature = "ingest", feature = "query"))]
        Command::Up(file) => serve::role("up", file.load()?, serve::up::start),
        #[cfg(feature = "proxy")]
        Command::Proxy { file, action: None } => {
            let (config, kafka) = file.load_for_kafka("custody proxy")?;
            serve::role("proxy", config, |config| serve::proxy::start(config, kafka))
        }
        #[cfg(feature = "proxy")]
        Command::Proxy { action: Some(ProxyCommand::Resend(resend)), .. } => resend::run(&resend),
        #[cfg(feature = "proxy")]
        Command::Connect(options) => serve::block_on(connect::run(options)),
        #[cfg(feature = "ingest")]
        Command::Ingest(file) => {
            let (config, kafka) = file.load_for_kafka("custody ingest")?;
            serve::role("ingest", config, |config| serve::ingest::start(config, kafka))
        }
        #[cfg(feature = "query")]
        Command::Query(file) => {
            let (config, kafka) = file.load_for_kafka("custody query")?;
            serve::role("query", config, |config| serve::query::start(config, kafka))
        }
        Command::Topics(command) => topics::run(command),
        Command::Keys(command) => keys::run(command),
        #[cfg(feature = "query")]
        Command::Sql(question) => serve::block_on(ask::sql(question)),
        #[cfg(feature = "query")]
        Command::Report(question) => serve::block_on(ask::report(question)),
        #[cfg(feature = "query")]
        Command::Evidence(command) => serve::block_on(evidence::run(command)),
        #[cfg(any(feature = "ingest", feature = "query"))]
        Command::Verify(options) => serve::block_on(verify::run(options)),
        Command::Witness(options) => witness::run(options),
        #[cfg(feature = "query")]
        Command::Tools(tools) => serve::block_on(tools::run(tools)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("connection refused").context("Kafka: connection refused");
        assert_eq!(told(&error), "Kafka: connection refused");
        let error = anyhow::anyhow!("connection refused").context("the proxy cannot start");
        assert_eq!(told(&error), "the proxy cannot start: connection refused");
    }

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
