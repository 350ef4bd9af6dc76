//! One table of a TOML document, being read: every key is taken out of it once.
//!
//! What is of the wrong kind or out of bounds becomes one of the document's mistakes, with its
//! line or the name of its environment variable, and reads as if it were absent.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use super::document::Document;

/// A table being read: every key is taken out of it once.
pub struct Section<'t> {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) entries: Vec<(String, usize, Spanned<DeValue<'t>>)>,
    pub(super) asked: Vec<&'static str>,
    pub(super) overrides: BTreeMap<String, String>,
}

/// A value with the line where it stands.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// The line, 0 for one from the environment.
    pub line: usize,
    /// The value.
    pub value: T,
}

impl<'t> Section<'t> {
    pub(super) fn new(name: &str, line: usize, overrides: BTreeMap<String, String>) -> Self {
        Self { name: name.to_owned(), line, entries: Vec::new(), asked: Vec::new(), overrides }
    }

    /// The line where the table begins.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The variable that takes the place of `key`.
    pub(super) fn variable(&self, key: &str) -> String {
        format!("CUSTODY__{}__{key}", self.name.replace('.', "__")).to_uppercase()
    }

    /// The overrides of the keys of the table `key` in this one.
    pub(super) fn take_overrides(&mut self, key: &str) -> BTreeMap<String, String> {
        let prefix = format!("{key}__");
        let all = std::mem::take(&mut self.overrides);
        let (inner, own) = all.into_iter().partition(|(name, _)| name.starts_with(&prefix));
        self.overrides = own;
        let strip = |(name, value): (String, String)| (name[prefix.len()..].to_owned(), value);
        BTreeMap::into_iter(inner).map(strip).collect()
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<(usize, Spanned<DeValue<'t>>)> {
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
            let variable = self.variable(key);
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

    /// A list of strings, or one string; in the environment one string.
    pub fn words(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
    ) -> Option<At<Vec<String>>> {
        let own = |text: &str| Some(vec![text.to_owned()]);
        let value = |v: &DeValue<'t>| match v.as_array() {
            Some(items) => {
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            }
            None => v.as_str().map(|word| vec![word.to_owned()]),
        };
        self.scalar(document, key, "a string or a list of strings", own, value)
    }

    /// A string that must be there.
    pub fn required(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
    ) -> Option<At<String>> {
        let before = document.count();
        let found = self.text(document, key);
        if found.is_none() && document.count() == before {
            let name = &self.name;
            document.mistake(self.line, format!("[[{name}]] needs the key `{key}`"));
        }
        found
    }

    /// A string that no message and no hash may tell.
    pub fn secret(&mut self, document: &mut Document<'t>, key: &'static str) -> Option<At<String>> {
        let entry = self.entries.iter().position(|entry| entry.0 == key);
        let spoilt = entry.filter(|at| self.entries[*at].2.get_ref().as_str().is_none());
        if let Some(at) = spoilt {
            let (_, line, _) = self.entries.remove(at);
            document.mistake(line, format!("{}.{key} must be a string, in quotes", self.name));
        }
        let found = self.text(document, key);
        found.iter().for_each(|at| document.remember_secret(&at.value));
        found
    }

    /// Every key that nobody has asked for, with its value as text: for options that another
    /// program names. The lines are those of the keys.
    pub fn rest(&mut self, document: &mut Document<'t>) -> BTreeMap<String, At<String>> {
        let mut rest = BTreeMap::new();
        for (key, line, value) in std::mem::take(&mut self.entries) {
            match plain(value.get_ref()) {
                Some(value) => drop(rest.insert(key, At { line, value })),
                None => {
                    let name = &self.name;
                    let wrong = "must be a string, a whole number, true or false";
                    document.mistake(line, format!("{name}.{key} {wrong}"));
                }
            }
        }
        let overrides = std::mem::take(&mut self.overrides).into_iter();
        rest.extend(overrides.map(|(key, value)| (key, At { line: 0, value })));
        let tells = |key: &&String| SECRET.iter().any(|word| key.to_lowercase().contains(word));
        for key in rest.keys().filter(tells) {
            document.remember_secret(&rest[key].value);
        }
        rest
    }
}

/// What stands in the names of foreign options whose values are secrets.
const SECRET: [&str; 6] = ["secret", "key", "token", "password", "sas", "credential"];

/// A scalar as text.
fn plain(value: &DeValue<'_>) -> Option<String> {
    let text = value.as_str().map(str::to_owned);
    let number = || value.as_integer().filter(|n| n.radix() == 10);
    text.or_else(|| number().map(|n| n.as_str().replace('_', "")))
        .or_else(|| value.as_bool().map(|word| word.to_string()))
}

pub(super) fn a(value: &DeValue<'_>) -> String {
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
pub(super) fn nearest(key: &str, known: &[&'static str]) -> String {
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
