//! Reads `[witness]`, and in `[deployment]` who holds which key.

use std::path::PathBuf;
use std::sync::Arc;

use custody_journal::keys::Source;
use custody_schemas::seal::policy::Policy;

use crate::config::Witness;
use crate::config::document::Document;
use crate::config::section::{At, Section};

/// `[witness]`: the policy is read here, so that its mistakes are told with the others.
pub(super) fn witness(d: &mut Document<'_>) -> Witness {
    let mut s = d.section("witness");
    let policy = s.text(d, "policy").and_then(|At { line, value }| {
        let read = std::fs::read_to_string(&value).map_err(|error| error.to_string());
        match read.and_then(|text| Policy::parse(&text).map_err(|error| error.to_string())) {
            Ok(policy) => Some(Arc::new(policy)),
            Err(problem) => {
                d.mistake(line, format!("witness.policy, {value}: {problem}"));
                None
            }
        }
    });
    d.finish_section(s);
    Witness { policy }
}

/// `[deployment.signers]`: where the key of a name is, if it is not in the folder of keys.
pub(super) fn signers<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Vec<(String, Source)> {
    let Some(mut signers) = d.subsection(s, "signers") else { return Vec::new() };
    let named = signers.rest(d);
    d.finish_section(signers);
    let mut found = Vec::new();
    for (name, At { line, value }) in named {
        if !custody_schemas::id::is_writer_name(&name) {
            let text =
                format!("deployment.signers.{name}: a key is called root, log, or like its writer");
            d.mistake(line, text);
            continue;
        }
        match source(&value) {
            Some(source) => found.push((name, source)),
            None => {
                let text = format!(
                    "deployment.signers.{name} must be \"file:PATH\", \"env:NAME\", \
                     \"command:PROGRAM ARGUMENT…\" or \"unix:SOCKET\", not {value:?}"
                );
                d.mistake(line, text);
            }
        }
    }
    found
}

fn source(text: &str) -> Option<Source> {
    let (kind, rest) = text.split_once(':')?;
    let rest = rest.trim();
    let words = || rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    Some(match kind {
        _ if rest.is_empty() => return None,
        "file" => Source::File(PathBuf::from(rest)),
        "env" => Source::Environment(rest.to_owned()),
        "command" => Source::Command(words()),
        "unix" => Source::Socket(PathBuf::from(rest)),
        _ => return None,
    })
}
