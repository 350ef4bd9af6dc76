//! The tools that servers offer: which definition of each is in force, whether it may be used.
//!
//! Every answer to `tools/list` is read on its way. A definition that was not seen before, or not
//! like this, is on the record as `tools.observed`, with its hash and its bytes, before the answer
//! is released; the hash in force stands in every call of the tool. Where the configuration hides
//! tools, or pins their definitions, those that may not be used are cut out of the list, and a call
//! of one is refused: what is cut is on the record as edits, and such a list is never said to be
//! the same for everybody (`cacheScope`).

mod definition;
mod registry;
mod settings;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use custody_schemas::id::{CallId, Uint};

pub(crate) use definition::{Definition, List};
pub(crate) use registry::{Observed, Registry, Verdict};
pub use settings::{Pattern, Pin, ToolSettings};

use crate::record::{Facts, Unrecorded};
use crate::{Proxy, Served};

/// The method whose answers are read.
pub(crate) const LISTING: &str = "tools/list";

/// Why a list of tools cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unshown {
    /// What is new in it cannot be recorded.
    Unrecorded,
    /// It cannot be told which tools it lists, and some must not be shown.
    Ambiguous,
}

impl From<Unrecorded> for Unshown {
    fn from(Unrecorded: Unrecorded) -> Self {
        Self::Unrecorded
    }
}

/// Looks at an answer to `tools/list` of `call`, and records what is new in it; what must be
/// changed in the answer. `private` lists are not the same for everybody, whatever the server says.
pub(crate) async fn look(
    proxy: &Proxy,
    served: &Served,
    (call, facts): (CallId, &Facts),
    bytes: &Bytes,
    private: bool,
) -> Result<Vec<(Range<usize>, String)>, Unshown> {
    let server = &served.server;
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let list = match List::read(text) {
        Ok(list) => list,
        Err(definition::Ambiguous) if server.tools.may_hide() || private => {
            return Err(Unshown::Ambiguous);
        }
        Err(definition::Ambiguous) => return Ok(Vec::new()),
    };
    let look = proxy.tools.look(server, &list, now());
    let recorded = proxy.recorder.observed(call, facts, &look.observed, bytes).await;
    if recorded.is_err() {
        proxy.tools.forget(&server.name, &look.observed);
    }
    recorded?;
    proxy.tools.save();
    let hides = server.tools.may_hide();
    let stays =
        |tool: &Option<Definition>| !hides || tool.as_ref().is_some_and(|tool| look.shows(tool));
    let cut = list.without(stays).into_iter().map(|range| (range, String::new()));
    let mut changes: Vec<_> = cut.collect();
    if let Some(scope) = list.scope.clone().filter(|_| hides || private) {
        changes.push((scope, "\"private\"".to_owned()));
    }
    Ok(changes)
}

fn now() -> Uint {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uint::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
