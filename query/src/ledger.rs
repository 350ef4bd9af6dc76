//! The ledger: everything that has been read, folded once.
//!
//! It begins with what the lake held at start, so that each answer carries its completeness without
//! a scan. It is judged over the writers of the keyring, not over what happened to arrive.

use std::collections::{BTreeMap, HashMap};

use custody_schemas::event::Event;
use custody_schemas::id::{Micros, StreamId};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, Identity};
use custody_schemas::seal::{FLAG_OUTCOME_UNKNOWN, FLAG_PHI, FLAG_UNRECOGNISED};
use custody_schemas::words::SubjectStatus;

use crate::completeness::{CANNOT_SHOW, Completeness, ListedWriter, State, WriterState, text};
use crate::ranges::Ranges;

/// A writer that says nothing for this long is silent.
const SILENT_AFTER_US: u64 = 30_000_000;

/// What a record is to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    /// A record that was not there yet, or one without identity.
    New,
    /// The same record once more.
    Duplicate,
    /// Another record under an identity that is taken.
    Conflict,
}

/// What is known of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamState {
    pub(crate) stored: Ranges,
    pub(crate) last_at: u64,
    pub(crate) closed: bool,
    /// How many events it had when the next run of its writer began.
    pub(crate) size: u64,
    /// Hashes of the newest records, to tell a resent one from another one.
    recent: BTreeMap<u64, [u8; 32]>,
}

/// How many hashes a stream keeps.
const RECENT: usize = 4096;

/// Sums that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) unknown_outcomes: u64,
    pub(crate) phi_calls: u64,
    pub(crate) phi_calls_without_patient: u64,
    pub(crate) undecodable: u64,
    pub(crate) conflicts: u64,
    pub(crate) duplicates: u64,
    pub(crate) late: u64,
    pub(crate) degraded: u64,
    pub(crate) restored: u64,
    pub(crate) integrity_failures: u64,
    pub(crate) skipped: u64,
    pub(crate) lost: u64,
}

/// Everything that has been read, folded.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) streams: HashMap<StreamId, StreamState>,
    /// Open calls, and whether each is one with protected health information.
    pub(crate) open: HashMap<String, bool>,
    /// How many subjects of open calls are listed apart from the ending to come.
    listed: HashMap<String, u64>,
    /// Ended calls of which fewer subjects are listed than their ending says, and how many fewer.
    partly: HashMap<String, u64>,
    pub(crate) sums: Sums,
}

impl Ledger {
    /// Folds one record.
    pub(crate) fn fold(&mut self, decoded: &Decoded, bytes: &[u8]) -> Fold {
        let identity = match decoded {
            Decoded::Event(event) => event.identity(),
            Decoded::Identified { identity, .. } => identity.clone(),
            Decoded::Undecodable { .. } => {
                self.undecodable();
                return Fold::New;
            }
        };
        let seq = identity.seq.get();
        let hash = custody_schemas::record::hash(bytes).0;
        let stream = self.streams.entry(identity.stream.clone()).or_default();
        if stream.stored.contains(seq) {
            // A record whose hash is no longer kept counts as resent; ingest compares with the
            // stored bytes.
            let same = stream.recent.get(&seq).is_none_or(|known| *known == hash);
            if same {
                self.sums.duplicates += 1;
                return Fold::Duplicate;
            }
            self.sums.conflicts += 1;
            return Fold::Conflict;
        }
        if seq < stream.stored.end() {
            self.sums.late += 1;
        }
        stream.add(seq, hash, &identity);
        let call = match decoded {
            Decoded::Event(event) => event.call.map(|call| call.to_string()),
            Decoded::Identified { .. } | Decoded::Undecodable { .. } => None,
        };
        if let (Kind::StreamOpened, Decoded::Event(event)) = (&identity.kind, decoded) {
            self.previous(event.detail.get("previous"));
        }
        if let (Some(call), Decoded::Event(event)) = (&call, decoded) {
            self.subjects(call, event);
        }
        self.count(&identity, call, recognised(decoded));
        Fold::New
    }

    /// Compares what an ending says with what is listed before it, or late.
    fn subjects(&mut self, call: &str, event: &Event) {
        let here = event.data.subjects.len() as u64;
        if event.kind == Kind::SubjectsListed {
            self.listed(call, None, here);
        } else if event.kind == Kind::CallEnded {
            let said = event.data.subject_count.map_or(0, |count| count.get());
            let apart = self.listed.remove(call).unwrap_or(0);
            self.listed(call, Some(said.saturating_sub(here)), apart);
        }
    }

    /// Takes note of subjects that are `listed` apart from their call's ending; an ending has `said`
    /// how many that should be.
    pub(crate) fn listed(&mut self, call: &str, said: Option<u64>, listed: u64) {
        if let Some(said) = said {
            if said > listed {
                self.partly.insert(call.to_owned(), said - listed);
            }
        } else if let Some(missing) = self.partly.get_mut(call) {
            *missing = missing.saturating_sub(listed);
            if *missing == 0 {
                self.partly.remove(call);
            }
        } else if self.open.contains_key(call) {
            *self.listed.entry(call.to_owned()).or_default() += listed;
        }
    }

    fn count(&mut self, event: &Identity, call: Option<String>, recognised: bool) {
        let phi = event.flags & FLAG_PHI != 0;
        let is = |kind: Kind| u64::from(event.kind == kind);
        let sums = &mut self.sums;
        sums.degraded += is(Kind::AuditDegraded);
        sums.restored += is(Kind::AuditRestored);
        sums.integrity_failures += is(Kind::IntegrityFailed);
        if event.kind == Kind::CallEnded {
            sums.unknown_outcomes += u64::from(event.flags & FLAG_OUTCOME_UNKNOWN != 0);
            sums.phi_calls += u64::from(phi);
            sums.phi_calls_without_patient += u64::from(event.flags & FLAG_UNRECOGNISED != 0);
        }
        if event.kind == Kind::MessageRelayed && phi {
            sums.phi_calls += 1;
            sums.phi_calls_without_patient += u64::from(!recognised);
        }
        let Some(call) = call else { return };
        if event.kind == Kind::CallRequested {
            self.open.insert(call, phi);
        } else if event.kind == Kind::CallEnded {
            self.open.remove(&call);
        }
    }

    /// Folds what the opening of a run says of the one before it.
    pub(crate) fn previous(&mut self, previous: Option<&Json>) {
        let Some(Json::Map(previous)) = previous else { return };
        let number = |name| match previous.get(name) {
            Some(Json::Int(n)) => u64::try_from(n.get()).unwrap_or(0),
            _ => 0,
        };
        self.sums.lost += number("lost");
        let Some(Json::Text(stream)) = previous.get("stream") else { return };
        if let Ok(stream) = stream.parse() {
            let state = self.streams.entry(stream).or_default();
            state.size = state.size.max(number("size"));
        }
    }

    /// Counts an entry that cannot be understood.
    pub(crate) fn undecodable(&mut self) {
        self.sums.undecodable += 1;
    }

    /// Counts offsets that could not be read.
    pub(crate) fn skipped(&mut self, offsets: u64) {
        self.sums.skipped += offsets;
    }

    /// What an answer given at `now` says of itself; `behind` entries are durable but not in it.
    pub(crate) fn judge(&self, writers: &[ListedWriter], now: Micros, behind: u64) -> Completeness {
        let writers = self.writers(writers, now.get());
        let holds = |w: &&WriterState| matches!(w.state, State::Open | State::Silent);
        let slowest = writers.iter().filter(holds).min_by_key(|w| w.last_at);
        let through = slowest.map_or(now.get(), |w| w.last_at.unwrap_or(0)).min(now.get());
        let held_back_by = slowest.map(|w| w.name.clone());
        let open_phi = self.open.values().filter(|phi| **phi).count() as u64;
        let sums = self.sums;
        Completeness {
            as_of: text(now.get()),
            complete_through: Some(text(through)),
            through,
            held_back_by,
            silent: names(&writers, State::Silent),
            gaps: self.streams.values().map(StreamState::missing).sum(),
            lost: self.sums.lost,
            open_calls: self.open.len() as u64,
            unknown_outcomes: sums.unknown_outcomes,
            phi_calls: sums.phi_calls + open_phi,
            phi_calls_without_patient: sums.phi_calls_without_patient,
            calls_partly_listed: self.partly.len() as u64,
            undecodable: sums.undecodable,
            conflicts: sums.conflicts,
            duplicates: sums.duplicates,
            late: sums.late,
            degraded_intervals: sums.degraded,
            degraded_now: sums.degraded > sums.restored,
            integrity_failures: sums.integrity_failures,
            behind: behind + sums.skipped,
            bodies_behind: 0,
            unheard_since: None,
            cut: String::new(),
            writers,
            cannot_show: &CANNOT_SHOW,
        }
    }

    fn writers(&self, listed: &[ListedWriter], now: u64) -> Vec<WriterState> {
        let mut newest: BTreeMap<&str, (&StreamId, &StreamState)> = BTreeMap::new();
        let mut totals: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (id, state) in &self.streams {
            let newer =
                newest.get(id.writer()).is_none_or(|(_, known)| known.last_at <= state.last_at);
            if newer {
                newest.insert(id.writer(), (id, state));
            }
            let total = totals.entry(id.writer()).or_default();
            *total = (total.0 + state.stored.count(), total.1 + state.missing());
        }
        let unlisted = newest.keys().filter(|name| !listed.iter().any(|w| w.name == **name));
        let unlisted = unlisted.map(|name| (*name, None));
        let names = listed.iter().map(|w| (w.name.as_str(), Some(w))).chain(unlisted);
        let states = names.map(|(name, listed)| {
            let stream = newest.get(name);
            let last_at = stream.map(|(_, state)| state.last_at);
            let (events, gaps) = totals.get(name).copied().unwrap_or_default();
            WriterState {
                name: name.to_owned(),
                listed: listed.is_some(),
                state: state(listed, stream.map(|(_, state)| *state), now),
                stream: stream.map(|(id, _)| id.to_string()),
                last_at: last_at.or_else(|| listed.map(|w| w.from.get())),
                last: last_at.map(text),
                events,
                gaps,
            }
        });
        states.collect()
    }
}

impl StreamState {
    /// How many of its events are not stored, below its last or below its known size.
    fn missing(&self) -> u64 {
        self.stored.end().max(self.size) - self.stored.count()
    }

    fn add(&mut self, seq: u64, hash: [u8; 32], event: &Identity) {
        self.stored.add(seq, seq + 1);
        self.last_at = self.last_at.max(event.at.get());
        self.closed |= event.kind == Kind::StreamClosed;
        self.recent.insert(seq, hash);
        if self.recent.len() > RECENT {
            self.recent.pop_first();
        }
    }
}

fn state(listed: Option<&ListedWriter>, stream: Option<&StreamState>, now: u64) -> State {
    match stream {
        _ if listed.is_some_and(|w| w.retired) => State::Retired,
        None => State::Silent,
        Some(stream) if stream.closed => State::Closed,
        Some(stream) if stream.last_at + SILENT_AFTER_US < now => State::Silent,
        Some(_) => State::Open,
    }
}

fn names(writers: &[WriterState], state: State) -> Vec<String> {
    writers.iter().filter(|w| w.state == state).map(|w| w.name.clone()).collect()
}

fn recognised(decoded: &Decoded) -> bool {
    matches!(decoded, Decoded::Event(event)
        if event.data.subject_status == Some(SubjectStatus::Recognised))
}

#[cfg(test)]
mod tests;
