//! The commit protocol as a model, every interleaving of which is tried: two workers that both
//! believe that a partition is theirs, a compactor, a store that loses answers and lets writes
//! land late, processes that die at any step.
//!
//! What is modelled is what the protocol rests on: creating a log entry of a version succeeds once
//! (`If-None-Match`, or a hard link), and Delta's conflict check refuses a commit when a version
//! behind its snapshot carries a `txn` of the same application. Each [`Flaw`] is the protocol with
//! one rule left out, and the same properties find it.

use std::io::Write;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

/// Entries of the journal, unless `CUSTODY_MODEL_ENTRIES` says so.
const ENTRIES: u8 = 3;
/// The most that can be asked for.
const MOST: usize = 8;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Flaw {
    /// A commit is not checked against the snapshot that it is based on.
    NoCheck,
    /// The position is checked on one snapshot and the commit based on a newer one.
    CheckOnAnother,
    /// The position is committed first, its rows in a commit of their own.
    OffsetsFirst,
    /// A rewrite carries no `txn` of its own.
    RewriteUnfenced,
}

/// What a table version adds and takes away, and the positions that it sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Commit {
    /// The version whose snapshot it was checked against and is based on.
    base: usize,
    /// Files by their number: the offsets in each, as a half-open range.
    adds: Vec<(u8, u8)>,
    /// Files that leave, by the version that added them.
    removes: Vec<usize>,
    txn: Option<u8>,
    rewrite: Option<u8>,
}

/// What a worker is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Worker {
    /// It knows nothing.
    Idle,
    /// It has built a batch from `start` to `end`.
    Built { start: u8, end: u8 },
    /// It has looked at version `base` and found the table at its start.
    Checked { start: u8, end: u8, base: usize },
    /// Its position is committed; the rows are not. Only with [`Flaw::OffsetsFirst`].
    Owes { start: u8, end: u8 },
}

/// What the compactor is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Compactor {
    Idle,
    /// It has rewritten the files that were live at version `base`.
    Rewritten {
        base: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    versions: Vec<Commit>,
    workers: [Worker; 2],
    compactors: [Compactor; 2],
    /// Writes that nobody waits for any more, each of which may still land as one version.
    late: Vec<(usize, Commit)>,
}

impl State {
    fn latest(&self) -> usize {
        self.versions.len()
    }

    /// The position at a version; version 0 is the empty table.
    fn txn(&self, version: usize) -> u8 {
        self.versions[..version].iter().rev().find_map(|commit| commit.txn).unwrap_or(0)
    }

    fn rewrite(&self, version: usize) -> u8 {
        self.versions[..version].iter().rev().find_map(|commit| commit.rewrite).unwrap_or(0)
    }

    /// The versions whose files are live at a version.
    fn live(&self, version: usize) -> Vec<usize> {
        let commits = &self.versions[..version];
        let removed: Vec<_> = commits.iter().flat_map(|commit| &commit.removes).collect();
        (0..version)
            .filter(|added| !removed.contains(&added) && !commits[*added].adds.is_empty())
            .collect()
    }

    /// How often each entry stands in the table at a version.
    fn rows(&self, version: usize) -> [u8; MOST] {
        let mut rows = [0; MOST];
        for added in self.live(version) {
            for (first, end) in &self.versions[added].adds {
                (*first..*end).for_each(|offset| rows[usize::from(offset)] += 1);
            }
        }
        rows
    }

    /// Delta's conflict check: whether a version behind the commit's base forbids it.
    fn conflicts(&self, commit: &Commit) -> bool {
        self.versions[commit.base..].iter().any(|other| {
            (commit.txn.is_some() && other.txn.is_some())
                || (commit.rewrite.is_some() && other.rewrite.is_some())
        })
    }
}

/// One step of somebody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// A worker reads from the table's position up to `end`.
    Build { worker: usize, end: u8 },
    /// A worker looks at the newest snapshot.
    Check { worker: usize },
    /// A worker's commit is tried, and this becomes of it.
    Commit { worker: usize, fate: Fate },
    /// A worker dies, or is fenced, and forgets its batch.
    Forget { worker: usize },
    /// A compactor rewrites all files that are live now.
    Rewrite { compactor: usize },
    /// A compactor's commit is tried.
    Replace { compactor: usize, fate: Fate },
    /// A write that nobody waits for any more arrives.
    Arrive { late: usize },
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    /// It is carried out and answered.
    Answered,
    /// It is carried out and the answer is lost.
    AnswerLost,
    /// It is given up on while it is still under way.
    Late,
}

const FATES: [Fate; 3] = [Fate::Answered, Fate::AnswerLost, Fate::Late];

struct Protocol {
    flaw: Option<Flaw>,
    entries: u8,
}

impl Protocol {
    fn with(flaw: Option<Flaw>) -> Self {
        let asked = std::env::var("CUSTODY_MODEL_ENTRIES").ok().and_then(|text| text.parse().ok());
        Self { flaw, entries: asked.unwrap_or(ENTRIES) }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Tries a commit; whether the caller knows that it is in the table.
    fn put(state: &mut State, commit: Commit, fate: Fate) -> bool {
        if state.conflicts(&commit) {
            return false;
        }
        let version = state.latest();
        match fate {
            Fate::Late => {
                state.late.push((version, commit));
                false
            }
            Fate::Answered | Fate::AnswerLost => {
                state.versions.push(commit);
                fate == Fate::Answered
            }
        }
    }

    fn check(&self, state: &mut State, worker: usize) {
        let base = state.latest();
        let found = state.txn(base);
        let next = match state.workers[worker].clone() {
            Worker::Built { start, end } if self.has(Flaw::NoCheck) => {
                Worker::Checked { start, end, base }
            }
            Worker::Built { end, .. } if found == end => Worker::Idle,
            Worker::Built { start, end } if found == start => Worker::Checked { start, end, base },
            Worker::Built { .. } => Worker::Idle,
            other @ (Worker::Idle | Worker::Checked { .. } | Worker::Owes { .. }) => other,
        };
        state.workers[worker] = next;
    }

    fn commit(&self, state: &mut State, worker: usize, fate: Fate) {
        let latest = state.latest();
        let (commit, start, end) = match state.workers[worker] {
            Worker::Checked { start, end, base } => {
                let base = if self.has(Flaw::CheckOnAnother) { latest } else { base };
                let adds =
                    if self.has(Flaw::OffsetsFirst) { Vec::new() } else { vec![(start, end)] };
                (Commit { base, adds, txn: Some(end), ..Commit::default() }, start, end)
            }
            Worker::Owes { start, end } => {
                (Commit { base: latest, adds: vec![(start, end)], ..Commit::default() }, start, end)
            }
            Worker::Idle | Worker::Built { .. } => return,
        };
        let owed = matches!(state.workers[worker], Worker::Owes { .. });
        let known = Self::put(state, commit, fate);
        state.workers[worker] = match (known, owed) {
            (true, false) if self.has(Flaw::OffsetsFirst) => Worker::Owes { start, end },
            (true, _) => Worker::Idle,
            (false, true) => Worker::Owes { start, end },
            // The outcome is unknown: back to step 1 with the same batch.
            (false, false) => Worker::Built { start, end },
        };
    }

    fn replace(&self, state: &mut State, compactor: usize, fate: Fate) {
        let Compactor::Rewritten { base } = state.compactors[compactor] else { return };
        let removes = state.live(base);
        let adds = removes.iter().flat_map(|added| state.versions[*added].adds.clone()).collect();
        let fenced = !self.has(Flaw::RewriteUnfenced);
        let rewrite = fenced.then(|| state.rewrite(base) + 1);
        // Whatever the answer, the compactor begins anew: its sources are looked up again.
        Self::put(state, Commit { base, adds, removes, txn: None, rewrite }, fate);
        state.compactors[compactor] = Compactor::Idle;
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let workers = [Worker::Idle, Worker::Idle];
        let compactors = [Compactor::Idle, Compactor::Idle];
        vec![State { versions: Vec::new(), workers, compactors, late: Vec::new() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for worker in 0..2 {
            match state.workers[worker] {
                Worker::Idle => {
                    let next = state.txn(state.latest()) + 1;
                    actions.extend((next..=self.entries).map(|end| Action::Build { worker, end }));
                }
                Worker::Built { .. } => {
                    actions.push(Action::Check { worker });
                    actions.push(Action::Forget { worker });
                }
                Worker::Checked { .. } | Worker::Owes { .. } => {
                    actions.extend(FATES.map(|fate| Action::Commit { worker, fate }));
                    actions.push(Action::Forget { worker });
                }
            }
        }
        for compactor in 0..2 {
            match state.compactors[compactor] {
                Compactor::Idle if state.live(state.latest()).len() > 1 => {
                    actions.push(Action::Rewrite { compactor });
                }
                Compactor::Idle => {}
                Compactor::Rewritten { .. } => {
                    actions.extend(FATES.map(|fate| Action::Replace { compactor, fate }));
                }
            }
        }
        actions.extend((0..state.late.len()).map(|late| Action::Arrive { late }));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Build { worker, end } => {
                let start = state.txn(state.latest());
                state.workers[worker] = Worker::Built { start, end };
            }
            Action::Check { worker } => self.check(&mut state, worker),
            Action::Commit { worker, fate } => self.commit(&mut state, worker, fate),
            Action::Forget { worker } => state.workers[worker] = Worker::Idle,
            Action::Rewrite { compactor } => {
                state.compactors[compactor] = Compactor::Rewritten { base: state.latest() };
            }
            Action::Replace { compactor, fate } => self.replace(&mut state, compactor, fate),
            Action::Arrive { late } => {
                // It can only ever become the version that it was made for.
                let (version, commit) = state.late.remove(late);
                if version == state.latest() {
                    state.versions.push(commit);
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no duplicate row", |_, state: &State| {
                state.rows(state.latest()).iter().all(|times| *times <= 1)
            }),
            Property::always(
                "offsets are never ahead of rows, rows never ahead of offsets",
                |_, state: &State| {
                    let (rows, txn) = (state.rows(state.latest()), state.txn(state.latest()));
                    (0..MOST).all(|offset| (rows[offset] > 0) == (offset < usize::from(txn)))
                },
            ),
            Property::always("a position never goes back", |_, state: &State| {
                (1..=state.latest()).all(|version| state.txn(version - 1) <= state.txn(version))
            }),
            Property::always("a cut never changes its answer", |_, state: &State| {
                // Rows below a cut that an earlier version had reached, now and then.
                let now = state.rows(state.latest());
                (0..state.latest()).all(|version| {
                    let (then, cut) = (state.rows(version), usize::from(state.txn(version)));
                    then[..cut] == now[..cut]
                })
            }),
            Property::sometimes("everything is stored", |model: &Self, state: &State| {
                state.txn(state.latest()) == model.entries
            }),
            Property::sometimes("files are rewritten", |_, state: &State| {
                state.versions.iter().any(|commit| !commit.removes.is_empty())
            }),
            Property::sometimes("a late write lands", |_, state: &State| {
                !state.late.is_empty() && state.latest() > 2
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.late.len() <= 2
    }
}

/// Whether a property has to hold in every state, and not only in some.
fn is_promise(name: &str) -> bool {
    let properties = Protocol::with(None).properties();
    properties.iter().any(|p| p.name == name && p.expectation == Expectation::Always)
}

fn say(what: &str) {
    writeln!(std::io::stderr(), "{what}").expect("somebody reads it");
}

#[test]
fn no_history_of_the_commit_protocol_loses_doubles_or_changes_a_row() {
    let checked = Protocol::with(None).checker().spawn_bfs().join();
    checked.assert_properties();
    say(&format!("{} states", checked.unique_state_count()));
    assert!(checked.unique_state_count() > 10_000, "too few histories to say anything");
}

#[test]
fn each_rule_of_the_commit_protocol_is_missed_when_it_is_left_out() {
    for flaw in [Flaw::NoCheck, Flaw::CheckOnAnother, Flaw::OffsetsFirst, Flaw::RewriteUnfenced] {
        let checker = Protocol::with(Some(flaw)).checker();
        let checked = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let broken: Vec<_> =
            checked.discoveries().into_keys().filter(|name| is_promise(name)).collect();
        say(&format!("{flaw:?}: {broken:?}"));
        assert!(!broken.is_empty(), "{flaw:?} is not noticed");
    }
}
