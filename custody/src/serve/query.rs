//! The query service: its settings, and the role that runs it alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use custody_journal::Journal;
use custody_journal::control::State;
use custody_query::access::{Access, Token};
use custody_query::completeness::ListedWriter;
use custody_query::engine::Writers;
use custody_query::http::HttpOptions;
use custody_query::{Engine, EngineOptions, Source};
use custody_schemas::seal::keyring::Keyring;

use super::journal::{DESK, Recording};
use super::process::{Part, Process, listen};
use super::{kafka, lake};
use crate::config::{Config, Kafka};

/// `custody query`: one node of several that answer the same. It only reads the lake.
pub async fn start(config: Config, _: Kafka) -> anyhow::Result<Process> {
    let mut process = Process::default();
    let recording = Recording::open(&config, DESK).await?;
    let journal = recording.journal(&config)?;
    let lake = Source::for_reading(&config.lake.url, lake::options(&config)).await?;
    let answering = answer(&mut process, &config, lake, journal, &recording).await?;
    process.then(answering);
    recording.watch_over(&mut process);
    recording.end_with(&mut process);
    Ok(process)
}

/// Answers questions about `lake` and the tail of `journal`.
pub async fn answer(
    process: &mut Process,
    config: &Config,
    lake: impl Into<Source>,
    journal: Arc<dyn Journal>,
    recording: &Recording,
) -> anyhow::Result<Part> {
    let edge = edge(config, recording)?;
    let listener = listen(config.query.listen, "query.listen").await?;
    process.listens("query", listener.local_addr()?);
    let page = Arc::clone(&process.page);
    let options = EngineOptions { page, ..options(config, recording)? };
    let engine = Engine::open(lake, journal, recording.writer.clone(), options).await?;
    Ok(Part::start("query", |stop| async move {
        Ok(custody_query::http::run(listener, engine, edge, stop).await?)
    }))
}

/// The settings of the engine.
fn options(config: &Config, recording: &Recording) -> anyhow::Result<EngineOptions> {
    let usual = EngineOptions::new(config.deployment.data.join("spill"));
    let (cluster, epoch) = kafka::positions(config);
    Ok(EngineOptions {
        cluster,
        epoch,
        memory_bytes: usize::try_from(config.query.memory_bytes)?,
        max_rows: config.query.max_rows,
        deadline: Duration::from_millis(config.query.deadline_ms),
        time_zone: jiff::tz::TimeZone::get(&config.query.time_zone)?,
        writers: listed(recording)?,
        ..usual
    })
}

/// The writers that the keyring lists, whenever somebody asks.
fn listed(recording: &Recording) -> anyhow::Result<Writers> {
    let (control, keys) = (recording.control.clone(), recording.keys.clone());
    let read = move |control: &_| -> anyhow::Result<Vec<ListedWriter>> {
        let ring = keys.ring(control)?.unwrap_or_default();
        Ok(of(&ring))
    };
    let last: (Arc<State>, Vec<ListedWriter>) = (control.state(), read(&control)?);
    let last = Mutex::new(last);
    Ok(Arc::new(move || {
        let state = control.state();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last.0, &state) {
            match read(&control) {
                Ok(listed) => *last = (state, listed),
                Err(error) => tracing::error!(%error, "the last valid keyring stays in force"),
            }
        }
        last.1.clone()
    }))
}

/// Every writer that may record, and those that were retired; one that was only given another name
/// or place is neither.
fn of(ring: &Keyring) -> Vec<ListedWriter> {
    let mut listed: Vec<ListedWriter> = Vec::new();
    for key in &ring.writers {
        let retired = key.retired;
        if key.until.is_some() && !retired {
            continue;
        }
        match listed.iter_mut().find(|writer| writer.name == key.name) {
            None => listed.push(ListedWriter { name: key.name.clone(), from: key.from, retired }),
            Some(known) if known.retired && !retired => {
                (known.from, known.retired) = (key.from, false);
            }
            Some(_) => {}
        }
    }
    listed
}

/// The settings of the HTTP edge.
fn edge(config: &Config, recording: &Recording) -> anyhow::Result<HttpOptions> {
    let tokens = config.query.tokens.iter().map(|text| Token::parse(text));
    let access = Access::new(tokens.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?);
    let control = Some(recording.control.clone());
    let lake = Some((config.lake.url.clone(), lake::options(config)));
    Ok(HttpOptions { access, hosts: config.query.allowed_hosts.clone(), control, lake })
}

#[cfg(test)]
mod tests {
    use custody_schemas::id::Micros;
    use custody_schemas::seal::keyring::WriterKey;

    use super::*;

    #[test]
    fn a_writer_is_listed_once_whatever_has_become_of_its_keys() {
        let key = |name: &str, from, until: Option<u64>, retired| WriterKey {
            name: name.to_owned(),
            vkey: String::new(),
            from: Micros::new(from),
            until: until.map(Micros::new),
            retired,
        };
        let writers = vec![
            key("changed", 1, Some(5), false),
            key("changed", 5, None, false),
            key("changing", 1, None, false),
            key("changing", 5, None, false),
            key("retired", 1, Some(2), true),
            key("back", 1, Some(2), true),
            key("back", 3, None, false),
            key("closed", 1, Some(2), false),
        ];
        let ring = Keyring { writers, ..Keyring::default() };
        let listed: Vec<_> =
            of(&ring).into_iter().map(|w| (w.name, w.from.get(), w.retired)).collect();
        let expected = [
            ("changed", 5, false),
            ("changing", 1, false),
            ("retired", 1, true),
            ("back", 3, false),
        ];
        assert_eq!(listed, expected.map(|(name, from, retired)| (name.to_owned(), from, retired)));
    }
}
