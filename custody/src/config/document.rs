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
}

/// A table being read: every key is taken out of it once.
pub struct Section<'t> {
    name: String,
    line: usize,
    entries: Vec<(String, usize, Spanned<DeValue<'t>>)>,
    asked: Vec<&'static str>,
    overrides: BTreeMap<String, String>,
}

/// A value with the line where it stands.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// The line, 0 for one from the environment.
    pub line: usize,
    /// The value.
    pub value: T,
}

impl<'t> Document<'t> {
    /// Parses the text; syntax errors become mistakes and what could be read is kept.
    pub fn new(text: &'t str, environment: impl Iterator<Item = (String, String)>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let ours = |(key, value): (String, String)| {
            key.strip_prefix("CUSTODY__").map(|rest| (rest.to_lowercase(), value))
        };
        let environment = environment.filter_map(ours).collect();
        let mut document =
            Self { text, root: root.into_inner(), environment, mistakes: Vec::new() };
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

    /// The table in a section's key, for example `recipient = { … }`.
    pub fn subsection(
        &mut self,
        section: &mut Section<'t>,
        key: &'static str,
    ) -> Option<Section<'t>> {
        let name = format!("{}.{key}", section.name);
        let (line, value) = section.take(key)?;
        let mut inner = Section::new(&name, line, BTreeMap::new());
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
            let variable = format!("CUSTODY__{name}__{key}").to_uppercase();
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

impl<'t> Section<'t> {
    fn new(name: &str, line: usize, overrides: BTreeMap<String, String>) -> Self {
        Self { name: name.to_owned(), line, entries: Vec::new(), asked: Vec::new(), overrides }
    }

    /// The line where the table begins.
    pub fn line(&self) -> usize {
        self.line
    }

    fn take(&mut self, key: &'static str) -> Option<(usize, Spanned<DeValue<'t>>)> {
        self.asked.push(key);
        let at = self.entries.iter().position(|entry| entry.0 == key)?;
        let (_, line, value) = self.entries.remove(at);
        Some((line, value))
    }

    /// A scalar: what the environment says, else what the file says.
    fn scalar<T>(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
        expected: &str,
        from_text: impl Fn(&str) -> Option<T>,
        from_value: impl Fn(&DeValue<'t>) -> Option<T>,
    ) -> Option<At<T>> {
        let found = self.take(key);
        if let Some(text) = self.overrides.remove(key) {
            let variable = format!("CUSTODY__{}__{key}", self.name).to_uppercase();
            let value = from_text(&text);
            if value.is_none() {
                document.mistake(0, format!("{variable} must be {expected}, not {text:?}"));
            }
            return value.map(|value| At { line: 0, value });
        }
        let (line, value) = found?;
        let read = from_value(value.get_ref());
        if read.is_none() {
            let got = a(value.get_ref());
            document.mistake(line, format!("{}.{key} must be {expected}, not {got}", self.name));
        }
        read.map(|value| At { line, value })
    }

    /// A string.
    pub fn text(&mut self, document: &mut Document<'t>, key: &'static str) -> Option<At<String>> {
        let own = |text: &str| Some(text.to_owned());
        self.scalar(document, key, "a string", own, |v| v.as_str().map(str::to_owned))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, document: &mut Document<'t>, key: &'static str) -> Option<bool> {
        let parse = |text: &str| text.parse().ok();
        self.scalar(document, key, "true or false", parse, DeValue::as_bool).map(|at| at.value)
    }

    /// A whole number between the bounds.
    pub fn integer(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let within = |n: u64| bounds.contains(&n).then_some(n);
        let parse = |text: &str| text.parse().ok().and_then(within);
        let value = |v: &DeValue<'t>| {
            let digits = v.as_integer().filter(|n| n.radix() == 10)?;
            digits.as_str().replace('_', "").parse().ok().and_then(within)
        };
        self.scalar(document, key, &expected, parse, value).map(|at| at.value)
    }

    /// A number of bytes: `16777216` or `"16 MiB"`.
    pub fn bytes(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let expected =
            format!("a size like \"16 MiB\", {} to {} bytes", bounds.start(), bounds.end());
        let within = |n: u64| bounds.contains(&n).then_some(n);
        let parse = |text: &str| size(text).and_then(within);
        let value = |v: &DeValue<'t>| {
            let number = v.as_integer().and_then(|n| n.as_str().replace('_', "").parse().ok());
            number.or_else(|| v.as_str().and_then(size)).and_then(within)
        };
        self.scalar(document, key, &expected, parse, value).map(|at| at.value)
    }

    /// A list of strings; in the environment separated by commas.
    pub fn texts(&mut self, document: &mut Document<'t>, key: &'static str) -> Vec<At<String>> {
        let split = |text: &str| {
            Some(text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>())
        };
        let value = |v: &DeValue<'t>| {
            let items = v.as_array()?.iter();
            items.map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        };
        let found = self.scalar(document, key, "a list of strings", split, value);
        let list = found.map(|at| (at.line, at.value));
        list.map_or_else(Vec::new, |(line, items)| {
            items.into_iter().map(|value| At { line, value }).collect()
        })
    }

    /// A string that must be there.
    pub fn required(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
    ) -> Option<At<String>> {
        let before = document.mistakes.len();
        let found = self.text(document, key);
        if found.is_none() && document.mistakes.len() == before {
            let name = &self.name;
            document.mistake(self.line, format!("[[{name}]] needs the key `{key}`"));
        }
        found
    }
}

fn a(value: &DeValue<'_>) -> String {
    if let Some(text) = value.as_str() {
        return format!("{text:?}");
    }
    value.as_integer().map_or_else(|| format!("a {}", value.type_str()), ToString::to_string)
}

/// `16 MiB`, `4GiB`, `512 kB`, `100`.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim().find(|c: char| !c.is_ascii_digit()).unwrap_or(text.trim().len());
    let (number, unit) = text.trim().split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// “, did you mean …” when a known key is at most two edits away, else what there is.
fn nearest(key: &str, known: &[&'static str]) -> String {
    let best = known.iter().map(|k| (edits(key, k), *k)).min();
    match best {
        Some((distance, name)) if distance <= 2 => format!("; did you mean `{name}`?"),
        _ => format!("; known are {}", known.join(", ")),
    }
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[row.len() - 1]
}
