//! `custody verify`: whether a lake or an evidence package is what its writers have signed. Needs
//! no running part and no network.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use custody_lake::verify::{self, Request, Verdict};
use serde_json::json;

use crate::{ConfigFile, evidence};

/// Not as it was signed.
pub const EXIT_INVALID: u8 = 1;
/// As it was signed, but not all of it is there.
pub const EXIT_INCOMPLETE: u8 = 3;
/// Findings that are told without --json.
pub const TOLD: usize = 20;
/// After this time it says how far it is, and as often.
const PATIENCE: Duration = Duration::from_secs(2);

/// `custody verify …`
#[derive(clap::Args)]
pub struct Verify {
    /// An evidence package.
    #[arg(value_name = "FILE", required_unless_present = "lake", conflicts_with = "lake")]
    package: Option<PathBuf>,
    /// A lake: a folder or a bucket, as `lake.url` in the configuration.
    #[arg(long, value_name = "URL")]
    lake: Option<String>,
    /// The root's public key, as you keep it (`name+id+key`), or a file that holds it.
    #[arg(long, value_name = "VKEY|FILE")]
    root: Option<String>,
    /// A head of the deployment log that you have kept: the log must have grown from it.
    #[arg(long, value_name = "FILE", requires = "lake")]
    head: Option<PathBuf>,
    /// Keep the log's present head in a file, for the next time.
    #[arg(long, value_name = "FILE", requires = "lake")]
    save_head: Option<PathBuf>,
    /// Compare bodies with their commitments, too.
    #[arg(long, requires = "lake")]
    bodies: bool,
    #[command(flatten)]
    file: ConfigFile,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(options: Verify) -> anyhow::Result<ExitCode> {
    if let Some(package) = &options.package {
        return evidence::verify(package, root(&options).as_deref(), options.json);
    }
    let url = options.lake.clone().context("name a package, or a lake with --lake")?;
    let request = request(&options)?;
    let shown = Mutex::new((Instant::now(), false));
    let progress = |done, all| show(&shown, done, all);
    let verdict = verify::lake(&url, &request, &progress).await?;
    if let Some(path) = &options.save_head
        && verdict.is_valid()
    {
        let seals = custody_lake::Lake::seals_at(&url, &request.storage)?;
        let head = seals.text("log/checkpoint").await?.context("the log has no head")?;
        std::fs::write(path, head).with_context(|| path.display().to_string())?;
    }
    if options.json {
        tell_json(&verdict)?
    } else {
        tell(&verdict)?
    }
    Ok(ExitCode::from(match (verdict.is_valid(), verdict.is_complete()) {
        (false, _) => EXIT_INVALID,
        (true, false) => EXIT_INCOMPLETE,
        (true, true) => 0,
    }))
}

fn request(options: &Verify) -> anyhow::Result<Request> {
    let config = options.file.load()?;
    let head = options
        .head
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| path.display().to_string()));
    Ok(Request {
        storage: config.lake.storage.0.into_iter().collect(),
        root: root(options),
        head: head.transpose()?,
        bodies: options.bodies,
    })
}

/// The root's key, as it was given or as it stands in the file that was.
fn root(options: &Verify) -> Option<String> {
    let given = options.root.as_ref()?;
    Some(
        std::fs::read_to_string(given)
            .map_or_else(|_| given.clone(), |text| text.trim().to_owned()),
    )
}

/// A bar on a terminal, plain lines otherwise, once it takes long.
fn show(shown: &Mutex<(Instant, bool)>, done: u64, all: u64) {
    let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut stderr = std::io::stderr().lock();
    let terminal = stderr.is_terminal();
    if done == all && shown.1 && terminal {
        drop(writeln!(stderr, "\r{all} of {all} files"));
    } else if shown.0.elapsed() >= PATIENCE {
        *shown = (Instant::now(), true);
        let (begin, end) = if terminal { ("\r", "") } else { ("", "\n") };
        drop(write!(stderr, "{begin}{done} of {all} files{end}"));
    }
}

pub fn time(at: custody_schemas::id::Micros) -> String {
    let at = i64::try_from(at.get()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(at).map_or_else(|_| at.to_string(), |at| at.to_string())
}

pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The lines of the verdict.
fn lines(v: &Verdict) -> Vec<(&'static str, String)> {
    let pinned =
        if v.pinned { "yours" } else { "from the lake itself: keep it, and name it with --root" };
    let earlier = v.earlier.map_or_else(
        || "no earlier head was given: an older state could pass for the newest".to_owned(),
        |size| format!("grown from your head of {} entries", grouped(size)),
    );
    let period =
        v.period.map_or_else(String::new, |(from, to)| format!(", {} to {}", time(from), time(to)));
    let mut lines = vec![
        ("deployment", v.deployment.clone()),
        ("root key", format!("{} ({pinned})", v.root)),
        ("keyring", format!("edition {}, {} writers", v.edition, v.writers)),
        ("log", format!("{} entries, root {}; {earlier}", grouped(v.log_size), v.log_root)),
        (
            "streams",
            format!("{}, {} checkpoints valid", grouped(v.streams), grouped(v.checkpoints)),
        ),
        ("leaves", format!("{} sealed{period}", grouped(v.leaves + v.attested))),
        ("records", format!("{} in {} files", grouped(v.records), grouped(v.files))),
    ];
    if v.attested > 0 {
        let text = format!(
            "{} at the end of runs that broke off, attested by the next run",
            grouped(v.attested)
        );
        lines.push(("", text));
    }
    if v.bodies + v.bodies_missing > 0 {
        let text = format!(
            "{} match their commitments, {} are not there",
            grouped(v.bodies),
            grouped(v.bodies_missing)
        );
        lines.push(("bodies", text));
    }
    let counts = [
        ("unsealed", v.unsealed, "records that no checkpoint in the log covers yet"),
        ("conflicts", v.conflicts, "second records under one identity"),
        ("unreadable", v.undecodable, "entries that say nothing"),
    ];
    let counts = counts.into_iter().filter(|(_, count, _)| *count > 0);
    lines.extend(counts.map(|(name, count, what)| (name, format!("{} {what}", grouped(count)))));
    lines
}

fn tell(v: &Verdict) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (name, line) in lines(v) {
        writeln!(out, "{name:<11} {line}")?;
    }
    for (stream, first, end) in v.gaps.iter().take(TOLD) {
        writeln!(out, "MISSING     {stream} {first} to {}", end - 1)?;
    }
    for finding in v.findings.iter().take(TOLD) {
        writeln!(out, "WRONG       {}: {}", finding.place, finding.problem)?;
    }
    let told = v.findings.len().min(TOLD) as u64;
    if v.found > told {
        writeln!(out, "            and {} more (--json lists the first thousand)", v.found - told)?;
    }
    let verdict = match (v.is_valid(), v.is_complete()) {
        (false, _) => "INVALID: what is stored is not what was signed",
        (true, false) => {
            "INCOMPLETE: what is stored is what was signed, but not all of it is there"
        }
        (true, true) => "VALID: every stored record is what its writer signed, and none is missing",
    };
    writeln!(out, "{verdict}")?;
    Ok(())
}

fn tell_json(v: &Verdict) -> anyhow::Result<()> {
    let findings: Vec<_> =
        v.findings.iter().map(|f| json!({"place": f.place, "problem": f.problem})).collect();
    let gaps: Vec<_> = v
        .gaps
        .iter()
        .map(|(stream, first, end)| json!({"stream": stream, "first": first, "end": end}))
        .collect();
    let verdict = match (v.is_valid(), v.is_complete()) {
        (false, _) => "invalid",
        (true, false) => "incomplete",
        (true, true) => "valid",
    };
    let object = json!({
        "verdict": verdict, "deployment": v.deployment, "root": v.root, "root_pinned": v.pinned,
        "keyring_edition": v.edition, "writers": v.writers, "log_size": v.log_size,
        "log_root": v.log_root, "earlier_head": v.earlier, "streams": v.streams,
        "checkpoints": v.checkpoints, "leaves": v.leaves, "attested": v.attested,
        "files": v.files, "records": v.records, "unsealed": v.unsealed, "missing": v.missing,
        "conflicts": v.conflicts, "undecodable": v.undecodable, "bodies": v.bodies,
        "bodies_missing": v.bodies_missing, "findings": findings, "found": v.found, "gaps": gaps,
    });
    writeln!(std::io::stdout().lock(), "{object}")?;
    Ok(())
}
