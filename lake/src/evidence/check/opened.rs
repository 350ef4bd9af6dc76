//! What is opened: the records of flagged leaves with the report that follows from them, the
//! auditor's sample, and what retention and erasure say of those that are not there.

use std::io::{self, BufRead, BufReader, Read, Seek};

use custody_schemas::event::Event;
use custody_schemas::id::StreamId;
use custody_schemas::record::{Decoded, Identity, MAX_RECORD_BYTES, decode};
use custody_schemas::seal::leaf_hash;

use super::{
    Check, Judged, KEPT, LAWFUL, LAWFUL_PROOFS, Log, RECORDS, REPORT, SAMPLE, Scope, Shown, Wanted,
    range, wrong,
};
use crate::evidence::Proof;
use crate::evidence::report::Compared;
use crate::lawful::{Gone, Lawful, says_so};
use crate::verify::Finding;

/// After so many records the progress is told.
const TELL_EVERY: u64 = 4_096;

/// Records that are held against leaves, both in the order of streams.
struct Opened<'a> {
    shown: &'a Shown,
    wanted: &'a [Wanted],
    /// The next leaf.
    at: usize,
    /// How many had their record.
    count: u64,
    /// Leaves without.
    lacking: Vec<Wanted>,
    /// Lines that are wrong, at most so many as are kept.
    findings: Vec<Finding>,
    /// How many are.
    found: u64,
}

impl Opened<'_> {
    /// The leaf of a record.
    fn take(&mut self, identity: &Identity, bytes: &[u8]) -> Result<(), String> {
        let stream = &identity.stream;
        let place = self.shown.streams.binary_search(stream).ok();
        let Some(place) = place.and_then(|place| u32::try_from(place).ok()) else {
            return Err("its stream is not in the log".to_owned());
        };
        let key = (place, identity.seq.get());
        while let Some(next) = self.wanted.get(self.at).filter(|next| next.key() < key) {
            self.lacking.push(*next);
            self.at += 1;
        }
        let Some(next) = self.wanted.get(self.at).filter(|next| next.key() == key) else {
            return Err("no leaf asks for it here: it stands twice, in another order, or is of \
                        another period"
                .to_owned());
        };
        self.at += 1;
        if next.leaf != identity.leaf(bytes) {
            return Err(format!("{stream} {} is not what was signed", key.1));
        }
        self.count += 1;
        Ok(())
    }

    fn find(&mut self, place: &str, problem: String) {
        self.found += 1;
        if self.findings.len() < KEPT {
            self.findings.push(wrong(place, problem));
        }
    }

    fn end(mut self) -> Self {
        self.lacking.extend_from_slice(self.wanted.get(self.at..).unwrap_or_default());
        self
    }
}

impl Judged {
    fn with(&mut self, opened: &Opened<'_>) {
        self.found += opened.found;
        let room = KEPT.saturating_sub(self.findings.len());
        self.findings.extend(opened.findings.iter().take(room).cloned());
    }
}

impl<R: Read + Seek> Check<'_, R> {
    /// The records, and the report that follows from them.
    pub(super) fn records(&mut self, shown: &Shown, lawful: &Lawful) -> Result<(), Finding> {
        let report = self.archive.content(REPORT).map_err(|e| wrong(REPORT, e.to_string()))?;
        let report = report.ok_or_else(|| wrong(REPORT, "the file is missing"))?;
        let damaged = |_: io::Error| wrong(REPORT, "it is damaged");
        let mut report = Compared::new(BufReader::new(report)).map_err(damaged)?;
        let mut broken = None;
        let opened = self.open(RECORDS, shown, &shown.flagged, |event| {
            if broken.is_none() {
                broken = report.event(event).err();
            }
        })?;
        let (follows, lines) = match broken {
            Some(error) => Err(error),
            None => report.end(),
        }
        .map_err(damaged)?;
        self.judged.with(&opened);
        if !follows {
            self.judged.find(REPORT, "it is not what follows from the records");
        }
        (self.judged.opened, self.judged.accesses) = (opened.count, lines);
        if self.judged.scope == Scope::Full {
            self.lacking(shown, lawful, &opened.lacking);
        }
        Ok(())
    }

    /// The sample.
    pub(super) fn sample(&mut self, shown: &Shown, lawful: &Lawful) -> Result<(), Finding> {
        let opened = self.open(SAMPLE, shown, &shown.drawn, |_| {})?;
        self.judged.with(&opened);
        self.judged.drawn_opened = opened.count;
        self.lacking(shown, lawful, &opened.lacking);
        Ok(())
    }

    /// Tells the expired and the erased from the missing.
    fn lacking(&mut self, shown: &Shown, lawful: &Lawful, lacking: &[Wanted]) {
        for wanted in lacking {
            match shown.gone(lawful, wanted) {
                Some(Gone::Expired) => self.judged.expired += 1,
                Some(Gone::Erased) => self.judged.erased += 1,
                None => self.judged.miss(&shown.streams[wanted.stream as usize], wanted.seq),
            }
        }
    }

    /// Holds every line of a file against the leaves that are wanted; shows the events.
    fn open<'a>(
        &self,
        name: &str,
        shown: &'a Shown,
        wanted: &'a [Wanted],
        mut show: impl FnMut(&Event),
    ) -> Result<Opened<'a>, Finding> {
        let (lacking, findings) = (Vec::new(), Vec::new());
        let mut opened = Opened { shown, wanted, at: 0, count: 0, lacking, findings, found: 0 };
        let (mut index, all) = (0, wanted.len() as u64);
        self.each_line(name, |line| {
            index += 1;
            if index % TELL_EVERY == 0 {
                (self.progress)(index.min(all), all);
            }
            let place = || format!("{name} line {index}");
            let (identity, event) = match decode(line) {
                Decoded::Event(event) => (event.identity(), Some(event)),
                Decoded::Identified { identity, .. } => (identity, None),
                Decoded::Undecodable { problem } => return opened.find(&place(), problem),
            };
            match opened.take(&identity, line) {
                Ok(()) => event.iter().for_each(|event| show(event)),
                Err(problem) => opened.find(&place(), problem),
            }
        })?;
        (self.progress)(all, all);
        Ok(opened.end())
    }

    fn each_line(&self, name: &str, mut each: impl FnMut(&[u8])) -> Result<(), Finding> {
        let content = self.archive.content(name).map_err(|e| wrong(name, e.to_string()))?;
        let content = content.ok_or_else(|| wrong(name, "the file is missing"))?;
        let (mut lines, mut line) = (BufReader::with_capacity(1 << 16, content), Vec::new());
        loop {
            line.clear();
            let most = MAX_RECORD_BYTES as u64 + 2;
            let read = lines.by_ref().take(most).read_until(b'\n', &mut line);
            match read.map_err(|_| wrong(name, "it is damaged"))? {
                0 => return Ok(()),
                _ if line.pop() != Some(b'\n') => return Err(wrong(name, "a line does not end")),
                _ => each(&line),
            }
        }
    }

    /// What has left lawfully, by sealed records that say so.
    pub(super) fn lawful(&mut self, log: &Log) -> Result<Lawful, Finding> {
        let mut lawful = Lawful::default();
        if self.archive.size(LAWFUL).is_none() && self.archive.size(LAWFUL_PROOFS).is_none() {
            return Ok(lawful);
        }
        let proofs: Vec<Proof> = serde_json::from_str(&self.text(LAWFUL_PROOFS)?)
            .map_err(|e| wrong(LAWFUL_PROOFS, e.to_string()))?;
        let mut proofs = proofs.iter();
        let mut problem = None;
        self.each_line(LAWFUL, |line| match proofs.next() {
            Some(proof) if problem.is_none() => match proven(log, proof, line) {
                Ok(event) => lawful.note(&event),
                Err(finding) => problem = Some(finding),
            },
            Some(_) => {}
            None => problem = Some(wrong(LAWFUL, "a record has no proof")),
        })?;
        match problem {
            Some(finding) => Err(finding),
            None if proofs.next().is_some() => Err(wrong(LAWFUL, "a proof has no record")),
            None => Ok(lawful),
        }
    }
}

/// A record with the proof that its stream's last checkpoint covers it.
fn proven(log: &Log, proof: &Proof, line: &[u8]) -> Result<Event, Finding> {
    let place = format!("{LAWFUL} {} {}", proof.stream, proof.seq);
    let Decoded::Event(event) = decode(line) else {
        return Err(wrong(&place, "it cannot be read"));
    };
    let last = proof.stream.parse().ok().and_then(|stream: StreamId| {
        let (size, signed) = log.streams.get(&stream)?.last_key_value()?;
        Some((*size, signed.root))
    });
    let (size, root) = last.ok_or_else(|| wrong(&place, "its stream is not in the log"))?;
    let end = proof.seq.saturating_add(1);
    let range = range((size, proof.seq, end), (&proof.left, &proof.right), &place)?;
    let leaf = event.identity().leaf(line);
    let found =
        range.root([leaf_hash(leaf.as_bytes())]).map_err(|e| wrong(&place, e.to_string()))?;
    let named = event.stream.as_str() == proof.stream && event.seq.get() == proof.seq;
    if found != root || !named || !says_so(&event.kind) {
        return Err(wrong(&place, "it is not what was signed there"));
    }
    Ok(*event)
}
