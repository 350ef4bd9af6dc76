//! Reads each section, with its defaults and its rules.

mod journal;
mod lake;
mod proxy;
mod query;
mod reach;
mod trust;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::document::{Document, Mistake};
use super::section::{At, Section};
use super::{Config, Deployment, Telemetry};

const SECTIONS: &[&str] = &[
    "deployment",
    "proxy",
    "server",
    "key",
    "journal",
    "lake",
    "ingest",
    "query",
    "witness",
    "telemetry",
];

/// The whole configuration.
pub(super) fn config(
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, Vec<Mistake>> {
    let ours = environment.filter(|(key, _)| key.starts_with("CUSTODY__"));
    let overrides: BTreeMap<String, String> = ours.collect();
    let mut document = Document::new(text, overrides.clone().into_iter());
    let d = &mut document;
    let deployment = deployment(d);
    let keys: Vec<_> = d.sections("key").into_iter().map(|s| proxy::key(d, s)).collect();
    let journal = journal::journal(d);
    let proxy = proxy::proxy(d, !keys.is_empty(), journal.kafka.is_some());
    let servers = proxy::servers(d);
    let lake = lake::lake(d, &deployment);
    let ingest = lake::ingest(d);
    let query = query::query(d);
    let witness = trust::witness(d);
    let telemetry = telemetry(d);
    let hash = hash(text, &overrides, document.secrets());
    let mistakes = document.finish(SECTIONS);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let keys = keys.into_iter().flatten().collect();
    Ok(Config {
        deployment,
        proxy,
        servers,
        keys,
        journal,
        lake,
        ingest,
        query,
        witness,
        telemetry,
        hash,
    })
}

/// SHA-256 of the file's text and of every override, in their order: what is in force. Secrets are
/// left out of it, since a hash can be tried against guesses.
fn hash(text: &str, overrides: &BTreeMap<String, String>, secrets: &[String]) -> String {
    let without = |text: &str| {
        let told = secrets.iter().filter(|secret| !secret.is_empty());
        told.fold(text.to_owned(), |text, secret| text.replace(secret, ""))
    };
    let mut hash = Sha256::new().chain_update(without(text).as_bytes());
    for (key, value) in overrides {
        hash.update(format!("\0{key}={}", without(value)));
    }
    hex::encode(hash.finalize())
}

fn deployment(d: &mut Document<'_>) -> Deployment {
    let mut s = d.section("deployment");
    let name = s.text(d, "name");
    if let Some(At { line, value }) = &name
        && (value.is_empty() || value.chars().any(|c| c.is_whitespace() || c == '+'))
    {
        d.mistake(
            *line,
            "deployment.name must not be empty nor hold spaces or '+'; a host name is best",
        );
    }
    let writer = s.text(d, "writer");
    if let Some(At { line, value }) = &writer
        && !custody_schemas::id::is_writer_name(value)
    {
        d.mistake(*line, "deployment.writer must be 1 to 64 of a-z 0-9 . _ -");
    }
    let data = s.text(d, "data");
    let keys = s.text(d, "keys").map(|at| PathBuf::from(at.value));
    let signers = trust::signers(d, &mut s);
    d.finish_section(s);
    let data = PathBuf::from(data.map_or_else(|| "./custody-data".to_owned(), |at| at.value));
    Deployment {
        name: name.map_or_else(|| "custody.localhost".to_owned(), |at| at.value),
        writer: writer.map(|at| at.value),
        keys: keys.unwrap_or_else(|| data.join("keys")),
        signers,
        data,
    }
}

fn telemetry(d: &mut Document<'_>) -> Telemetry {
    let mut s = d.section("telemetry");
    let otlp_endpoint = s.text(d, "otlp_endpoint");
    if let Some(At { line, value }) = &otlp_endpoint
        && !is_http_url(value)
    {
        let text = format!(
            "telemetry.otlp_endpoint must be like \"http://127.0.0.1:4318\", not {value:?}"
        );
        d.mistake(*line, text);
    }
    d.finish_section(s);
    Telemetry { otlp_endpoint: otlp_endpoint.map(|at| at.value) }
}

fn values(found: Vec<At<String>>) -> Vec<String> {
    found.into_iter().map(|at| at.value).collect()
}

/// An address; beyond loopback only with authentication.
fn listen<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    default: &str,
    authenticated: bool,
    remedy: &str,
) -> SocketAddr {
    let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
    let parse = |text: &str| text.parse::<SocketAddr>().ok();
    let Some(At { line, value }) = s.text(d, "listen") else {
        return parse(default).unwrap_or(fallback);
    };
    let Some(address) = parse(&value) else {
        d.mistake(
            line,
            format!("listen must be an address and a port like {default:?}, not {value:?}"),
        );
        return fallback;
    };
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !loopback && !authenticated {
        d.mistake(line, format!("listen = {value:?} can be reached from other machines, and nobody has to sign in: {remedy}, or listen on 127.0.0.1"));
    }
    address
}

/// Whether it can be asked over HTTP.
fn is_http_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let scheme = uri.scheme_str();
    (scheme == Some("http") || scheme == Some("https")) && uri.host().is_some_and(|h| !h.is_empty())
}

#[cfg(test)]
mod tests;
