//! Foreign bytes: messages and event streams changed at random, thousands in a second.
//!
//! `CUSTODY_FUZZ_SECONDS=3600 cargo test --release -p custody-proxy --lib fuzz` goes on for an hour;
//! `CUSTODY_SEED` begins elsewhere.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::envelope::{Envelope, Look};
use crate::sse::{Frame, Framer};

/// Pieces that formats may stumble over.
const PIECES: [&str; 16] = [
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ",\"id\":1",
    "\"method\":\"x\",",
    "1e999",
    "-",
    "\u{feff}",
    "\r",
    "\n\n",
    "data:",
];

const STREAM: &str = "\u{feff}id: 1\ndata: {\"a\":1}\n\n: comment\n\nevent: message\r\n\
                      data:{\"b\":\r\ndata: 2}\r\n\r\ndata\rretry: 5\r\rdatax: no\n\ndata: tail";

/// Half a surrogate pair, a number that is too large, an object that is too deep.
const BEYOND: [&str; 4] = ["hex escape", "surrogate", "out of range", "recursion"];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Calls `try_one` with a source of chance until time is up.
fn for_a_while(mut try_one: impl FnMut(&mut StdRng)) {
    let mut random = StdRng::seed_from_u64(number("CUSTODY_SEED").unwrap_or(1));
    let time = Duration::from_secs(number("CUSTODY_FUZZ_SECONDS").unwrap_or(1));
    let begun = std::time::Instant::now();
    let mut tries = 0u64;
    while begun.elapsed() < time {
        try_one(&mut random);
        tries += 1;
    }
    assert!(tries > 100, "{tries} tries are none");
}

/// Changes some of `bytes`.
fn change(bytes: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            2 => {
                let end = (at + random.random_range(0..20)).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            3 => {
                let end = (at + random.random_range(0..20)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            _ => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                drop(bytes.splice(at..at, piece.bytes()));
            }
        }
    }
}

/// What two readers of the same bytes must agree upon.
fn agree(bytes: &[u8]) {
    let Ok(read) = Envelope::read(bytes, Look::Everywhere) else { return };
    let value: serde_json::Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        // What is JSON by its grammar, though this reader does not go there.
        Err(error) if BEYOND.iter().any(|what| error.to_string().contains(what)) => return,
        Err(error) => panic!("{error}: read as a message: {}", String::from_utf8_lossy(bytes)),
    };
    if read.twin.is_some() {
        return; // refused, because readers may differ
    }
    assert_eq!(read.method.as_deref(), value["method"].as_str());
    let id: Option<serde_json::Value> = read.id.map(|id| serde_json::from_str(id).unwrap());
    assert_eq!(id.as_ref(), value.get("id"));
    if read.params.is_some() {
        assert_eq!(read.name.as_deref(), value["params"]["name"].as_str());
        assert_eq!(read.uri.as_deref(), value["params"]["uri"].as_str());
    }
}

#[test]
fn fuzz_a_changed_message_is_refused_or_read_as_any_other_reader_reads_it() {
    let messages: Vec<Vec<u8>> = include_str!("messages.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["bytes"].as_str().unwrap().as_bytes().to_vec())
        .collect();
    for_a_while(|random| {
        let mut bytes = messages[random.random_range(0..messages.len())].clone();
        change(&mut bytes, random);
        agree(&bytes);
    });
}

fn frames(pieces: &[&[u8]]) -> Vec<Frame> {
    let mut framer = Framer::new(1 << 20);
    let mut frames = Vec::new();
    for piece in pieces {
        framer.push(piece);
        while let Some(frame) = framer.frame().unwrap() {
            frames.push(frame);
        }
    }
    frames.extend(framer.rest());
    frames
}

#[test]
fn fuzz_a_changed_stream_keeps_every_byte_and_means_the_same_wherever_it_is_torn() {
    for_a_while(|random| {
        let mut bytes = STREAM.as_bytes().to_vec();
        change(&mut bytes, random);
        let at = random.random_range(0..=bytes.len());
        let (whole, torn) = (frames(&[&bytes]), frames(&[&bytes[..at], &bytes[at..]]));
        let joined: Vec<u8> = torn.iter().flat_map(|frame| frame.raw.to_vec()).collect();
        assert_eq!(joined, bytes);
        let data =
            |frames: &[Frame]| frames.iter().filter_map(|f| f.data.clone()).collect::<Vec<_>>();
        assert_eq!(data(&whole), data(&torn), "torn at {at}: {}", String::from_utf8_lossy(&bytes));
    });
}
