//! Which definition of each tool is in force, and which one is pinned.
//!
//! What one proxy sees, all of the deployment know: it stands in control state
//! ([`custody_schemas::tools`]), and an approval there is in force here with the next call. Until it
//! is written there, and where there is none, it holds here. At most
//! [`MAX_TOOLS`](custody_schemas::tools::MAX_TOOLS) tools of a server are kept: beyond, where pins are
//! enforced, a tool is hidden and refused, so that nobody can push a pin out.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use custody_journal::control::{Change, Control, State};
use custody_schemas::id::{Hash, Uint};
use custody_schemas::tools::{self, MAX_TOOLS, Pinned, Standing, Tool, Tools};

use super::definition::{Definition, List};
use super::settings::Pin;
use crate::config::Server;

/// How many definitions of a tool are remembered, so that one that comes and goes is told once.
const RECENT: usize = 8;

/// Whether a tool may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may; its definition in force, if it was ever listed.
    Allowed(Option<Hash>),
    /// The configuration says no.
    Denied,
    /// Its definition has changed, or was never approved.
    Changed(Option<Hash>),
}

/// A definition that was not seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The tool.
    pub(crate) tool: String,
    /// Its definition.
    pub(crate) hash: Hash,
    /// Where that stands in the answer.
    pub(crate) range: Range<usize>,
    /// The definition before it.
    pub(crate) previous: Option<Hash>,
    /// Other servers that have a tool of the same name.
    pub(crate) also_on: Vec<String>,
    /// Whether the definition that is pinned is another one.
    pub(crate) is_unapproved: bool,
}

/// What a list of tools tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// What is new in it.
    pub(crate) observed: Vec<Observed>,
    /// The names that may be shown.
    pub(crate) shown: BTreeSet<String>,
    /// Whether a definition that can be read in two ways is shown, too.
    shows_ambiguous: bool,
}

impl Look {
    /// Whether a tool may be shown.
    pub(crate) fn shows(&self, tool: &Definition) -> bool {
        (self.shows_ambiguous || !tool.is_ambiguous) && self.shown.contains(&tool.name)
    }
}

/// The tools of all servers.
pub(crate) struct Registry {
    control: Option<Control>,
    known: Mutex<Known>,
    saving: AtomicBool,
}

#[derive(Default)]
struct Known {
    /// The control state that is folded in.
    folded: Option<Arc<State>>,
    servers: HashMap<String, Tools>,
    /// Recent definitions of each tool of each server.
    recent: HashMap<String, HashMap<String, Vec<Hash>>>,
    /// What control state does not say yet.
    unsaved: HashMap<String, BTreeSet<String>>,
}

impl Registry {
    /// The tools as control state knows them.
    pub(crate) fn new(control: Option<Control>) -> Arc<Self> {
        Arc::new(Self { control, known: Mutex::default(), saving: AtomicBool::new(false) })
    }

    /// What is known, with everything that control state says.
    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = &self.control {
            known.fold(control.state());
        }
        known
    }

    /// Whether a call of this tool may go on.
    pub(crate) fn judge(&self, server: &Server, tool: &str) -> Verdict {
        if !server.tools.allow(tool) {
            return Verdict::Denied;
        }
        let known = self.known();
        let tools = known.servers.get(&server.name);
        let entry = tools.and_then(|tools| tools.get(&tools::name(tool)));
        let seen = entry.map(|tool| tool.seen);
        let is_full = tools.is_some_and(|tools| tools.len() >= MAX_TOOLS);
        let is_refused = match entry.map(Tool::standing) {
            Some(Standing::Changed) => true,
            Some(Standing::Pinned | Standing::Unpinned) => false,
            None => is_full,
        };
        if is_refused && server.tools.pin == Pin::Enforce {
            return Verdict::Changed(seen);
        }
        Verdict::Allowed(seen)
    }

    /// Takes in a list of tools as of `at`.
    pub(crate) fn look(&self, server: &Server, list: &List, at: Uint) -> Look {
        let mut look = Look::default();
        {
            let mut known = self.known();
            for definition in list.tools() {
                let observed = known.observe(server, definition, at);
                look.observed.extend(observed);
            }
        }
        look.shows_ambiguous = !server.tools.may_hide();
        let fine =
            |tool: &&Definition| matches!(self.judge(server, &tool.name), Verdict::Allowed(_));
        look.shown = list.tools().filter(fine).map(|tool| tool.name.clone()).collect();
        look
    }

    /// Takes back what could not be recorded, so that it is new the next time.
    pub(crate) fn forget(&self, server: &str, observed: &[Observed]) {
        let mut known = self.known();
        for observed in observed {
            let name = tools::name(&observed.tool);
            if let Some(recent) = known.recent.get_mut(server).and_then(|r| r.get_mut(&name)) {
                recent.retain(|hash| *hash != observed.hash);
            }
            let Some(tools) = known.servers.get_mut(server) else { continue };
            match (observed.previous, tools.get_mut(&name)) {
                (Some(previous), Some(tool)) => tool.seen = previous,
                (None, _) | (_, None) => drop(tools.remove(&name)),
            }
        }
    }

    /// Writes into control state what it does not say yet. Goes on by itself.
    pub(crate) fn save(self: &Arc<Self>) {
        let idle = self.control.is_some()
            && !self.known().unsaved.is_empty()
            && !self.saving.swap(true, Ordering::AcqRel);
        if !idle {
            return;
        }
        let registry = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = registry.save_all() {
                tracing::error!(%error, "tool definitions are not in control state yet; the next new one tries again");
            }
            registry.saving.store(false, Ordering::Release);
        });
    }

    pub(super) fn save_all(&self) -> Result<(), custody_journal::control::ControlError> {
        let Some(control) = &self.control else { return Ok(()) };
        loop {
            let (server, names, ours) = {
                let known = self.known();
                let Some((server, names)) = known.unsaved.iter().next() else { return Ok(()) };
                let ours = known.servers.get(server).cloned().unwrap_or_default();
                (server.clone(), names.clone(), ours)
            };
            control.update(&tools::key(&server), |entry| {
                let before = tools::read(entry);
                let mut tools = before.clone();
                for name in &names {
                    if let Some(own) = ours.get(name)
                        && (tools.len() < MAX_TOOLS || tools.contains_key(name))
                    {
                        let merged = merge(own, tools.get(name));
                        tools.insert(name.clone(), merged);
                    }
                }
                if tools == before { Change::Keep } else { Change::Set(tools::write(&tools)) }
            })?;
            let mut known = self.known();
            if let Some(unsaved) = known.unsaved.get_mut(&server) {
                unsaved.retain(|name| !names.contains(name));
                if unsaved.is_empty() {
                    known.unsaved.remove(&server);
                }
            }
        }
    }
}

/// The later sight, and the pin that is shared, if there is one.
fn merge(own: &Tool, shared: Option<&Tool>) -> Tool {
    let Some(shared) = shared else { return own.clone() };
    let later = if own.seen_at > shared.seen_at { own } else { shared };
    let pinned = shared.pinned.clone().or_else(|| own.pinned.clone());
    Tool { pinned, ..later.clone() }
}

impl Known {
    fn fold(&mut self, state: Arc<State>) {
        if self.folded.as_ref().is_some_and(|folded| Arc::ptr_eq(folded, &state)) {
            return;
        }
        for (key, entry) in state.entries(tools::PREFIX) {
            let Some(server) = key.strip_prefix(tools::PREFIX) else { continue };
            let own = self.servers.entry(server.to_owned()).or_default();
            for (name, shared) in tools::read(Some(entry)) {
                let merged =
                    own.get(&name).map_or_else(|| shared.clone(), |own| merge(own, Some(&shared)));
                own.insert(name, merged);
            }
        }
        self.folded = Some(state);
    }

    /// Takes in a definition; what is new in it.
    fn observe(&mut self, server: &Server, definition: &Definition, at: Uint) -> Option<Observed> {
        let (name, hash) = (tools::name(&definition.name), definition.hash);
        let also_on = self
            .servers
            .iter()
            .filter(|(other, tools)| **other != server.name && tools.contains_key(&name));
        let mut also_on: Vec<_> = also_on.map(|(other, _)| other.clone()).collect();
        also_on.sort_unstable();
        let tools = self.servers.entry(server.name.clone()).or_default();
        if tools.len() >= MAX_TOOLS && !tools.contains_key(&name) {
            return None;
        }
        let previous = tools.get(&name).map(|tool| tool.seen);
        let pins = server.tools.pin != Pin::Off;
        let first = || Tool { seen: hash, seen_at: at, pinned: None };
        let tool = tools.entry(name.clone()).or_insert_with(first);
        let before = tool.clone();
        if tool.seen != hash {
            (tool.seen, tool.seen_at) = (hash, at);
        }
        if pins && tool.pinned.is_none() {
            tool.pinned = Some(Pinned { hash, at, by: None });
        }
        let is_unapproved = tool.standing() == Standing::Changed;
        let is_changed = previous != Some(hash);
        let needs_saving = previous.is_none() || *tool != before;
        let recent = self.recent.entry(server.name.clone()).or_default();
        let recent = recent.entry(name.clone()).or_default();
        let is_new = is_changed && !recent.contains(&hash);
        if !recent.contains(&hash) {
            recent.push(hash);
            if recent.len() > RECENT {
                recent.remove(0);
            }
        }
        if needs_saving && (is_new || !is_changed) {
            self.unsaved.entry(server.name.clone()).or_default().insert(name);
        }
        let (tool, range) = (definition.name.clone(), definition.range.clone());
        is_new.then_some(Observed { tool, hash, range, previous, also_on, is_unapproved })
    }
}
