//! A message on its way: as it arrived, as it goes on, and the edits between the two.
//!
//! Most messages go on as they arrived. Where one must be changed (a tool's name under which a
//! client knows it, a tool that is hidden from a list), single values are replaced by their place in
//! the bytes; nothing is re-encoded, everything else stays as it was written, and the edits are
//! on the record ([`custody_schemas::edits`]). [`find`] tells where values stand.

use std::ops::Range;

use bytes::Bytes;
use custody_schemas::edits::{Edits, EditsError};

use crate::scan::{ScanError, Scanner, Token};

/// A message as it arrived, and as it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The bytes that arrived: what the record holds.
    pub(crate) arrived: Bytes,
    /// The bytes that go on.
    pub(crate) bytes: Bytes,
    /// What makes these of those.
    pub(crate) edits: Edits,
}

impl Message {
    /// A message that goes on with `changes`: stretches of it, and what takes their place.
    pub(crate) fn spliced(
        arrived: Bytes,
        changes: Vec<(Range<usize>, String)>,
    ) -> Result<Self, EditsError> {
        if changes.is_empty() {
            return Ok(arrived.into());
        }
        let (edits, bytes) = Edits::make(&arrived, changes)?;
        Ok(Self { arrived, bytes, edits })
    }

    /// The message after one more change of what goes on.
    pub(crate) fn and_then(self, change: impl FnOnce(Bytes) -> Self) -> Self {
        let last = change(self.bytes.clone());
        if last.edits.is_empty() || self.edits.is_empty() {
            let edits = if last.edits.is_empty() { self.edits } else { last.edits };
            return Self { arrived: self.arrived, bytes: last.bytes, edits };
        }
        let whole = String::from_utf8(last.bytes.to_vec()).unwrap_or_default();
        let range = 0..self.arrived.len();
        Self::spliced(self.arrived.clone(), vec![(range, whole)]).unwrap_or(self)
    }
}

impl From<Bytes> for Message {
    /// A message that goes on as it arrived.
    fn from(bytes: Bytes) -> Self {
        Self { arrived: bytes.clone(), bytes, edits: Edits::default() }
    }
}

/// A step from a value to one inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The member of an object.
    Key(&'static str),
    /// Each item of an array.
    Each,
}

/// A value that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the paths leads to it.
    pub(crate) path: usize,
    /// Where it stands.
    pub(crate) range: Range<usize>,
}

/// The most paths that are looked for at once.
const MAX_PATHS: usize = 32;

/// Where the values stand to which `paths` lead, in the order in which they end. One pass over the
/// text, whatever it holds; at most 32 paths.
pub(crate) fn find(text: &str, paths: &[&[Step]]) -> Result<Vec<Place>, ScanError> {
    let mut finder =
        Finder { scanner: Scanner::over(text), paths, open: Vec::new(), found: Vec::new() };
    let all = u32::MAX >> (MAX_PATHS - paths.len().clamp(1, MAX_PATHS));
    finder.run(all)?;
    finder.scanner.finish()?;
    Ok(finder.found)
}

struct Finder<'a, 'p> {
    scanner: Scanner<'a>,
    paths: &'p [&'p [Step]],
    open: Vec<Open>,
    found: Vec<Place>,
}

/// A bracket that is open.
struct Open {
    /// Where it stands.
    from: usize,
    /// The paths that lead to it or through it, one bit for each.
    paths: u32,
    /// Those that go on in the member that comes next.
    member: u32,
}

impl Finder<'_, '_> {
    fn run(&mut self, all: u32) -> Result<(), ScanError> {
        loop {
            let Some(token) = self.scanner.step()? else { return Ok(()) };
            let from = self.scanner.position() - length(token);
            let paths = self.entering(all);
            match token {
                Token::Key(key) => {
                    let depth = self.open.len() - 1;
                    let leads = |step: &Step| matches!(step, Step::Key(name) if key.is(name));
                    let going_on = self.going_on(self.open[depth].paths, depth, leads);
                    self.open[depth].member = going_on;
                }
                Token::ObjectStart | Token::ArrayStart => {
                    let is_array = token == Token::ArrayStart;
                    let depth = self.open.len();
                    let each = |step: &Step| is_array && *step == Step::Each;
                    let member = self.going_on(paths, depth, each);
                    self.open.push(Open { from, paths, member });
                }
                Token::ObjectEnd | Token::ArrayEnd => {
                    if let Some(open) = self.open.pop() {
                        self.note(open.paths, open.from);
                    }
                }
                Token::Text(_) | Token::Number(_) | Token::Bool(_) | Token::Null => {
                    self.note(paths, from);
                }
            }
        }
    }

    /// The paths that lead to the value that begins here.
    fn entering(&self, all: u32) -> u32 {
        self.open.last().map_or(all, |open| open.member)
    }

    /// Those of `paths` whose step at `depth` is one that is taken.
    fn going_on(&self, paths: u32, depth: usize, taken: impl Fn(&Step) -> bool) -> u32 {
        let mut going_on = 0;
        for (i, path) in self.paths.iter().take(MAX_PATHS).enumerate() {
            let leads = paths & (1 << i) != 0 && path.get(depth).is_some_and(&taken);
            going_on |= u32::from(leads) << i;
        }
        going_on
    }

    /// Notes the value that has just ended, if paths end with it.
    fn note(&mut self, paths: u32, from: usize) {
        if paths == 0 {
            return;
        }
        let depth = self.open.len();
        let range = from..self.scanner.position();
        for (i, path) in self.paths.iter().take(MAX_PATHS).enumerate() {
            if paths & (1 << i) != 0 && path.len() == depth {
                self.found.push(Place { path: i, range: range.clone() });
            }
        }
    }
}

/// How many bytes a token takes up; of a key it does not matter.
fn length(token: Token<'_>) -> usize {
    match token {
        Token::ObjectStart | Token::ObjectEnd | Token::ArrayStart | Token::ArrayEnd => 1,
        Token::Text(text) => text.raw.len() + 2,
        Token::Number(number) => number.len(),
        Token::Bool(true) | Token::Null => 4,
        Token::Bool(false) => 5,
        Token::Key(_) => 0,
    }
}

/// A string as a JSON token.
pub(crate) fn token(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The string that a JSON token means; nothing when it is none, or no text.
pub(crate) fn text_of(token: &str) -> Option<String> {
    match Scanner::over(token).step() {
        Ok(Some(Token::Text(text))) => text.decode_exact().map(std::borrow::Cow::into_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Each, Key};
    use super::*;

    fn found<'t>(text: &'t str, paths: &[&[Step]]) -> Vec<(usize, &'t str)> {
        let places = find(text, paths).unwrap();
        places.into_iter().map(|place| (place.path, &text[place.range])).collect()
    }

    #[test]
    fn values_are_found_where_they_stand() {
        let text = r#" {"result" : {"tools":[{"name":"a\u0062", "n":1e2},{"n":[{"name":"no"}]}, 7 ,{"name":{}}],"next":null}, "name":"no"}"#;
        let tools: &[Step] = &[Key("result"), Key("tools"), Each];
        let names: &[Step] = &[Key("result"), Key("tools"), Each, Key("name")];
        let next: &[Step] = &[Key("result"), Key("next")];
        assert_eq!(
            found(text, &[tools, names, next]),
            [
                (1, r#""a\u0062""#),
                (0, r#"{"name":"a\u0062", "n":1e2}"#),
                (0, r#"{"n":[{"name":"no"}]}"#),
                (0, "7"),
                (1, "{}"),
                (0, r#"{"name":{}}"#),
                (2, "null"),
            ]
        );
        assert_eq!(found("3", &[&[]]), [(0, "3")]);
        assert_eq!(found(r#"{"n\u0061me":1}"#, &[&[Key("name")]]), [(0, "1")]);
        assert!(find("{", &[&[]]).is_err());
    }

    #[test]
    fn a_spliced_message_keeps_every_other_byte() {
        let arrived = Bytes::from_static(b"{\"a\" : 1.0,\"id\":\"x\\/y\"}");
        let message = Message::spliced(arrived.clone(), vec![(16..22, token("é\""))]).unwrap();
        assert_eq!(message.bytes, "{\"a\" : 1.0,\"id\":\"é\\\"\"}".as_bytes());
        assert_eq!(message.edits.undo(&message.bytes).unwrap(), arrived);
        assert_eq!(text_of("\"x\\/y\"").as_deref(), Some("x/y"));
        assert_eq!(text_of("7"), None);
    }
}
