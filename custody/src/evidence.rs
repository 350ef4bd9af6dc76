//! `custody evidence`: packages for auditors, asked of the query service so that asking is
//! recorded; and what `custody verify FILE` says of one.

#[cfg(feature = "query")]
mod ask;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use custody_lake::evidence::zip::Archive;
use custody_lake::evidence::{Judged, Scope, Trust, check};
use serde_json::{Value, json};

#[cfg(feature = "query")]
pub use ask::{EvidenceCommand, run};

use crate::verify::{Patience, TOLD, cosigned, cosigned_json, grouped, time};

/// The head of the log that lies in a package.
pub fn head(file: &Path) -> anyhow::Result<String> {
    let archive = Archive::open(open(file)?)?;
    let head = archive.bytes("log/checkpoint", 1 << 20)?;
    Ok(String::from_utf8(head.context("the package has no head of the log")?)?)
}

/// Checks a package.
pub fn judge(file: &Path, trust: &Trust) -> anyhow::Result<Judged> {
    let patience = Patience::new("records");
    Ok(check(open(file)?, trust, &|done, all| patience.show(done, all))?)
}

fn open(file: &Path) -> anyhow::Result<File> {
    File::open(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Says what was found.
pub fn tell(j: &Judged, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        writeln!(std::io::stdout().lock(), "{}", object(j))?;
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    for (name, line) in lines(j) {
        writeln!(out, "{name:<11} {line}")?;
    }
    for (stream, seq) in j.missing.iter().take(TOLD) {
        writeln!(out, "MISSING     {stream} {seq}")?;
    }
    for finding in j.findings.iter().take(TOLD) {
        writeln!(out, "WRONG       {}: {}", finding.place, finding.problem)?;
    }
    let untold = |all: u64| all.saturating_sub(TOLD as u64);
    let more = untold(j.lacking) + untold(j.found);
    if more > 0 {
        writeln!(out, "            and {} more (--json lists the first thousand)", grouped(more))?;
    }
    writeln!(out, "{}", verdict(j))?;
    Ok(())
}

fn verdict(j: &Judged) -> &'static str {
    match (j.is_valid(), j.is_complete(), j.scope) {
        (false, ..) => "INVALID: the package is not what was signed",
        (true, false, _) => {
            "INCOMPLETE: what is there is what was signed, but not all of it is there"
        }
        (true, true, Scope::Full) => {
            "VALID: these are all events of the period, and all that are flagged are here"
        }
        (true, true, Scope::Flags) => {
            "VALID: these are all events of the period; that the filter left no flagged one out is \
             not proven"
        }
    }
}

/// The lines of the verdict.
fn lines(j: &Judged) -> Vec<(&'static str, String)> {
    let pinned = if j.pinned { "yours" } else { "from the package itself: name yours with --root" };
    let earlier = j.earlier.map_or_else(
        || "no earlier head was given".to_owned(),
        |size| format!("grown from your head of {} entries", grouped(size)),
    );
    let found = j.through.unwrap_or(j.to);
    let mut lines = vec![
        ("deployment", j.deployment.clone()),
        ("root key", format!("{} ({pinned})", j.root)),
        ("period", format!("requested {} to {}", time(j.from), time(j.to))),
        ("", format!("found     {} to {}", time(j.from), time(found))),
        (
            "log",
            format!(
                "{} entries, {} streams; {} checkpoints signed by their writers, {} computed \
                 again; {earlier}",
                grouped(j.log_size),
                grouped(j.streams),
                grouped(j.checkpoints),
                grouped(j.roots)
            ),
        ),
        ("witnesses", cosigned(j.witnessed.as_ref(), j.log_size)),
        ("population", format!("{} events, each under a checkpoint", grouped(j.population))),
        (
            "records",
            format!(
                "{} of {} about protected health information opened{}",
                grouped(j.opened),
                grouped(j.flagged),
                j.filter.as_ref().map(|f| format!(", those with {f}")).unwrap_or_default()
            ),
        ),
    ];
    if j.drawn > 0 {
        let text =
            format!("{} of {} drawn events opened", grouped(j.drawn_opened), grouped(j.drawn));
        lines.push(("sample", text));
    }
    if j.expired + j.erased > 0 {
        let text = format!("{} expired, {} erased", grouped(j.expired), grouped(j.erased));
        lines.push(("gone", text));
    }
    let text = format!("{} accesses, as they follow from the records", grouped(j.accesses));
    lines.push(("report", text));
    lines
}

fn object(j: &Judged) -> Value {
    let word = match (j.is_valid(), j.is_complete()) {
        (false, _) => "invalid",
        (true, false) => "incomplete",
        (true, true) => "valid",
    };
    let findings: Vec<_> =
        j.findings.iter().map(|f| json!({"place": f.place, "problem": f.problem})).collect();
    let missing: Vec<_> =
        j.missing.iter().map(|(stream, seq)| json!({"stream": stream, "seq": seq})).collect();
    json!({
        "verdict": word, "deployment": j.deployment, "root": j.root, "root_pinned": j.pinned,
        "earlier_head": j.earlier, "from": j.from, "to": j.to, "through": j.through,
        "log_size": j.log_size, "witnessed": cosigned_json(j.witnessed.as_ref()),
        "streams": j.streams, "checkpoints": j.checkpoints,
        "roots": j.roots, "population": j.population, "scope": j.scope, "filter": j.filter,
        "flagged": j.flagged, "opened": j.opened, "drawn": j.drawn,
        "drawn_opened": j.drawn_opened, "expired": j.expired, "erased": j.erased,
        "lacking": j.lacking, "missing": missing, "accesses": j.accesses, "findings": findings,
        "found": j.found,
    })
}
