//! The leaves of every stream: under its checkpoints, and with a neighbour on either side of the
//! period.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek};

use custody_schemas::id::{Micros, StreamId};
use custody_schemas::seal::proof::Range;
use custody_schemas::seal::{FLAG_PHI, Leaf, leaf_hash};

use super::{Check, Log, Shown, Signed, Wanted, leaves_path, population_path, range, wrong};
use crate::evidence::sample::{Challenge, Draw};
use crate::evidence::{FORMAT, Population};
use crate::verify::Finding;

type Sizes = BTreeMap<u64, Signed>;

/// A stream's leaves as they are read.
struct Leaves {
    /// The index of the next one.
    at: u64,
    first: Option<Micros>,
    last: Option<Micros>,
    backwards: bool,
    /// The moment of the last leaf below each size that the log has.
    ends: BTreeMap<u64, Micros>,
    flagged: Vec<Wanted>,
    population: u64,
}

impl<R: Read + Seek> Check<'_, R> {
    /// Every stream in the log.
    pub(super) fn populations(
        &mut self,
        log: &Log,
        challenge: Option<&Challenge>,
    ) -> Result<Shown, Finding> {
        let streams = log.streams.keys().cloned().collect();
        let (flagged, newest) = (Vec::new(), BTreeMap::new());
        let mut shown = Shown { streams, flagged, drawn: Vec::new(), newest };
        let mut draw = Draw::new(challenge);
        for (index, (stream, sizes)) in log.streams.iter().enumerate() {
            let index = u32::try_from(index).map_err(|_| wrong(FORMAT, "too many streams"))?;
            let last = self.population(index, stream, sizes, &mut shown.flagged, &mut draw)?;
            // Streams come in the order of time: the last one is the writer's newest.
            shown.newest.insert(stream.writer().to_owned(), last);
        }
        shown.drawn = draw.end();
        self.judged.flagged = shown.flagged.len() as u64;
        self.judged.drawn = shown.drawn.len() as u64;
        Ok(shown)
    }

    /// One of them; the moment of its last leaf, if that is shown.
    fn population(
        &mut self,
        index: u32,
        stream: &StreamId,
        sizes: &Sizes,
        flagged: &mut Vec<Wanted>,
        draw: &mut Draw,
    ) -> Result<Option<Micros>, Finding> {
        let path = population_path(stream.as_str());
        let said: Population =
            serde_json::from_str(&self.text(&path)?).map_err(|e| wrong(&path, e.to_string()))?;
        let range = range((said.size, said.first, said.end), (&said.left, &said.right), &path)?;
        let data = leaves_path(stream.as_str());
        let count = self.archive.size(&data).ok_or_else(|| wrong(&data, "the file is missing"))?;
        if range.end.checked_sub(range.first).map(|n| n * Leaf::BYTES as u64) != Some(count) {
            return Err(wrong(&data, "it does not hold the leaves that are named"));
        }
        let within = self.within(&data)?;
        let cuts = if within { sizes.keys().copied().collect() } else { BTreeSet::new() };
        let mut leaves = Leaves::new(&range);
        let roots = self.roots(&data, &range, &cuts, |check, leaf| {
            leaves.take(leaf, sizes, (index, check.judged.from, check.judged.to), draw);
        })?;
        let size = sizes.keys().next_back().copied().unwrap_or(0);
        if said.stream != stream.as_str() || range.size != size {
            return Err(wrong(&path, "its leaves are not those of the stream's last checkpoint"));
        }
        for (size, root) in roots {
            self.judged.roots += 1;
            if sizes.get(&size).is_some_and(|signed| signed.root != root) {
                let problem = format!("its leaves are not those of the checkpoint at size {size}");
                return Err(wrong(&path, problem));
            }
        }
        self.borders(&path, &range, &leaves);
        self.closed(&path, &leaves, sizes);
        self.judged.population += leaves.population;
        flagged.append(&mut leaves.flagged);
        Ok(leaves.last.filter(|_| range.end == range.size))
    }

    /// Whether one of the leaves lies in the period.
    fn within(&self, data: &str) -> Result<bool, Finding> {
        let (mut found, period) = (false, self.judged.from..self.judged.to);
        self.each_leaf(data, |leaf| found |= period.contains(&leaf.at()))?;
        Ok(found)
    }

    fn each_leaf(&self, data: &str, mut each: impl FnMut(&Leaf)) -> Result<(), Finding> {
        let content = self.archive.content(data).map_err(|e| wrong(data, e.to_string()))?;
        let mut content = content.ok_or_else(|| wrong(data, "the file is missing"))?;
        let damaged = |_: io::Error| wrong(data, "it is damaged");
        while let Some(leaf) = next(&mut content).map_err(damaged)? {
            each(&leaf);
        }
        Ok(())
    }

    /// The roots at all cuts, while each leaf is shown.
    fn roots(
        &self,
        data: &str,
        range: &Range,
        cuts: &BTreeSet<u64>,
        mut each: impl FnMut(&Self, &Leaf),
    ) -> Result<BTreeMap<u64, custody_schemas::id::Hash>, Finding> {
        let content = self.archive.content(data).map_err(|e| wrong(data, e.to_string()))?;
        let mut content = content.ok_or_else(|| wrong(data, "the file is missing"))?;
        let mut damaged = false;
        let hashes = std::iter::from_fn(|| match next(&mut content) {
            Ok(leaf) => leaf.map(|leaf| {
                each(self, &leaf);
                leaf_hash(leaf.as_bytes())
            }),
            Err(_) => {
                damaged = true;
                None
            }
        });
        let roots = range.roots(hashes, cuts);
        if damaged {
            return Err(wrong(data, "it is damaged"));
        }
        roots.map_err(|e| wrong(data, e.to_string()))
    }

    /// Nothing of the period lies beyond what is shown, because time never goes backwards.
    fn borders(&mut self, path: &str, range: &Range, leaves: &Leaves) {
        if leaves.backwards {
            self.judged.find(path, "time goes backwards");
        }
        if range.first > 0 && leaves.first.is_none_or(|at| at >= self.judged.from) {
            self.judged.find(path, "no neighbour before the period is shown");
        }
        if range.end < range.size && leaves.last.is_none_or(|at| at < self.judged.to) {
            self.judged.find(path, "no neighbour after the period is shown");
        }
    }

    /// No key has signed events after it was closed.
    fn closed(&mut self, path: &str, leaves: &Leaves, sizes: &Sizes) {
        for (size, last) in &leaves.ends {
            let until = sizes.get(size).and_then(|signed| signed.until);
            if until.is_some_and(|until| *last >= until) {
                let problem =
                    format!("the key of the checkpoint at size {size} had been closed before");
                self.judged.find(path, problem);
            }
        }
    }
}

fn next(content: &mut impl Read) -> io::Result<Option<Leaf>> {
    let mut data = [0; Leaf::BYTES];
    let mut filled = 0;
    while filled < data.len() {
        match content.read(data.get_mut(filled..).unwrap_or_default())? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(Some(Leaf::from_bytes(data)))
}

impl Leaves {
    fn new(range: &Range) -> Self {
        Self {
            at: range.first,
            first: None,
            last: None,
            backwards: false,
            ends: BTreeMap::new(),
            flagged: Vec::new(),
            population: 0,
        }
    }

    fn take(
        &mut self,
        leaf: &Leaf,
        sizes: &Sizes,
        (stream, from, to): (u32, Micros, Micros),
        draw: &mut Draw,
    ) {
        self.backwards |= self.last.is_some_and(|last| leaf.at() < last);
        self.first.get_or_insert(leaf.at());
        self.last = Some(leaf.at());
        if (from..to).contains(&leaf.at()) {
            let wanted = Wanted { stream, seq: self.at, leaf: *leaf };
            self.population += 1;
            draw.offer(wanted);
            if leaf.flags() & FLAG_PHI != 0 {
                self.flagged.push(wanted);
            }
        }
        self.at += 1;
        if sizes.contains_key(&self.at) {
            self.ends.insert(self.at, leaf.at());
        }
    }
}
