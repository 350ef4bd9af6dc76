//! `custody evidence export` and `custody evidence challenge`: the service makes the package, here
//! it is written to disk and looked at.

use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use custody_lake::evidence::{Judged, Trust};

use super::{head, judge};
use crate::ask::Service;
use crate::verify::{grouped, time};

/// While the service is at work, this often a line says so.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a package opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Population {
    /// Every event about protected health information.
    #[default]
    Full,
    /// Those that the filter cites; how many there are is proven, that the filter left none out is
    /// not.
    Flags,
}

/// `custody evidence …`
#[derive(Subcommand)]
pub enum EvidenceCommand {
    /// Makes a package of a period: report, records, and the proof that none was left out.
    ///
    /// It is checked as `custody verify` would check it before it leaves, and that it left is
    /// itself recorded. It holds what is sealed: the most recent seconds are not in it.
    #[command(
        after_help = "Examples:\n  custody evidence export --from 2026-01-01 --to 2026-03-31 -o q1.evidence\n  custody evidence export --from 2026-01-01 --to 2026-03-31 --population flags --patient synthetic-7 -o p7.evidence\n  custody verify q1.evidence --root root.vkey"
    )]
    Export {
        /// First day or moment (a date means a day in the service's time zone).
        #[arg(long)]
        from: String,
        /// Last day, included, or moment, excluded.
        #[arg(long)]
        to: String,
        /// What is opened; `flags` needs a filter.
        #[arg(long, value_enum, default_value_t)]
        population: Population,
        /// Only calls of this user.
        #[arg(long)]
        user: Option<String>,
        /// Only calls of this agent.
        #[arg(long)]
        agent: Option<String>,
        /// Only calls about this patient.
        #[arg(long)]
        patient: Option<String>,
        /// Only calls of this tool.
        #[arg(long)]
        tool: Option<String>,
        #[command(flatten)]
        making: Making,
    },
    /// Opens a random sample of all events of a period, which you draw by a word that nobody could
    /// know before.
    ///
    /// Drawn are the events whose leaf data, hashed with the word, come first: whoever makes the
    /// package cannot choose. Name a package that you already have, and the sample is of its period,
    /// and the log must have grown from that package's.
    #[command(
        after_help = "Examples:\n  custody evidence challenge q1.evidence --seed \"4 1 6 6 2 5\" -o q1-sample.evidence\n  custody evidence challenge --from 2026-01-01 --to 2026-03-31 --seed \"4 1 6 6 2 5\" --count 500 -o sample.evidence"
    )]
    Challenge {
        /// A package of the period.
        #[arg(value_name = "FILE", conflicts_with_all = ["from", "to"], required_unless_present_all = ["from", "to"])]
        package: Option<PathBuf>,
        /// First day or moment.
        #[arg(long)]
        from: Option<String>,
        /// Last day, included, or moment, excluded.
        #[arg(long)]
        to: Option<String>,
        /// Your word: dice, a headline of today.
        #[arg(long)]
        seed: String,
        /// How many events are drawn, at most 10,000.
        #[arg(long, default_value_t = 100)]
        count: u32,
        #[command(flatten)]
        making: Making,
    },
}

/// How a package is asked for.
#[derive(clap::Args)]
pub struct Making {
    /// What for; stands in the package.
    #[arg(long)]
    purpose: Option<String>,
    /// Where the package goes.
    #[arg(long, short = 'o', value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    service: Service,
}

/// Runs the command.
pub async fn run(command: EvidenceCommand) -> anyhow::Result<ExitCode> {
    match command {
        EvidenceCommand::Export { from, to, population, user, agent, patient, tool, making } => {
            let population = (population == Population::Flags).then(|| "flags".to_owned());
            let parameters = [
                ("from", Some(&from)),
                ("to", Some(&to)),
                ("population", population.as_ref()),
                ("user", user.as_ref()),
                ("agent", agent.as_ref()),
                ("patient", patient.as_ref()),
                ("tool", tool.as_ref()),
            ];
            making.make(&parameters, &Trust::default()).await?;
        }
        EvidenceCommand::Challenge { package, from, to, seed, count, making } => {
            let (from, to, trust) = match &package {
                Some(package) => of(package)?,
                None => (from.unwrap_or_default(), to.unwrap_or_default(), Trust::default()),
            };
            let count = count.to_string();
            let parameters = [
                ("from", Some(&from)),
                ("to", Some(&to)),
                ("seed", Some(&seed)),
                ("count", Some(&count)),
            ];
            let judged = making.make(&parameters, &trust).await?;
            let mut out = std::io::stdout().lock();
            writeln!(
                out,
                "drawn {}, opened {}",
                grouped(judged.drawn),
                grouped(judged.drawn_opened)
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The period of a package, and its head.
fn of(package: &Path) -> anyhow::Result<(String, String, Trust)> {
    let judged = judge(package, &Trust::default())?;
    let trust = Trust { head: Some(head(package)?), ..Trust::default() };
    Ok((time(judged.from), time(judged.to), trust))
}

impl Making {
    /// Asks for it, writes it, and looks at it.
    async fn make(
        &self,
        parameters: &[(&str, Option<&String>)],
        trust: &Trust,
    ) -> anyhow::Result<Judged> {
        let mut parameters = parameters.to_vec();
        parameters.push(("purpose", self.purpose.as_ref()));
        let output = &self.output;
        let cannot = || format!("cannot write {}", output.display());
        // So that no half of a package lies under its name.
        let mut part = output.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut file = File::create(&part).with_context(cannot)?;
        let fetched = self.service.fetch("/v1/evidence", &parameters, &mut file);
        let fetched = patiently(fetched).await.and_then(|()| Ok(file.sync_all()?));
        if let Err(error) = fetched {
            drop(std::fs::remove_file(&part));
            return Err(error);
        }
        std::fs::rename(&part, output).with_context(cannot)?;
        let judged = judge(output, trust)?;
        if let Some(finding) = judged.findings.first() {
            bail!("{}: {}: {}", output.display(), finding.place, finding.problem);
        }
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{}: {} bytes, {} records, {} accesses",
            output.display(),
            grouped(std::fs::metadata(output)?.len()),
            grouped(judged.opened),
            grouped(judged.accesses)
        )?;
        writeln!(out, "check it with: custody verify {} --root VKEY", output.display())?;
        Ok(judged)
    }
}

/// Says from time to time that the work goes on.
async fn patiently<T>(work: impl Future<Output = T>) -> T {
    let (mut work, since) = (pin!(work), Instant::now());
    loop {
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
            return done;
        }
        let mut stderr = std::io::stderr().lock();
        drop(writeln!(
            stderr,
            "the service has been making the package for {} s",
            since.elapsed().as_secs()
        ));
    }
}
