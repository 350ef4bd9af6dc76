//! `custody verify`: whether a lake or an evidence package is what its writers have signed. Needs
//! no running part and no network.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use custody_lake::ask::Refusal;
use custody_lake::evidence::Trust;
use custody_lake::verify::{self, Request, Verdict};
use custody_lake::witnessed::Witnessed;
use custody_schemas::id::Micros;
use custody_schemas::seal::policy::Policy;
use serde_json::json;

use crate::serve::witnessing;
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
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,
    /// Whose cosignatures on the log you ask for: a file in the form of C2SP tlog-policy.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Ask the witnesses of the policy what they have seen of the log: the only step that needs a
    /// network.
    #[arg(long, requires = "policy", requires = "lake")]
    ask: bool,
    /// Keep the log's present head in a file, for the next time.
    #[arg(long, value_name = "FILE")]
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
        let trust =
            Trust { root: root(&options), head: head(&options)?, policy: policy(&options)? };
        let judged = evidence::judge(package, &trust)?;
        let (valid, complete) = (judged.is_valid(), judged.is_complete());
        options.keep(valid, || evidence::head(package))?;
        evidence::tell(&judged, options.json)?;
        return Ok(exit(valid, complete));
    }
    let url = options.lake.clone().context("name a package, or a lake with --lake")?;
    let request = request(&options)?;
    let patience = Patience::new("files");
    let mut verdict = verify::lake(&url, &request, &|done, all| patience.show(done, all)).await?;
    if options.ask {
        ask(&url, &request, &mut verdict).await?;
    }
    let seals = custody_lake::Lake::seals_at(&url, &request.storage)?;
    let head = seals.text("log/checkpoint").await?;
    options.keep(verdict.is_valid(), || head.context("the log has no head"))?;
    if options.json {
        tell_json(&verdict)?
    } else {
        tell(&verdict)?
    }
    Ok(exit(verdict.is_valid(), verdict.is_complete()))
}

fn exit(valid: bool, complete: bool) -> ExitCode {
    ExitCode::from(match (valid, complete) {
        (false, _) => EXIT_INVALID,
        (true, false) => EXIT_INCOMPLETE,
        (true, true) => 0,
    })
}

impl Verify {
    /// Keeps the head, if somebody wants it and nothing is wrong with it.
    fn keep(
        &self,
        valid: bool,
        head: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        match &self.save_head {
            Some(path) if valid => {
                std::fs::write(path, head()?).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

/// The auditor's head, as it stands in the file that was given.
fn head(options: &Verify) -> anyhow::Result<Option<String>> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    options.head.as_ref().map(read).transpose()
}

fn request(options: &Verify) -> anyhow::Result<Request> {
    let config = options.file.load()?;
    Ok(Request {
        storage: config.lake.storage.0.into_iter().collect(),
        root: root(options),
        head: head(options)?,
        policy: policy(options)?,
        bodies: options.bodies,
    })
}

/// Whose cosignatures are asked for.
fn policy(options: &Verify) -> anyhow::Result<Option<Policy>> {
    let Some(path) = &options.policy else { return Ok(None) };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(Some(Policy::parse(&text).with_context(|| path.display().to_string())?))
}

/// Shows the log's head to every witness that has an address; one that has seen another log, or more
/// of this one, is a finding.
async fn ask(url: &str, request: &Request, verdict: &mut Verdict) -> anyhow::Result<()> {
    let Some(policy) = &request.policy else { return Ok(()) };
    let seals = custody_lake::Lake::seals_at(url, &request.storage)?;
    let head = seals.text("log/checkpoint").await?.context("the log has no head")?;
    let (submit, head) = (witnessing::to(policy)?, custody_lake::ask::alone(&head));
    let size = verdict.log_size;
    for witness in policy.witnesses() {
        let Some(address) = &witness.url else { continue };
        let asked = custody_lake::ask::ask(&seals, &submit, address, 0, (size, &head)).await;
        let problem = match asked {
            Ok(lines) => match witness.key.cosigned(&format!("{head}{lines}")) {
                Ok(Some(_)) => continue,
                _ => "its answer holds no valid cosignature by its key".to_owned(),
            },
            Err(Refusal::Ahead(seen)) => {
                format!(
                    "it has seen {seen} entries of the log, which has only {size}: it was rolled back"
                )
            }
            Err(Refusal::Fork(seen)) => format!("it has seen another log of {seen} entries"),
            Err(Refusal::Unanswered(problem)) => {
                anyhow::bail!("the witness {} cannot be asked: {problem}", witness.name)
            }
        };
        verdict.find(format!("witness {}", witness.name), problem);
    }
    Ok(())
}

/// What the verdict says of witnesses.
pub fn cosigned(witnessed: Option<&Witnessed>, log_size: u64) -> String {
    let Some(witnessed) = witnessed else {
        return "none: an operator with all keys could show another log to everybody".to_owned();
    };
    let of = format!("{} of {} entries", grouped(witnessed.size), grouped(log_size));
    if !witnessed.checked {
        let lines = witnessed.lines;
        return format!(
            "{of} carry {lines} cosignature(s), not checked: name your policy with --policy"
        );
    }
    let by = witnessed.by.iter().map(|(name, at)| {
        let at = Micros::new(at.saturating_mul(1_000_000));
        format!("{name} at {}", time(at))
    });
    format!("{of} cosigned by {}", by.collect::<Vec<_>>().join(", "))
}

/// The same for programs.
pub fn cosigned_json(witnessed: Option<&Witnessed>) -> serde_json::Value {
    let Some(witnessed) = witnessed else { return serde_json::Value::Null };
    let by = witnessed.by.iter().map(|(name, at)| json!({"witness": name, "at": at}));
    let by: Vec<_> = by.collect();
    json!({"size": witnessed.size, "checked": witnessed.checked, "by": by})
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
pub struct Patience {
    what: &'static str,
    /// When something was said last, and whether anything was.
    shown: Mutex<(Instant, bool)>,
}

/// The width of the bar.
const BAR: usize = 30;

impl Patience {
    /// With the things that are counted.
    pub fn new(what: &'static str) -> Self {
        Self { what, shown: Mutex::new((Instant::now(), false)) }
    }

    /// Says how far it is.
    pub fn show(&self, done: u64, all: u64) {
        let mut shown = self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut stderr = std::io::stderr().lock();
        let terminal = stderr.is_terminal();
        let what = self.what;
        let over = done == all && shown.1 && terminal;
        if !over && shown.0.elapsed() < PATIENCE {
            return;
        }
        *shown = (Instant::now(), !over);
        let (done_text, all_text) = (grouped(done), grouped(all));
        drop(if terminal {
            let filled = usize::try_from(BAR as u64 * done / all.max(1)).unwrap_or(0);
            let bar = format!("{:<1$}", "#".repeat(filled), BAR);
            let end = if over { "\n" } else { "" };
            write!(stderr, "\r[{bar}] {done_text} of {all_text} {what}{end}")
        } else {
            writeln!(stderr, "{done_text} of {all_text} {what}")
        });
    }
}

pub fn time(at: Micros) -> String {
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
        ("witnesses", cosigned(v.witnessed.as_ref(), v.log_size)),
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
    if v.expired + v.erased > 0 {
        let text = format!("{} expired, {} erased", grouped(v.expired), grouped(v.erased));
        lines.push(("gone", text));
    }
    if v.bodies + v.bodies_missing + v.bodies_gone > 0 {
        let text = format!(
            "{} match their commitments, {} are not there, {} expired or erased",
            grouped(v.bodies),
            grouped(v.bodies_missing),
            grouped(v.bodies_gone)
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
        "log_root": v.log_root, "earlier_head": v.earlier,
        "witnessed": cosigned_json(v.witnessed.as_ref()), "streams": v.streams,
        "checkpoints": v.checkpoints, "leaves": v.leaves, "attested": v.attested,
        "files": v.files, "records": v.records, "unsealed": v.unsealed, "missing": v.missing,
        "conflicts": v.conflicts, "undecodable": v.undecodable, "bodies": v.bodies,
        "bodies_missing": v.bodies_missing, "bodies_gone": v.bodies_gone, "expired": v.expired,
        "erased": v.erased, "findings": findings, "found": v.found, "gaps": gaps,
    });
    writeln!(std::io::stdout().lock(), "{object}")?;
    Ok(())
}
