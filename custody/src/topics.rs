//! `custody topics`: makes the topics of a deployment on Kafka and checks them.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Subcommand;
use custody_journal::kafka::{self, Problem};
use serde_json::json;

use crate::ConfigFile;
use crate::serve::block_on;

/// `custody topics …`
#[derive(Subcommand)]
pub enum TopicsCommand {
    /// Makes those that are not there, then checks all of them; changes none that exists.
    ///
    /// Exit codes: 0 everything is as it has to be, 1 something is not, 64 wrong configuration.
    #[command(
        after_help = "Examples:\n  custody topics create\n  custody topics create -c /etc/custody/custody.toml --json"
    )]
    Create(Options),
    /// Says what is wrong with the topics and how to mend it; changes nothing.
    ///
    /// Exit codes: 0 everything is as it has to be, 1 something is not, 64 wrong configuration.
    #[command(
        after_help = "Examples:\n  custody topics check\n  custody topics check -c /etc/custody/custody.toml --json"
    )]
    Check(Options),
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
pub fn run(command: TopicsCommand) -> anyhow::Result<ExitCode> {
    match command {
        TopicsCommand::Create(options) => block_on(create(options)),
        TopicsCommand::Check(options) => block_on(check(options)),
    }
}

async fn create(options: Options) -> anyhow::Result<ExitCode> {
    let (_, kafka) = options.file.load_for_kafka("custody topics create")?;
    let report = kafka::create(&kafka.settings).await?;
    if options.json {
        let problems: Vec<_> = report.problems.iter().map(object).collect();
        let (created, existing) = (&report.created, &report.existing);
        print(
            &json!({"created": created, "existing": existing, "problems": problems}).to_string(),
        )?;
    } else {
        report.created.iter().try_for_each(|name| print(&format!("made     {name}")))?;
        report.existing.iter().try_for_each(|name| print(&format!("is there {name}")))?;
        tell(&report.problems)?;
    }
    Ok(code(&report.problems))
}

async fn check(options: Options) -> anyhow::Result<ExitCode> {
    let (_, kafka) = options.file.load_for_kafka("custody topics check")?;
    let problems = kafka::check(&kafka.settings).await?;
    if options.json {
        let told: Vec<_> = problems.iter().map(object).collect();
        print(&json!({ "problems": told }).to_string())?;
    } else {
        tell(&problems)?;
    }
    Ok(code(&problems))
}

fn object(problem: &Problem) -> serde_json::Value {
    json!({"topic": problem.topic, "what": problem.what, "fix": problem.fix})
}

fn tell(problems: &[Problem]) -> anyhow::Result<()> {
    if problems.is_empty() {
        return print("The topics are as they have to be.");
    }
    let plural = if problems.len() == 1 { "problem" } else { "problems" };
    print(&format!("{} {plural}:", problems.len()))?;
    problems.iter().try_for_each(|problem| {
        print(&format!("  {}: {}\n    {}", problem.topic, problem.what, problem.fix))
    })
}

fn code(problems: &[Problem]) -> ExitCode {
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
