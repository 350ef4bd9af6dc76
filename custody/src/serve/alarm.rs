//! What sealing finds wrong becomes an event, also where the one who finds it records nothing.
//!
//! A finding goes into control state first, once under a name of its own, however often and by how
//! many it is found. A process that records takes it on, records it as `integrity.failed`, and
//! notes under the finding where. If it ends in between, another takes the finding on after a
//! while: then it is recorded twice, never not at all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use custody_journal::Writer;
use custody_journal::control::{Change, Control};
use custody_schemas::event::Draft;
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use tokio_util::sync::CancellationToken;

use super::process::Part;

/// What the keys of findings begin with in control state.
const PREFIX: &str = "integrity/";
/// The most findings that are kept; later ones stand in the diagnostics and the metrics.
#[cfg(feature = "ingest")]
const MAX_FINDINGS: usize = 1_000;
/// After this time somebody else takes on what one has taken on and not recorded.
const TAKEN_FOR: Duration = Duration::from_secs(60);

/// Puts what is found into control state.
#[cfg(feature = "ingest")]
pub fn into(control: Control) -> custody_ingest::verify::Alarm {
    std::sync::Arc::new(move |alert| {
        let control = control.clone();
        // nobody waits for it: what is found is found again after a restart
        drop(tokio::task::spawn_blocking(move || {
            let key = format!("{PREFIX}{}/{}/{}", alert.place, alert.finding, alert.at);
            if control.state().entries(PREFIX).count() >= MAX_FINDINGS {
                return tracing::error!(key, "too many findings to keep one more");
            }
            let finding = finding(&alert);
            let put = control.update(&key, |known| match known {
                None => Change::Set(finding.clone()),
                Some(_) => Change::Keep,
            });
            if let Err(error) = put {
                tracing::error!(%error, key, "the finding cannot be handed on");
            }
        }));
    })
}

#[cfg(feature = "ingest")]
fn finding(alert: &custody_ingest::verify::Alert) -> Json {
    let witness = alert.witness.as_deref().map(|name| ("witness", Json::from(name)));
    let known = [
        ("stream", Json::from(alert.place.as_str())),
        ("finding", Json::from(alert.finding)),
        ("at", Json::from(alert.at)),
    ];
    let all = known.into_iter().chain(witness);
    Json::Map(all.map(|(word, value)| (word.to_owned(), value)).collect())
}

/// Records what is found, from control state, as `writer`'s process.
pub fn record(control: Control, writer: Writer, name: String) -> Part {
    Part::start("alarm", |stop: CancellationToken| async move {
        let mut changed = control.changed();
        loop {
            changed.borrow_and_update();
            for key in open(&control, &name) {
                if let Err(error) = one(&control, &writer, &name, &key).await {
                    tracing::error!(error = crate::told(&error), key, "not recorded yet");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = changed.changed() => changed?,
                () = tokio::time::sleep(TAKEN_FOR) => {}
            }
        }
    })
}

/// The findings that nobody has recorded or is about to record.
fn open(control: &Control, name: &str) -> Vec<String> {
    let state = control.state();
    let open = state.entries(PREFIX).filter(|(_, finding)| is_open(finding, name));
    open.map(|(key, _)| key.to_owned()).collect()
}

fn is_open(finding: &Json, name: &str) -> bool {
    let Json::Map(finding) = finding else { return false };
    let taken_by = finding.get("taken_by");
    let since = match finding.get("taken_at") {
        Some(Json::Int(at)) => u64::try_from(at.get()).unwrap_or(0),
        _ => 0,
    };
    let is_ours = taken_by == Some(&Json::from(name));
    let is_free = taken_by.is_none() || is_ours || since + TAKEN_FOR.as_secs() < now();
    finding.get("recorded").is_none() && is_free
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn one(control: &Control, writer: &Writer, name: &str, key: &str) -> anyhow::Result<()> {
    let taken = [("taken_by", Json::from(name)), ("taken_at", Json::from(now()))];
    let Some(finding) = add(control, name, key, taken.to_vec()).await? else { return Ok(()) };
    let mut draft = Draft::new(Kind::IntegrityFailed);
    if let Json::Map(finding) = finding {
        let told = ["stream", "finding", "at", "witness"];
        for word in told {
            if let Some(value) = finding.get(word) {
                draft = draft.with(word, value.clone());
            }
        }
    }
    let place = writer.append(draft, Vec::new()).await?;
    let recorded = Json::from(format!("{}/{}", place.stream, place.seq));
    add(control, name, key, vec![("recorded", recorded)]).await?;
    Ok(())
}

/// Adds to a finding that is open to us; the finding as it then is, or nothing when it is not.
async fn add(
    control: &Control,
    name: &str,
    key: &str,
    more: Vec<(&'static str, Json)>,
) -> anyhow::Result<Option<Json>> {
    let (control, name, key) = (control.clone(), name.to_owned(), key.to_owned());
    let adding = tokio::task::spawn_blocking(move || {
        let mut found = None;
        control.update(&key, |known| {
            let Some(Json::Map(known)) = known.filter(|known| is_open(known, &name)) else {
                found = None;
                return Change::Keep;
            };
            let mut map = known.clone();
            map.extend(more.iter().map(|(word, value)| ((*word).to_owned(), value.clone())));
            found = Some(Json::Map(map.clone()));
            Change::Set(Json::Map(map))
        })?;
        Ok::<_, custody_journal::control::ControlError>(found)
    });
    Ok(adding.await??)
}

#[cfg(test)]
mod tests {
    use custody_journal::WriterOptions;
    use custody_schemas::seal::key::Signer;

    use super::*;

    fn finding(more: &[(&str, Json)]) -> Json {
        let known = [("stream", Json::from("log")), ("finding", Json::from("forked"))];
        let all = known.iter().chain(more);
        Json::Map(all.map(|(word, value)| ((*word).to_owned(), value.clone())).collect())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_finding_is_recorded_once_and_again_only_if_whoever_took_it_on_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::open(&folder.path().join("control")).unwrap();
        let signer = Signer::from_seed("a.example/query-1", &[3; 32]).unwrap().0;
        let options = WriterOptions::new(folder.path().join("query"), "query-1");
        let (writer, _) = Writer::open(options, signer).unwrap();
        let fresh = [("taken_by", Json::from("query-2")), ("taken_at", Json::from(now()))];
        let stale = [("taken_by", Json::from("query-2")), ("taken_at", Json::from(1u64))];
        let done = [("recorded", Json::from("query-2/x/7"))];
        for (key, value) in [
            ("integrity/log/forked/1", finding(&[])),
            ("integrity/log/forked/2", finding(&fresh)),
            ("integrity/log/forked/3", finding(&stale)),
            ("integrity/log/forked/4", finding(&done)),
        ] {
            control.put(key, Some(value)).unwrap();
        }
        let recording = record(control.clone(), writer.clone(), "query-1".to_owned());
        let mut changed = control.changed();
        let recorded = |key: &str| match control.get(key) {
            Some(Json::Map(map)) => map.contains_key("recorded"),
            _ => false,
        };
        let both = || recorded("integrity/log/forked/1") && recorded("integrity/log/forked/3");
        while !both() {
            changed.changed().await.unwrap();
        }
        assert!(!recorded("integrity/log/forked/2"), "query-2 is about to");
        assert_eq!(writer.status().events, 2, "{:?}", writer.status());
        drop(recording);
    }
}
