//! `custody evidence`: packages for auditors, asked of the query service so that asking is
//! recorded; and what `custody verify FILE` says of one.

use std::io::Write as _;
use std::path::Path;
#[cfg(feature = "query")]
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
#[cfg(feature = "query")]
use clap::Subcommand;
use custody_lake::evidence::{Judged, check};
use serde_json::json;

#[cfg(feature = "query")]
use crate::ask::Service;
use crate::verify::{EXIT_INCOMPLETE, EXIT_INVALID, TOLD, grouped, time};

/// `custody evidence …`
#[cfg(feature = "query")]
#[derive(Subcommand)]
pub enum EvidenceCommand {
    /// Makes a package of a period: report, records, and the proof that none was left out.
    ///
    /// It is checked as `custody verify` would check it before it leaves, and that it left is
    /// itself recorded. It holds what is sealed: the most recent seconds are not in it.
    #[command(
        after_help = "Examples:\n  custody evidence export --from 2026-01-01 --to 2026-03-31 -o q1.evidence\n  custody verify q1.evidence --root root.vkey"
    )]
    Export {
        /// First day or moment (a date means a day in the service's time zone).
        #[arg(long)]
        from: String,
        /// Last day, included, or moment, excluded.
        #[arg(long)]
        to: String,
        /// What for; stands in the package.
        #[arg(long)]
        purpose: Option<String>,
        /// Where the package goes.
        #[arg(long, short = 'o', value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        service: Service,
    },
}

/// Runs the command.
#[cfg(feature = "query")]
pub async fn run(command: EvidenceCommand) -> anyhow::Result<ExitCode> {
    let EvidenceCommand::Export { from, to, purpose, output, service } = command;
    let package = service
        .get(
            "/v1/evidence",
            &[("from", Some(&from)), ("to", Some(&to)), ("purpose", purpose.as_ref())],
        )
        .await?;
    std::fs::write(&output, &package)
        .with_context(|| format!("cannot write {}", output.display()))?;
    let judged = check(&package, None)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} bytes, {} records, {} accesses",
        output.display(),
        grouped(package.len() as u64),
        grouped(judged.opened),
        grouped(judged.accesses)
    )?;
    writeln!(out, "check it with: custody verify {} --root VKEY", output.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Checks a package and says what was found.
pub fn verify(file: &Path, root: Option<&str>, as_json: bool) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let judged = check(&bytes, root)?;
    if as_json {
        tell_json(&judged)?
    } else {
        tell(&judged)?
    }
    Ok(ExitCode::from(match (judged.is_valid(), judged.is_complete()) {
        (false, _) => EXIT_INVALID,
        (true, false) => EXIT_INCOMPLETE,
        (true, true) => 0,
    }))
}

fn word(judged: &Judged) -> &'static str {
    match (judged.is_valid(), judged.is_complete()) {
        (false, _) => "invalid",
        (true, false) => "incomplete",
        (true, true) => "valid",
    }
}

fn tell(j: &Judged) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let pinned = if j.pinned { "yours" } else { "from the package itself: name yours with --root" };
    writeln!(out, "deployment  {}", j.deployment)?;
    writeln!(out, "root key    {} ({pinned})", j.root)?;
    let found = j.through.unwrap_or(j.to);
    writeln!(out, "period      requested {} to {}", time(j.from), time(j.to))?;
    writeln!(out, "            found     {} to {}", time(j.from), time(found))?;
    writeln!(
        out,
        "log         {} entries, {} checkpoints valid, {} streams",
        grouped(j.log_size),
        grouped(j.checkpoints),
        grouped(j.streams)
    )?;
    writeln!(out, "population  {} events, each under a checkpoint", grouped(j.population))?;
    writeln!(
        out,
        "records     {} of {} about protected health information opened",
        grouped(j.opened),
        grouped(j.flagged)
    )?;
    writeln!(out, "report      {} accesses, as they follow from the records", grouped(j.accesses))?;
    for (stream, seq) in j.missing.iter().take(TOLD) {
        writeln!(out, "MISSING     {stream} {seq}")?;
    }
    for finding in j.findings.iter().take(TOLD) {
        writeln!(out, "WRONG       {}: {}", finding.place, finding.problem)?;
    }
    let verdict = match (j.is_valid(), j.is_complete()) {
        (false, _) => "INVALID: the package is not what was signed",
        (true, false) => "INCOMPLETE: what is there is what was signed, but not all of it is there",
        (true, true) => {
            "VALID: these are all events of the period, and all that are flagged are here"
        }
    };
    writeln!(out, "{verdict}")?;
    Ok(())
}

fn tell_json(j: &Judged) -> anyhow::Result<()> {
    let findings: Vec<_> =
        j.findings.iter().map(|f| json!({"place": f.place, "problem": f.problem})).collect();
    let missing: Vec<_> =
        j.missing.iter().map(|(stream, seq)| json!({"stream": stream, "seq": seq})).collect();
    let object = json!({
        "verdict": word(j), "deployment": j.deployment,
        "root": j.root, "root_pinned": j.pinned, "from": j.from, "to": j.to,
        "through": j.through, "log_size": j.log_size, "streams": j.streams,
        "checkpoints": j.checkpoints, "population": j.population, "flagged": j.flagged,
        "opened": j.opened, "missing": missing, "accesses": j.accesses, "findings": findings,
    });
    writeln!(std::io::stdout().lock(), "{object}")?;
    Ok(())
}
