//! What a client of 2026-07-28 must find in every result, where an older server has left it out.
//!
//! A server that knows no `resultType` has only complete results, so that is what it means; what it does
//! not allow to be kept may not be kept. Nothing else is guessed, and each insertion is an edit on the
//! record.

use super::view::Changes;
use crate::scan::ScanError;
use crate::splice::Step::Key;
use crate::splice::{Step, find};

/// Results that say how long they hold.
const KEPT: [&str; 1] = ["resources/read"];

/// What must be put into the answer to a request with this method.
pub(crate) fn of(text: &str, method: &str) -> Result<Changes, ScanError> {
    let paths: [&[Step]; 4] = [
        &[Key("result")],
        &[Key("result"), Key("resultType")],
        &[Key("result"), Key("ttlMs")],
        &[Key("result"), Key("cacheScope")],
    ];
    let found = find(text, &paths)?;
    let has = |path: usize| found.iter().any(|place| place.path == path);
    let result = found.iter().find(|place| place.path == 0).map(|place| place.range.clone());
    let Some(inside) = result.filter(|range| text[range.clone()].starts_with('{')) else {
        return Ok(Changes::new());
    };
    let at = inside.start + 1;
    let kept = KEPT.contains(&method) && !has(1);
    let missing = [
        (!has(1), "\"resultType\":\"complete\""),
        (kept && !has(2), "\"ttlMs\":0"),
        (kept && !has(3), "\"cacheScope\":\"private\""),
    ];
    let missing: Vec<_> = missing.iter().filter(|(is, _)| *is).map(|(_, text)| *text).collect();
    if missing.is_empty() {
        return Ok(Changes::new());
    }
    let is_empty = text[at..].trim_start().starts_with('}');
    let mut new = missing.join(",");
    if !is_empty {
        new.push(',');
    }
    Ok(vec![(at..at, new)])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::splice::Message;

    fn completed(text: &'static str, method: &str) -> String {
        let arrived = Bytes::from_static(text.as_bytes());
        let message = Message::spliced(arrived.clone(), of(text, method).unwrap()).unwrap();
        assert_eq!(message.edits.undo(&message.bytes).unwrap(), arrived);
        String::from_utf8(message.bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_result_of_an_older_server_says_that_it_is_complete_and_that_of_a_newer_one_stays() {
        assert_eq!(
            completed(r#"{"id":1,"result": {"content":[]}}"#, "tools/call"),
            r#"{"id":1,"result": {"resultType":"complete","content":[]}}"#
        );
        assert_eq!(
            completed(r#"{"id":1,"result":{ }}"#, "tools/call"),
            r#"{"id":1,"result":{"resultType":"complete" }}"#
        );
        assert_eq!(
            completed(r#"{"id":1,"result":{"contents":[]}}"#, "resources/read"),
            r#"{"id":1,"result":{"resultType":"complete","ttlMs":0,"cacheScope":"private","contents":[]}}"#
        );
        for stays in [
            r#"{"id":1,"result":{"resultType":"input_required"}}"#,
            r#"{"id":1,"result":{"contents":[],"r\u0065sultType":"complete"}}"#,
            r#"{"id":1,"error":{"code":1}}"#,
            r#"{"id":1,"result":7}"#,
        ] {
            assert_eq!(completed(stays, "resources/read"), stays);
        }
    }
}
