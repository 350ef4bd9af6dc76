//! The configuration's own knowledge of a server: which tools carry protected data, and where
//! patients' identifiers stand (RFC 9535 JSONPath).
//!
//! A path is applied to `arguments` (or to `params` where a method has none), and to three readings
//! of a result: the result itself, its `structuredContent`, and each text block that is JSON.

use std::collections::HashMap;

use custody_schemas::words::Activity;
use serde_json::Value;
use serde_json_path::{JsonPath, PathElement};

use super::subjects::Found;

/// Where an identifier stands, and whose identifier it is.
#[derive(Clone, Debug)]
pub struct Rule {
    path: JsonPath,
    system: String,
}

/// A rule cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path:?} is no JSONPath (RFC 9535): {source}")]
pub struct RuleError {
    path: String,
    source: serde_json_path::ParseError,
}

impl Rule {
    /// The values at `path` are identifiers of patients in `system` (for example `mrn`).
    ///
    /// # Errors
    /// When `path` is no JSONPath.
    pub fn new(path: &str, system: impl Into<String>) -> Result<Self, RuleError> {
        match JsonPath::parse(path) {
            Ok(path) => Ok(Self { path, system: system.into() }),
            Err(source) => Err(RuleError { path: path.to_owned(), source }),
        }
    }

    fn apply(&self, document: &Value, found: &mut Found) {
        for located in self.path.query_located(document).all() {
            let node = located.node();
            let key = located.location().iter().filter_map(PathElement::as_name).next_back();
            let items = node.as_array().map_or(std::slice::from_ref(node), Vec::as_slice);
            items.iter().for_each(|item| self.value(key.unwrap_or_default(), item, found));
        }
    }

    fn value(&self, key: &str, value: &Value, found: &mut Found) {
        let mut count = |id: &str| {
            found.add(&self.system, id, None, Vec::new());
            found.rule(key, id);
        };
        match value {
            Value::String(id) if !id.is_empty() => count(id),
            Value::Number(id) if !id.is_f64() => count(&id.to_string()),
            Value::String(_)
            | Value::Number(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Array(_)
            | Value::Object(_) => {}
        }
    }
}

/// What is known of a tool (or prompt).
#[derive(Clone, Debug, Default)]
pub struct ToolRule {
    /// Whether it carries protected data; unset means as its server.
    pub phi: Option<bool>,
    /// What it does to data; unset means by its method.
    pub activity: Option<Activity>,
    /// Where patients stand in its arguments.
    pub arguments: Vec<Rule>,
    /// Where patients stand in its results.
    pub result: Vec<Rule>,
}

/// What is known of a server.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// For every tool.
    pub every: ToolRule,
    /// For single tools and prompts, by name; these add to those for every tool.
    pub tools: HashMap<String, ToolRule>,
}

impl Rules {
    /// Everything that is known of where patients stand, whichever server it is known of.
    pub(crate) fn of_all<'r>(servers: impl Iterator<Item = &'r Self>) -> Self {
        let mut all = Self::default();
        for server in servers {
            all.every.arguments.extend(server.every.arguments.iter().cloned());
            all.every.result.extend(server.every.result.iter().cloned());
        }
        all
    }

    fn of<'r>(&'r self, tool: Option<&str>) -> impl Iterator<Item = &'r ToolRule> {
        std::iter::once(&self.every).chain(tool.and_then(|tool| self.tools.get(tool)))
    }

    /// Whether the tool carries protected data, where a rule says.
    pub(crate) fn phi(&self, tool: Option<&str>) -> Option<bool> {
        self.of(tool).filter_map(|rule| rule.phi).last()
    }

    /// What the tool does to data, where a rule says.
    pub(crate) fn activity(&self, tool: Option<&str>) -> Option<Activity> {
        self.of(tool).filter_map(|rule| rule.activity.clone()).last()
    }

    pub(super) fn look_at_arguments(
        &self,
        tool: Option<&str>,
        document: Option<&str>,
        found: &mut Found,
    ) {
        if self.of(tool).all(|rule| rule.arguments.is_empty()) {
            return;
        }
        let Some(document) = parse(document, found) else { return };
        for rule in self.of(tool).flat_map(|rule| &rule.arguments) {
            rule.apply(&document, found);
        }
    }

    pub(super) fn look_at_result(
        &self,
        tool: Option<&str>,
        result: Option<&str>,
        found: &mut Found,
    ) {
        if self.of(tool).all(|rule| rule.result.is_empty()) {
            return;
        }
        let Some(result) = parse(result, found) else { return };
        let blocks = result.get("content").or_else(|| result.get("contents"));
        let blocks = blocks.and_then(Value::as_array).into_iter().flatten();
        let texts = blocks.filter_map(|block| {
            let text =
                block.get("text").or_else(|| block.get("resource")?.get("text"))?.as_str()?;
            serde_json::from_str::<Value>(text).ok()
        });
        let documents: Vec<Value> = texts.collect();
        let readings = documents.iter().chain(result.get("structuredContent"));
        for document in readings.chain(std::iter::once(&result)) {
            for rule in self.of(tool).flat_map(|rule| &rule.result) {
                rule.apply(document, found);
            }
        }
    }
}

/// A copy to look at; nothing, and a note, when it cannot be read.
fn parse(document: Option<&str>, found: &mut Found) -> Option<Value> {
    match serde_json::from_str(document?) {
        Ok(value) => Some(value),
        Err(_) => {
            found.note_incomplete();
            None
        }
    }
}
