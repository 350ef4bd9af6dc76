//! What control state says of a server's tools: which definition of each was last seen, and which
//! one somebody has approved.
//!
//! One entry for each server, under [`key`]: an object of tools by name. Proxies write what they
//! see, and pin a tool's first definition; only an approval pins a later one. A tool's definition
//! is known by its hash, the definition itself is the body of a `tools.observed` event.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::id::{Hash, Uint};
use crate::json::Json;

/// What the keys begin with.
pub const PREFIX: &str = "tools/";
/// The most tools of one server that are kept.
pub const MAX_TOOLS: usize = 1000;
/// The longest name that stands for itself.
const MAX_NAME: usize = 96;

/// The key under which a server's tools stand.
#[must_use]
pub fn key(server: &str) -> String {
    format!("{PREFIX}{server}")
}

/// The name under which a tool stands there: its own, or for a very long one a hash.
#[must_use]
pub fn name(tool: &str) -> String {
    if tool.len() <= MAX_NAME {
        return tool.to_owned();
    }
    format!("sha256:{}", hex::encode(Sha256::digest(tool)))
}

/// What is known of one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Hash of the definition that was last seen.
    pub seen: Hash,
    /// Since when, in microseconds.
    pub seen_at: Uint,
    /// The definition that may be used where pins are enforced.
    pub pinned: Option<Pinned>,
}

/// An approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Hash of the definition.
    pub hash: Hash,
    /// When, in microseconds.
    pub at: Uint,
    /// Who approved it; nobody for the definition that was seen first.
    pub by: Option<String>,
}

/// How a tool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has pinned it.
    Unpinned,
    /// What was last seen is what is pinned.
    Pinned,
    /// It has changed since.
    Changed,
}

impl Standing {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unpinned => "unpinned",
            Self::Pinned => "pinned",
            Self::Changed => "changed",
        }
    }
}

impl Tool {
    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.pinned {
            None => Standing::Unpinned,
            Some(pinned) if pinned.hash == self.seen => Standing::Pinned,
            Some(_) => Standing::Changed,
        }
    }
}

/// The tools of one server, by the name under which they stand.
pub type Tools = BTreeMap<String, Tool>;

/// Reads an entry. What is no tool is left out: a later version may have written it.
#[must_use]
pub fn read(entry: Option<&Json>) -> Tools {
    let Some(Json::Map(entry)) = entry else { return Tools::new() };
    entry.iter().filter_map(|(name, value)| Some((name.clone(), tool(value)?))).collect()
}

/// Writes an entry.
#[must_use]
pub fn write(tools: &Tools) -> Json {
    let json = |tool: &Tool| {
        let mut map = BTreeMap::from([
            ("seen".to_owned(), Json::from(tool.seen.to_string())),
            ("seen_at".to_owned(), Json::from(tool.seen_at)),
        ]);
        if let Some(pinned) = &tool.pinned {
            map.insert("pinned".to_owned(), Json::from(pinned.hash.to_string()));
            map.insert("pinned_at".to_owned(), Json::from(pinned.at));
            let by = pinned.by.clone().map(|by| ("pinned_by".to_owned(), Json::from(by)));
            map.extend(by);
        }
        Json::Map(map)
    };
    Json::Map(tools.iter().map(|(name, tool)| (name.clone(), json(tool))).collect())
}

fn tool(value: &Json) -> Option<Tool> {
    let Json::Map(value) = value else { return None };
    let text = |key: &str| match value.get(key) {
        Some(Json::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let time = |key: &str| match value.get(key) {
        Some(Json::Int(at)) => u64::try_from(at.get()).map(Uint::new).unwrap_or_default(),
        _ => Uint::default(),
    };
    let pinned = text("pinned").and_then(|hash| hash.parse().ok()).map(|hash| Pinned {
        hash,
        at: time("pinned_at"),
        by: text("pinned_by"),
    });
    Some(Tool { seen: text("seen")?.parse().ok()?, seen_at: time("seen_at"), pinned })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Bytes;

    #[test]
    fn what_is_written_is_read_again_and_what_is_strange_left_out() {
        let seen = Bytes([7; 32]);
        let pinned = Pinned { hash: Bytes([8; 32]), at: Uint::new(5), by: Some("ann".into()) };
        let first = Pinned { hash: seen, at: Uint::new(4), by: None };
        let tool = |pinned| Tool { seen, seen_at: Uint::new(4), pinned };
        let tools = Tools::from([
            ("a".to_owned(), tool(None)),
            ("b".to_owned(), tool(Some(first))),
            ("c".to_owned(), tool(Some(pinned))),
        ]);
        let Json::Map(mut entry) = write(&tools) else { panic!("a map") };
        entry.insert("later".to_owned(), Json::from("x"));
        let read = read(Some(&Json::Map(entry)));
        assert_eq!(read, tools);
        let standings: Vec<_> = read.values().map(|tool| tool.standing().as_str()).collect();
        assert_eq!(standings, ["unpinned", "pinned", "changed"]);
    }

    #[test]
    fn the_most_tools_with_the_longest_names_fit_into_an_entry() {
        let pinned =
            Pinned { hash: Bytes([8; 32]), at: Uint::new(1 << 52), by: Some("a".repeat(64)) };
        let tool = Tool { seen: Bytes([7; 32]), seen_at: Uint::new(1 << 52), pinned: Some(pinned) };
        let names = (0..MAX_TOOLS).map(|i| name(&format!("{i:0>400}")));
        let tools: Tools = names.map(|name| (name, tool.clone())).collect();
        assert_eq!(tools.len(), MAX_TOOLS);
        let length = serde_json::to_vec(&write(&tools)).unwrap().len();
        assert!(length < 512 << 10, "{length}");
    }
}
