//! The names under which the tools and prompts of several servers are offered at one address.
//!
//! `{server}__{name}` where that says which server is meant, has at most [`MAX_NAME`] characters
//! and only such as every client takes. Any other name is cut and ends with digits of a hash; whose
//! it is, is kept in control state, so that it means the same after a restart and at another proxy.
//! No two tools ever have the same name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use custody_journal::control::{Change, Control, State};
use custody_schemas::json::Json;
use sha2::{Digest, Sha256};

/// The longest name that all clients take.
pub(crate) const MAX_NAME: usize = 64;
/// Between server and name.
const BETWEEN: &str = "__";
/// How many digits of a hash a name ends with.
const DIGITS: usize = 10;
/// How many where a name with fewer is taken.
const MANY_DIGITS: usize = 40;
/// What the keys in control state begin with.
const PREFIX: &str = "names/";
/// The most names of a server that are kept.
const MAX_KEPT: usize = 2000;

/// Names towards clients, and what they stand for.
pub(crate) struct Names {
    servers: Vec<String>,
    control: Option<Control>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    folded: Option<Arc<State>>,
    /// Server and name, by the name that clients see.
    meant: HashMap<String, (String, String)>,
}

impl Names {
    /// Names for these servers.
    pub(crate) fn new(servers: Vec<String>, control: Option<Control>) -> Self {
        Self { servers, control, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = &self.control {
            kept.fold(control.state());
        }
        kept
    }

    /// The name under which clients know `name` of `server`.
    pub(crate) fn expose(&self, server: &str, name: &str) -> String {
        let plain = format!("{server}{BETWEEN}{name}");
        if self.is_clear(server, &plain) && !self.kept().is_taken(&plain, server, name) {
            return plain;
        }
        let digest = Sha256::new().chain_update(server).chain_update([0]).chain_update(name);
        let digits = hex::encode(digest.finalize());
        let usual = |c: char| if is_usual(c) { c } else { '_' };
        let with = |count: usize| {
            let start: String = plain.chars().map(usual).take(MAX_NAME - count - 1).collect();
            format!("{start}_{}", &digits[..count])
        };
        // whoever looks for a name that another has already finds one with more digits
        let taken = |exposed: &String| self.kept().is_taken(exposed, server, name);
        let short = with(DIGITS);
        let exposed = if taken(&short) { with(MANY_DIGITS) } else { short };
        self.keep(&exposed, server, name);
        exposed
    }

    /// Whose name it is that a client knows, and what its server calls it.
    pub(crate) fn resolve(&self, exposed: &str) -> Option<(String, String)> {
        if let Some(meant) = self.kept().meant.get(exposed) {
            return self.servers.contains(&meant.0).then(|| meant.clone());
        }
        let prefixed = |server: &&String| {
            exposed.strip_prefix(server.as_str()).is_some_and(|rest| rest.starts_with(BETWEEN))
        };
        let server =
            self.servers.iter().find(prefixed).filter(|server| self.is_clear(server, exposed))?;
        let name = exposed.get(server.len() + BETWEEN.len()..)?;
        Some((server.clone(), name.to_owned()))
    }

    /// Whether a plain name can be given out as it is, and means this server only.
    fn is_clear(&self, server: &str, plain: &str) -> bool {
        let others = self.servers.iter().filter(|other| *other != server);
        let ours_only = others
            .filter_map(|other| plain.strip_prefix(other.as_str()))
            .all(|rest| !rest.starts_with(BETWEEN));
        plain.len() <= MAX_NAME && plain.chars().all(is_usual) && ours_only
    }

    /// Keeps what a name stands for.
    fn keep(&self, exposed: &str, server: &str, name: &str) {
        {
            let mut kept = self.kept();
            let meant = (server.to_owned(), name.to_owned());
            if kept.meant.get(exposed) == Some(&meant) {
                return;
            }
            let of_server = kept.meant.values().filter(|(other, _)| other == server).count();
            if of_server >= MAX_KEPT {
                tracing::warn!(
                    server,
                    "too many long names: the next ones are forgotten at a restart"
                );
                return;
            }
            kept.meant.insert(exposed.to_owned(), meant);
        }
        if let Some(control) = self.control.clone() {
            let (key, exposed, name) =
                (format!("{PREFIX}{server}"), exposed.to_owned(), name.to_owned());
            let work = move || {
                let kept = control.update(&key, |entry| {
                    let mut names = match entry {
                        Some(Json::Map(names)) => names.clone(),
                        _ => BTreeMap::new(),
                    };
                    match names.insert(exposed.clone(), Json::from(name.as_str())) {
                        Some(Json::Text(known)) if known == name => Change::Keep,
                        _ => Change::Set(Json::Map(names)),
                    }
                });
                if let Err(error) = kept {
                    tracing::error!(%error, key, "a long name is not in control state: it is forgotten at a restart");
                }
            };
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(work)),
                Err(_) => work(),
            }
        }
    }
}

impl Kept {
    fn fold(&mut self, state: Arc<State>) {
        if self.folded.as_ref().is_some_and(|folded| Arc::ptr_eq(folded, &state)) {
            return;
        }
        for (key, entry) in state.entries(PREFIX) {
            let (Some(server), Json::Map(names)) = (key.strip_prefix(PREFIX), entry) else {
                continue;
            };
            for (exposed, name) in names {
                if let Json::Text(name) = name {
                    self.meant.insert(exposed.clone(), (server.to_owned(), name.clone()));
                }
            }
        }
        self.folded = Some(state);
    }

    /// Whether a name stands for something else already.
    fn is_taken(&self, exposed: &str, server: &str, name: &str) -> bool {
        self.meant.get(exposed).is_some_and(|meant| (&*meant.0, &*meant.1) != (server, name))
    }
}

/// Whether clients take this character in a name.
fn is_usual(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn names(servers: &[&str], control: Option<Control>) -> Names {
        Names::new(servers.iter().map(|name| (*name).to_owned()).collect(), control)
    }

    #[test]
    fn mistake_08_names_are_short_usual_and_never_collide_and_mean_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        let servers = ["a", "a__b", "ehr"];
        let all = names(&servers, Some(control.clone()));
        let long = "x".repeat(200);
        let tools =
            ["c", "b__c", "search", "søk", "with.dot", "", "__", &long, &format!("{long}y")];
        let mut exposed = HashSet::new();
        for server in servers {
            for tool in tools {
                let name = all.expose(server, tool);
                assert!(name.len() <= MAX_NAME && name.chars().all(is_usual), "{name}");
                assert!(exposed.insert(name.clone()), "{server} {tool} is {name}, like another");
                assert_eq!(all.resolve(&name), Some((server.to_owned(), tool.to_owned())));
                assert_eq!(all.expose(server, tool), name);
            }
        }
        let later = names(&servers, Some(control));
        for server in servers {
            for tool in tools {
                let name = all.expose(server, tool);
                assert_eq!(later.resolve(&name), Some((server.to_owned(), tool.to_owned())));
            }
        }
        assert_eq!(all.expose("ehr", "search"), "ehr__search");
        assert_eq!(all.resolve("lab__search"), None);
        assert_eq!(all.resolve("search"), None);
    }

    #[test]
    fn mistake_08_a_tool_that_is_called_like_anothers_short_name_gets_another_one() {
        let all = names(&["ehr"], None);
        let short = all.expose("ehr", &"x".repeat(100));
        let forged = short.strip_prefix("ehr__").unwrap();
        let other = all.expose("ehr", forged);
        assert_ne!(other, short);
        assert_eq!(all.resolve(&short).unwrap().1.len(), 100);
        assert_eq!(all.resolve(&other).unwrap().1, forged);
    }

    #[test]
    fn a_name_whose_digits_are_taken_gets_more_of_them() {
        let all = names(&["a.b", "a_b"], None);
        let long = "x".repeat(100);
        let first = all.expose("a.b", &long);
        let taken = ("a_b".to_owned(), "other".to_owned());
        all.kept().meant.insert(first.clone(), taken.clone());
        let second = all.expose("a.b", &long);
        assert!(second != first && second.len() == MAX_NAME);
        assert_eq!(all.resolve(&first), Some(taken));
        assert_eq!(all.resolve(&second), Some(("a.b".to_owned(), long.clone())));
        assert_eq!(all.expose("a.b", &long), second);
    }
}
