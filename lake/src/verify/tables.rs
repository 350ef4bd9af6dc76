//! Every row of `events` against its leaf, its columns and the table's log.

use std::sync::Arc;

use arrow::error::ArrowError;
use custody_schemas::event::Event;
use custody_schemas::id::StreamId;
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode};
use custody_schemas::seal::flags;

use super::bodies::Wanted;
use super::columns::Stored;
use super::streams::{Claim, Streams};
use super::{Progress, Verdict, VerifyError};
use crate::columns::EVENTS;
use crate::rows::event_date;
use crate::snapshot::{DataFile, Snapshot};
use crate::tables::Lake;

/// Reads every file of `events`.
pub(super) async fn read(
    lake: &Lake,
    streams: &mut Streams,
    mut wanted: Option<&mut Wanted>,
    verdict: &mut Verdict,
    progress: Progress<'_>,
) -> Result<(), VerifyError> {
    let snapshot = lake.events().snapshot().await?;
    let all = snapshot.files().len() as u64;
    for (done, file) in snapshot.files().iter().enumerate() {
        progress(done as u64, all);
        read_file(&snapshot, file, streams, wanted.as_deref_mut(), verdict).await;
    }
    progress(all, all);
    Ok(())
}

async fn read_file(
    snapshot: &Snapshot,
    file: &Arc<DataFile>,
    streams: &mut Streams,
    wanted: Option<&mut Wanted>,
    verdict: &mut Verdict,
) {
    verdict.files += 1;
    let checked = match snapshot.read(file).await {
        Ok(batches) => Stored::new(&batches).and_then(|stored| match stored {
            Some(stored) => {
                let mut one = File { file, stored: &stored, streams, wanted, verdict };
                one.check()
            }
            None => {
                nothing(file, verdict);
                Ok(())
            }
        }),
        Err(error) => return verdict.find(file.path.as_ref(), error.to_string()),
    };
    if let Err(error) = checked {
        verdict.find(file.path.as_ref(), error.to_string());
    }
}

/// A file without a row, which is right only if the table's log says so.
fn nothing(file: &DataFile, verdict: &mut Verdict) {
    if let Some(rows) = file.rows.filter(|rows| *rows > 0) {
        verdict.find(file.path.as_ref(), format!("it holds no row, and the log says {rows}"));
    }
}

/// One file under examination.
struct File<'a> {
    file: &'a DataFile,
    stored: &'a Stored,
    streams: &'a mut Streams,
    wanted: Option<&'a mut Wanted>,
    verdict: &'a mut Verdict,
}

impl File<'_> {
    fn check(&mut self) -> Result<(), ArrowError> {
        for row in 0..self.stored.len() {
            match self.stored.text("entry", row) {
                Some("event") => self.record(row, false),
                Some("conflict") => self.record(row, true),
                Some("checkpoint") => {}
                _ => self.verdict.undecodable += 1,
            }
        }
        self.stored.compare(self.file, self.verdict)?;
        self.stored.statistics(EVENTS, self.file, self.verdict);
        Ok(())
    }

    fn find(&mut self, row: usize, problem: impl Into<String>) {
        self.verdict.find(format!("{} row {row}", self.file.path), problem);
    }

    fn record(&mut self, row: usize, conflict: bool) {
        self.verdict.records += 1;
        self.verdict.conflicts += u64::from(conflict);
        let bytes = self.stored.record(row).unwrap_or_default();
        let (identity, event) = match decode(bytes) {
            Decoded::Event(event) => (event.identity(), Some(event)),
            Decoded::Identified { identity, .. } => (identity, None),
            Decoded::Undecodable { problem } => {
                return self.find(row, format!("its record cannot be read: {problem}"));
            }
        };
        let (stream, seq, leaf) =
            (identity.stream.clone(), identity.seq.get(), identity.leaf(bytes));
        self.date(row, &identity);
        let proven = self.streams.proven.entry(stream.clone()).or_default();
        let index = usize::try_from(seq).unwrap_or(usize::MAX);
        let Some(signed) = proven.leaves.get(index) else {
            let other = proven.tail.insert(seq, leaf);
            if other.is_some() && !conflict {
                self.find(row, format!("{stream} {seq} stands twice"));
            }
            return self.claims(event.as_deref(), &stream);
        };
        if *signed != leaf {
            if !conflict {
                self.find(row, format!("{stream} {seq} is not what its writer signed"));
            }
            return;
        }
        if std::mem::replace(&mut proven.seen[index], true) {
            return self.find(row, format!("{stream} {seq} stands twice"));
        }
        if conflict {
            self.find(row, format!("{stream} {seq} is what its writer signed, and is not shown"));
        }
        if event.as_deref().is_some_and(|event| flags(event) != event.flags) {
            self.find(row, format!("{stream} {seq}: its flags do not follow from its facts"));
        }
        self.note(event.as_deref(), &stream);
    }

    /// What a sealed record says of others.
    fn note(&mut self, event: Option<&Event>, stream: &StreamId) {
        let Some(event) = event else { return };
        self.streams.lawful.note(event);
        self.claims(Some(event), stream);
    }

    /// What a sound record says of bodies, and of the run before its own.
    fn claims(&mut self, event: Option<&Event>, stream: &StreamId) {
        let Some(event) = event else { return };
        if let Some(wanted) = &mut self.wanted {
            wanted.note(&event.bodies, event.at);
        }
        if event.kind == Kind::StreamOpened
            && let Some((previous, claim)) = claim(event, stream)
        {
            self.streams.claims.entry(previous).or_default().push(claim);
        }
    }

    fn date(&mut self, row: usize, identity: &custody_schemas::record::Identity) {
        let Some(journaled_at) = self.stored.moment("journaled_at", row) else { return };
        let expected = event_date(identity.at, custody_schemas::id::Uint::new(journaled_at));
        if self.file.event_date != Some(expected) {
            self.find(row, "it stands under another day than its own");
        }
    }
}

/// What a run says of the one before it.
fn claim(event: &Event, by: &StreamId) -> Option<(StreamId, Claim)> {
    let previous = event.detail.get("previous")?;
    let Json::Map(previous) = previous else { return None };
    let text = |name: &str| match previous.get(name) {
        Some(Json::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let size = match previous.get("size") {
        Some(Json::Int(size)) => u64::try_from(size.get()).ok()?,
        _ => return None,
    };
    let claim = Claim { by: by.clone(), size, root: text("root")?.parse().ok()? };
    Some((text("stream")?.parse().ok()?, claim))
}
