//! Reads a TOML document key by key and remembers every mistake with its line.
//!
//! A person who has made three mistakes is told of three. Whatever no reader has asked for is an
//! unknown key, so the readers are the only list of settings there is. An environment variable
//! `CUSTODY__SECTION__KEY` takes the place of the key in the file.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::section::{Section, a, nearest};

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Line in the file, from 1; 0 when it concerns the environment or the whole.
    pub line: usize,
    /// What is wrong and what would be right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        f.write_str(&self.text)
    }
}

/// A document being read.
pub struct Document<'t> {
    text: &'t str,
    root: DeTable<'t>,
    environment: BTreeMap<String, String>,
    mistakes: Vec<Mistake>,
    secrets: Vec<String>,
}

impl<'t> Document<'t> {
    /// Parses the text; syntax errors become mistakes and what could be read is kept.
    pub fn new(text: &'t str, environment: impl Iterator<Item = (String, String)>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let ours = |(key, value): (String, String)| {
            key.strip_prefix("CUSTODY__").map(|rest| (rest.to_lowercase(), value))
        };
        let environment = environment.filter_map(ours).collect();
        let (root, mistakes, secrets) = (root.into_inner(), Vec::new(), Vec::new());
        let mut document = Self { text, root, environment, mistakes, secrets };
        for error in errors {
            let line = error.span().map_or(0, |span| document.line(&span));
            document.mistake(line, error.message().to_owned());
        }
        document
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        before.bytes().filter(|b| *b == b'\n').count() + 1
    }

    /// Remembers a mistake.
    pub fn mistake(&mut self, line: usize, text: impl Into<String>) {
        self.mistakes.push(Mistake { line, text: text.into() });
    }

    /// How many mistakes there are so far.
    pub(super) fn count(&self) -> usize {
        self.mistakes.len()
    }

    /// Remembers a value that must not be told from what is kept of the configuration.
    pub(super) fn remember_secret(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }

    /// Every secret that was read.
    pub fn secrets(&self) -> &[String] {
        &self.secrets
    }

    /// The table `[name]`, empty when it is absent.
    pub fn section(&mut self, name: &'static str) -> Section<'t> {
        let prefix = format!("{name}__");
        let mine = |(key, value): (&String, &String)| {
            key.strip_prefix(&prefix).map(|rest| (rest.to_owned(), value.clone()))
        };
        let overrides = self.environment.iter().filter_map(mine).collect();
        self.environment.retain(|key, _| !key.starts_with(&prefix));
        let (line, value) = match self.take(name) {
            Some(found) => found,
            None => return Section::new(name, 0, overrides),
        };
        let mut section = Section::new(name, line, overrides);
        self.fill_from(&mut section, value.into_inner());
        section
    }

    /// The tables `[[name]]`.
    pub fn sections(&mut self, name: &'static str) -> Vec<Section<'t>> {
        match self.take(name) {
            Some((line, value)) => self.tables(name, line, value.into_inner()),
            None => Vec::new(),
        }
    }

    /// The tables in a section's key, for example `[[server.rule]]`.
    pub fn subsections(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
    ) -> Vec<Section<'t>> {
        let name = format!("{}.{key}", section.name);
        match section.take(key) {
            Some((line, value)) => self.tables(&name, line, value.into_inner()),
            None => Vec::new(),
        }
    }

    /// The table in a section's key, for example `recipient = { … }`. A variable that names a key
    /// of it makes it, as if it stood there.
    pub fn subsection(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
    ) -> Option<Section<'t>> {
        let name = format!("{}.{key}", section.name);
        let overrides = section.take_overrides(key);
        let Some((line, value)) = section.take(key) else {
            return (!overrides.is_empty()).then(|| Section::new(&name, 0, overrides));
        };
        let mut inner = Section::new(&name, line, overrides);
        self.fill_from(&mut inner, value.into_inner());
        Some(inner)
    }

    fn take(&mut self, name: &str) -> Option<(usize, Spanned<DeValue<'t>>)> {
        let key = self.root.keys().find(|key| key.get_ref() == name).cloned()?;
        let line = self.line(&key.span());
        self.root.remove(&key).map(|value| (line, value))
    }

    fn tables(&mut self, name: &str, line: usize, value: DeValue<'t>) -> Vec<Section<'t>> {
        let DeValue::Array(items) = value else {
            self.mistake(
                line,
                format!("write [[{name}]], with two brackets: there can be several"),
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items {
            let line = self.line(&item.span());
            let mut section = Section::new(name, line, BTreeMap::new());
            self.fill_from(&mut section, item.into_inner());
            sections.push(section);
        }
        sections
    }

    fn fill_from(&mut self, section: &mut Section<'t>, value: DeValue<'t>) {
        let DeValue::Table(table) = value else {
            let text = format!("[{}] must be a table, not {}", section.name, a(&value));
            return self.mistake(section.line, text);
        };
        for (key, value) in table {
            let line = self.line(&key.span());
            section.entries.push((key.into_inner().into_owned(), line, value));
        }
    }

    /// Says of every key that nobody asked for that it is unknown.
    pub fn finish_section(&mut self, section: Section<'t>) {
        let name = &section.name;
        for (key, line, _) in &section.entries {
            let hint = nearest(key, &section.asked);
            self.mistake(*line, format!("unknown key {name}.{key}{hint}"));
        }
        for key in section.overrides.keys() {
            let hint = nearest(key, &section.asked);
            let variable = section.variable(key);
            self.mistake(0, format!("unknown environment variable {variable}{hint}"));
        }
    }

    /// All mistakes, in the order of lines.
    pub fn finish(mut self, sections: &[&'static str]) -> Vec<Mistake> {
        let unknown: Vec<_> =
            self.root.keys().map(|k| (self.line(&k.span()), k.get_ref().to_string())).collect();
        for (line, name) in unknown {
            let hint = nearest(&name, sections);
            self.mistake(line, format!("unknown section [{name}]{hint}"));
        }
        let variables: Vec<_> = self.environment.keys().cloned().collect();
        for key in variables {
            let variable = format!("CUSTODY__{key}").to_uppercase();
            self.mistake(0, format!("unknown environment variable {variable}"));
        }
        self.mistakes.sort();
        self.mistakes
    }
}
