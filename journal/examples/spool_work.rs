//! A spool at work, to be killed or to have its system calls fail: `tests/faults/syscalls` does.
//!
//! `spool_work work DIR FIRST COUNT` makes COUNT calls one after the other, numbered from FIRST,
//! some with large bodies, and tells on standard output what it tries (`attempted WHAT`) and what
//! it was promised (`acknowledged WHAT`). Calls that fail are passed by, as a proxy would refuse
//! them.
//!
//! `spool_work check DIR` starts the next run, closes it, reads everything back and tells what is
//! there (`found WHAT`). It fails when the run cannot start, a stream has a hole, a call has not
//! exactly one ending, or a stored body is not the one that its record commits to.

#![expect(clippy::print_stdout, reason = "a command that reports on its standard output")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use custody_journal::{Entry, Journal, OutBody, Part, Read, Topic, Writer, WriterOptions};
use custody_schemas::body::{ChunkHeader, commitment};
use custody_schemas::event::{BodyRef, Draft, Event, Outcome};
use custody_schemas::id::{BodyId, CallId};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode};
use custody_schemas::seal::key::Signer;
use custody_schemas::words::Status;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a call waits for the journal to recover before the next one is tried.
const RECOVERY: Duration = Duration::from_millis(200);
/// Every so many calls one has a body that goes through the lane of large bodies.
const LARGE_EVERY: u128 = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["work", dir, first, count] => work(Path::new(dir), first.parse()?, count.parse()?).await,
        ["check", dir] => check(Path::new(dir)).await,
        _ => Err("usage: spool_work work DIR FIRST COUNT | spool_work check DIR".into()),
    }
}

fn open(dir: &Path) -> Result<Writer, Failure> {
    let (signer, _) = Signer::from_seed("audit.example/edge-1", &[3; 32])?;
    // Small segments, so that a few calls pass through all that can happen to one.
    let options = WriterOptions { segment_bytes: 1 << 20, ..WriterOptions::new(dir, "edge-1") };
    Ok(Writer::open(options, signer)?.0)
}

async fn work(dir: &Path, first: u128, count: u128) -> Result<(), Failure> {
    let writer = open(dir)?;
    for number in first..first + count {
        if one(&writer, number).await.is_err() {
            let mut ends = writer.subscribe();
            let well = ends.wait_for(|_| writer.status().problem.is_none());
            if tokio::time::timeout(RECOVERY, well).await.is_err() {
                println!("still refusing");
            }
        }
    }
    writer.close().await?;
    Ok(())
}

/// One call, as far as it goes.
async fn one(writer: &Writer, number: u128) -> Result<(), Failure> {
    let len = if number.is_multiple_of(LARGE_EVERY) { 90 << 10 } else { 9 << 10 };
    let body = |part| vec![OutBody { part, bytes: Bytes::from(vec![0x5a; len]) }];
    let call = Some(CallId::from_uuid(uuid::Uuid::from_u128(number)));
    let mut slot = writer.slot(len as u64)?;
    println!("attempted opening {number}");
    slot.open(Draft { call, ..Draft::new(Kind::CallRequested) }, body(Part::Request)).await?;
    println!("acknowledged opening {number}");
    let outcome = Some(Outcome { status: Status::Ok, ..Outcome::default() });
    println!("attempted ending {number}");
    let ending = Draft { call, outcome, ..Draft::new(Kind::CallEnded) };
    slot.end(ending, body(Part::Response)).await?;
    println!("acknowledged ending {number}");
    Ok(())
}

async fn check(dir: &Path) -> Result<(), Failure> {
    let writer = open(dir)?;
    writer.close().await?;
    let mut found = Found::default();
    let journal = writer.journal();
    for partition in journal.partitions()?.into_iter().filter(|p| p.topic == Topic::Bodies) {
        let mut reader = journal.reader(&partition, 0)?;
        each(reader.as_mut(), |entry| found.chunk(&entry))?;
    }
    for partition in journal.partitions()?.into_iter().filter(|p| p.topic == Topic::Events) {
        let mut reader = journal.reader(&partition, 0)?;
        each(reader.as_mut(), |entry| match decode(&entry.value) {
            Decoded::Event(event) => found.event(&event),
            Decoded::Identified { .. } | Decoded::Undecodable { .. } => Ok(()),
        })?;
    }
    found.end()
}

fn each(
    reader: &mut dyn Read,
    mut see: impl FnMut(Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        let entries = reader.read(100, 1 << 20, Duration::ZERO)?;
        if entries.is_empty() && reader.position() >= reader.end()? {
            return Ok(());
        }
        entries.into_iter().try_for_each(&mut see)?;
    }
}

/// What is in the spool.
#[derive(Default)]
struct Found {
    next: HashMap<String, u64>,
    bodies: HashMap<BodyId, (ChunkHeader, Vec<u8>)>,
    /// How often each call was opened and ended.
    calls: BTreeMap<u128, (u32, u32)>,
}

impl Found {
    fn chunk(&mut self, entry: &Entry) -> Result<(), Failure> {
        let header = ChunkHeader::decode(&entry.header)?;
        let (_, bytes) =
            self.bodies.entry(header.body).or_insert_with(|| (header.clone(), Vec::new()));
        bytes.extend_from_slice(&entry.value);
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<(), Failure> {
        let next = self.next.entry(event.stream.to_string()).or_default();
        if event.seq.get() != *next {
            return Err(format!("{}: {} where {next} should be", event.stream, event.seq).into());
        }
        *next += 1;
        for body in [&event.bodies.request, &event.bodies.response].into_iter().flatten() {
            self.holds(body)?;
        }
        let Some(call) = event.call.and_then(|call| call.to_string().parse::<uuid::Uuid>().ok())
        else {
            return Ok(());
        };
        let (opened, ended) = self.calls.entry(call.as_u128()).or_default();
        let status = event.outcome.as_ref().map(|outcome| outcome.status.clone());
        match status {
            None => {
                *opened += 1;
                println!("found opening {}", call.as_u128());
            }
            Some(status) => {
                *ended += 1;
                let what = if status == Status::Ok { "ending" } else { "unknown" };
                println!("found {what} {}", call.as_u128());
            }
        }
        Ok(())
    }

    fn holds(&self, body: &BodyRef) -> Result<(), Failure> {
        let (header, bytes) = self.bodies.get(&body.body).ok_or("a body is missing")?;
        if commitment(&header.nonce, bytes) == body.commitment {
            return Ok(());
        }
        Err("a body is not the one that its record commits to".into())
    }

    fn end(self) -> Result<(), Failure> {
        match self.calls.iter().find(|(_, times)| **times != (1, 1)) {
            None => Ok(()),
            Some((call, (opened, ended))) => {
                Err(format!("call {call} was opened {opened} and ended {ended} times").into())
            }
        }
    }
}
