//! The tool definitions in a `tools/list` answer, read from its bytes.
//!
//! A definition is known by the SHA-256 of its meaning: the same definition has the same hash
//! however its keys are ordered and its strings are escaped, and another one has another. Numbers
//! count as they are written. A definition that can be read in two ways (two keys alike) or is
//! nested deeper than [`MAX_DEPTH`] is known by its bytes.

use std::borrow::Cow;
use std::ops::Range;

use custody_schemas::id::{Bytes, Hash};
use sha2::{Digest, Sha256};

use crate::scan::{Scanner, Token};
use crate::splice::Step::{Each, Key};
use crate::splice::{Step, find, text_of};

/// How deep a definition may be nested to be known by its meaning.
const MAX_DEPTH: usize = 64;

const LIST: &[Step] = &[Key("result"), Key("tools")];
const ITEM: &[Step] = &[Key("result"), Key("tools"), Each];
const NAME: &[Step] = &[Key("result"), Key("tools"), Each, Key("name")];
const SCOPE: &[Step] = &[Key("result"), Key("cacheScope")];

/// A tool as its server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    /// Its name.
    pub(crate) name: String,
    /// Where the name stands, quotes included.
    pub(crate) name_at: Range<usize>,
    /// Where the definition stands.
    pub(crate) range: Range<usize>,
    /// What it is known by.
    pub(crate) hash: Hash,
    /// It has a key twice, so that a client may read another tool than we do.
    pub(crate) is_ambiguous: bool,
}

/// The tools of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    /// Each item: the tool, or nothing when it is none.
    pub(crate) items: Vec<(Range<usize>, Option<Definition>)>,
    /// Where the value of `cacheScope` stands.
    pub(crate) scope: Option<Range<usize>>,
}

/// It cannot be told which tools an answer lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ambiguous;

impl List {
    /// Reads an answer; one without a list of tools, an error for example, has none.
    pub(crate) fn read(text: &str) -> Result<Self, Ambiguous> {
        let mut list = Self::default();
        let mut lists = 0;
        let mut names: Vec<Range<usize>> = Vec::new();
        for place in find(text, &[LIST, ITEM, NAME, SCOPE]).map_err(|_| Ambiguous)? {
            match place.path {
                0 => lists += 1,
                1 => {
                    let definition = definition(text, &place.range, &names);
                    list.items.push((place.range, definition));
                    names.clear();
                }
                2 => names.push(place.range),
                _ if list.scope.is_some() => return Err(Ambiguous),
                _ => list.scope = Some(place.range),
            }
        }
        if lists > 1 { Err(Ambiguous) } else { Ok(list) }
    }

    /// The tools.
    pub(crate) fn tools(&self) -> impl Iterator<Item = &Definition> {
        self.items.iter().filter_map(|(_, definition)| definition.as_ref())
    }

    /// The stretches to cut so that only the items remain for which `stays` says so.
    pub(crate) fn without(&self, stays: impl Fn(&Option<Definition>) -> bool) -> Vec<Range<usize>> {
        let stays: Vec<bool> = self.items.iter().map(|(_, tool)| stays(tool)).collect();
        let first = stays.iter().position(|stays| *stays);
        let at = |i: usize| &self.items[i].0;
        let gone = (0..self.items.len()).filter(|i| !stays[*i]);
        let cut = gone.map(|i| match first {
            Some(first) if i > first => at(i - 1).end..at(i).end,
            _ if i + 1 < self.items.len() => at(i).start..at(i + 1).start,
            _ => at(i).clone(),
        });
        cut.collect()
    }
}

fn definition(text: &str, range: &Range<usize>, names: &[Range<usize>]) -> Option<Definition> {
    let name_at = names.last()?.clone();
    let name = text_of(text.get(name_at.clone())?)?;
    let raw = text.get(range.clone())?;
    let meaning = meaning(raw);
    let hashed = Sha256::digest(meaning.as_deref().unwrap_or(raw));
    let is_ambiguous = meaning.is_none() || names.len() > 1;
    Some(Definition {
        name,
        name_at,
        range: range.clone(),
        hash: Bytes(hashed.into()),
        is_ambiguous,
    })
}

/// Keys in order, strings with the escapes that they need, no space. Nothing when a key stands
/// twice or it is too deep.
fn meaning(raw: &str) -> Option<String> {
    let mut scanner = Scanner::over(raw);
    let token = scanner.step().ok()??;
    write(&mut scanner, token, 0)
}

/// The value that begins with `token`; its depth is limited.
fn write(scanner: &mut Scanner<'_>, token: Token<'_>, depth: usize) -> Option<String> {
    if depth > MAX_DEPTH {
        return None;
    }
    match token {
        Token::ObjectStart => object(scanner, depth),
        Token::ArrayStart => array(scanner, depth),
        Token::Text(text) => Some(quoted(&text.decode_exact()?)),
        Token::Number(number) => Some(number.to_owned()),
        Token::Bool(value) => Some(value.to_string()),
        Token::Null => Some("null".to_owned()),
        Token::Key(_) | Token::ObjectEnd | Token::ArrayEnd => None,
    }
}

fn object(scanner: &mut Scanner<'_>, depth: usize) -> Option<String> {
    let mut members: Vec<(Cow<'_, str>, String)> = Vec::new();
    while let Token::Key(key) = scanner.step().ok()?? {
        let value = scanner.step().ok()??;
        members.push((key.decode_exact()?, write(scanner, value, depth + 1)?));
    }
    members.sort_unstable();
    if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return None;
    }
    let members: Vec<_> =
        members.into_iter().map(|(key, value)| format!("{}:{value}", quoted(&key))).collect();
    Some(format!("{{{}}}", members.join(",")))
}

fn array(scanner: &mut Scanner<'_>, depth: usize) -> Option<String> {
    let mut items = Vec::new();
    loop {
        let token = scanner.step().ok()??;
        if token == Token::ArrayEnd {
            return Some(format!("[{}]", items.join(",")));
        }
        items.push(write(scanner, token, depth + 1)?);
    }
}

fn quoted(text: &str) -> String {
    crate::splice::token(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(definition: &str) -> Hash {
        let text = format!("{{\"result\":{{\"tools\":[{definition}]}}}}");
        List::read(&text).unwrap().tools().next().unwrap().hash
    }

    #[test]
    fn a_definition_is_known_by_what_it_means() {
        let one = hash(r#"{"name":"a","inputSchema":{"type":"object","x":[1.0,{"é":null}]}}"#);
        let same = hash(
            r#" { "inputSchema" :{"x":[ 1.0,{"\u00e9":null}],"type":"obj\u0065ct"},"name":"a"}"#,
        );
        assert_eq!(one, same);
        for other in [
            r#"{"name":"a","inputSchema":{"type":"object","x":[1,{"é":null}]}}"#,
            r#"{"name":"a","inputSchema":{"type":"object","x":[{"é":null},1.0]}}"#,
            r#"{"name":"a","inputSchema":{"type":"object","x":[1.0,{"é":null}]},"description":""}"#,
        ] {
            assert_ne!(hash(other), one, "{other}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_said_to_be() {
        let text = r#"{"result":{"tools":[{"name":"a","name":"b"},{"name":"c","d":{"x":1,"x":2}},{"name":"e"},7]}}"#;
        let list = List::read(text).unwrap();
        let tools: Vec<_> = list.tools().map(|t| (t.name.as_str(), t.is_ambiguous)).collect();
        assert_eq!(tools, [("b", true), ("c", true), ("e", false)]);
        assert_eq!(list.items.len(), 4);
        let twice = r#"{"result":{"tools":[],"tools":[{"name":"a"}]}}"#;
        assert_eq!(List::read(twice), Err(Ambiguous));
        assert_eq!(List::read(r#"{"error":{"code":1}}"#), Ok(List::default()));
    }

    #[test]
    fn whichever_items_are_cut_a_list_remains() {
        let text =
            r#"{"result":{"tools":[ {"name":"0"} ,{"name":"1"},  {"name":"2"},{"name":"3"} ]}}"#;
        let list = List::read(text).unwrap();
        for kept in 0..16u32 {
            let stays = |tool: &Option<Definition>| {
                let number: u32 = tool.as_ref().unwrap().name.parse().unwrap();
                kept & (1 << number) != 0
            };
            let cut = list.without(stays).into_iter().map(|range| (range, String::new()));
            let message =
                crate::splice::Message::spliced(text.to_owned().into(), cut.collect()).unwrap();
            let left = std::str::from_utf8(&message.bytes).unwrap();
            let value: serde_json::Value = serde_json::from_str(left).unwrap();
            let names = value["result"]["tools"].as_array().unwrap().iter();
            let names = names.map(|tool| tool["name"].as_str().unwrap().parse::<u32>().unwrap());
            assert_eq!(names.map(|n| 1 << n).sum::<u32>(), kept, "{left}");
        }
    }
}
