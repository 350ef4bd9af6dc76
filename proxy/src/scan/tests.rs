//! What the reader of JSON takes and refuses.

use proptest::prelude::*;

use super::*;

fn scan(bytes: &[u8]) -> Result<usize, ScanError> {
    let mut scanner = Scanner::new(bytes)?;
    let mut tokens = 0;
    while scanner.step()?.is_some() {
        tokens += 1;
    }
    scanner.finish().map(|()| tokens)
}

fn agrees_with_serde(bytes: &[u8]) -> bool {
    let serde = serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok();
    serde == scan(bytes).is_ok()
}

#[test]
fn it_accepts_what_serde_json_accepts_and_nothing_else() {
    for text in [
        "{}",
        "[]",
        "1",
        "-0",
        "01",
        "1.",
        ".5",
        "1e5",
        "1e",
        "-",
        "\"a\"",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u123g\"",
        "\"\\ud800\"",
        "[1,]",
        "[,1]",
        "{\"a\":1,}",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{,}",
        "nul",
        "null",
        "true false",
        " [ 1 , 2 ] ",
        "[1 2]",
        "{\"a\":1 \"b\":2}",
        "{\"a\":[}]",
        "[}",
        "{]",
        "\"\t\"",
        "\"\u{7f}\"",
        "+1",
        "",
        " ",
        "\u{feff}{}",
        "{\"a\":{\"b\":[{}]}}",
        "[[],{}]",
        "[{},]",
        "NaN",
        "tru",
        "1.0E+5",
    ] {
        assert!(agrees_with_serde(text.as_bytes()), "{text:?}: {:?}", scan(text.as_bytes()));
    }
    assert_eq!(scan(b"\"\xff\""), Err(ScanError::Encoding(1)));
}

#[test]
fn a_million_levels_are_an_error_and_no_overflow() {
    assert_eq!(scan("[".repeat(1_000_000).as_bytes()), Err(ScanError::TooDeep));
    assert_eq!(scan("{\"a\":".repeat(1_000_000).as_bytes()), Err(ScanError::TooDeep));
    let deepest = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert_eq!(scan(deepest.as_bytes()), Ok(2 * MAX_DEPTH));
}

#[test]
fn escapes_mean_what_they_mean() {
    let text = |raw| Text { raw, escaped: true };
    assert_eq!(text("n\\u0061me\\n\\/\\ud83d\\ude00").decode(), "name\n/😀");
    assert!(text("n\\u0061me").is("name"));
    assert_eq!(text("a\\ud800b").decode(), "a\u{fffd}b");
    assert_eq!(text("a\\ud800b").decode_exact(), None);
    assert_eq!(text("a\\ud800\\u0041").decode(), "a\u{fffd}A");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_as_serde_json_judges_them(
        text in "[\\[\\]{}\",:0-9eE.+\\-a-cntrufls\\\\ \u{1}é]{0,24}"
    ) {
        prop_assert!(agrees_with_serde(text.as_bytes()), "{:?}", text);
    }

    #[test]
    fn any_string_is_found_whole(text in any::<String>()) {
        let json = serde_json::to_string(&text).unwrap();
        let mut scanner = Scanner::over(&json);
        let Some(Token::Text(found)) = scanner.step().unwrap() else { panic!("no string") };
        prop_assert_eq!(found.decode(), text);
    }
}
