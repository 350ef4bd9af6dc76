//! Reads `[lake]` and `[ingest]`.

use super::listen;
use crate::config::document::Document;
use crate::config::section::{At, Section};
use crate::config::{Deployment, Ingest, Lake, Options};

/// What a lake's address begins with.
const STORES: [&str; 8] =
    ["file:", "s3://", "s3a://", "az://", "azure://", "abfs://", "abfss://", "gs://"];

/// `[lake]`
pub(super) fn lake(d: &mut Document<'_>, deployment: &Deployment) -> Lake {
    let mut s = d.section("lake");
    let url = s.text(d, "url");
    if let Some(At { line, value }) = &url
        && !STORES.iter().any(|store| value.starts_with(store))
    {
        d.mistake(
            *line,
            format!("lake.url must begin with one of {}, not {value:?}", STORES.join(" ")),
        );
    }
    let default = format!("file:{}/lake", deployment.data.display());
    let lake = Lake {
        storage: storage(d, &mut s),
        url: url.map_or(default, |at| at.value),
        flush_seconds: s.integer(d, "flush_seconds", 1..=3_600).unwrap_or(60),
        flush_bytes: s.bytes(d, "flush_bytes", 1 << 20..=1 << 30).unwrap_or(32 << 20),
    };
    d.finish_section(s);
    lake
}

/// `[lake.storage]`: options as the object store's library names them.
fn storage<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Options {
    let Some(mut options) = d.subsection(s, "storage") else { return Options::default() };
    let named = options.rest(d);
    d.finish_section(options);
    Options(named.into_iter().map(|(name, at)| (name, at.value)).collect())
}

/// `[ingest]`
pub(super) fn ingest(d: &mut Document<'_>) -> Ingest {
    let mut s = d.section("ingest");
    // what is told there is neither about people nor about patients
    let listen = listen(d, &mut s, "127.0.0.1:7470", true, "");
    d.finish_section(s);
    Ingest { listen }
}
