//! A journal in memory, with what can happen to topics of a broker: several partitions, entries
//! deleted before anybody read them, a topic made anew, a broker that does not answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use custody_journal::{Entry, Journal, NewEntry, Partition, Read, ReadError, Topic};
use custody_schemas::id::Uint;

#[derive(Default)]
struct Log {
    first: u64,
    entries: Vec<Entry>,
}

impl Log {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

#[derive(Default)]
pub(crate) struct MemoryJournal {
    logs: Mutex<BTreeMap<Partition, Log>>,
    news: Condvar,
    silent: AtomicBool,
}

pub(crate) fn partition(topic: Topic, number: u32) -> Partition {
    Partition { topic, name: number.to_string() }
}

impl MemoryJournal {
    /// `count` partitions of events and one of bodies.
    pub(crate) fn new(count: u32) -> Arc<Self> {
        let events = (0..count).map(|number| partition(Topic::Events, number));
        let all = events.chain([partition(Topic::Bodies, 0)]);
        let logs = all.map(|partition| (partition, Log::default())).collect();
        Arc::new(Self { logs: Mutex::new(logs), ..Self::default() })
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<Partition, Log>> {
        self.logs.lock().unwrap()
    }

    pub(crate) fn put(&self, partition: &Partition, entries: impl IntoIterator<Item = NewEntry>) {
        let mut logs = self.logs();
        let log = logs.get_mut(partition).unwrap();
        for NewEntry { kind, header, value } in entries {
            let (offset, journaled_at) = (log.end(), Uint::new(1_700_000_000_000_000 + log.end()));
            log.entries.push(Entry { offset, journaled_at, kind, header, value });
        }
        self.news.notify_all();
    }

    /// The topic is deleted and made again.
    pub(crate) fn recreate(&self, partition: &Partition) {
        *self.logs().get_mut(partition).unwrap() = Log::default();
    }

    pub(crate) fn delete_before(&self, partition: &Partition, first: u64) {
        let mut logs = self.logs();
        let log = logs.get_mut(partition).unwrap();
        log.entries.drain(..usize::try_from(first - log.first).unwrap());
        log.first = first;
    }

    pub(crate) fn be_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    fn answer(&self) -> Result<MutexGuard<'_, BTreeMap<Partition, Log>>, ReadError> {
        if self.silent.load(Ordering::SeqCst) {
            let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(ReadError::Io { path: "broker".into(), source });
        }
        Ok(self.logs())
    }
}

struct MemoryReader {
    journal: Arc<MemoryJournal>,
    partition: Partition,
    position: u64,
}

impl MemoryReader {
    fn check(log: &Log, wanted: u64) -> Result<(), ReadError> {
        match (log.first, log.end()) {
            (first, _) if wanted < first => Err(ReadError::Gone { wanted, first }),
            (_, end) if wanted > end => Err(ReadError::Beyond { wanted, end }),
            _ => Ok(()),
        }
    }
}

impl Read for MemoryReader {
    fn read(
        &mut self,
        max_entries: usize,
        _: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, ReadError> {
        let logs = self.journal.answer()?;
        let (logs, _) = self
            .journal
            .news
            .wait_timeout_while(logs, wait, |logs| logs[&self.partition].end() == self.position)
            .unwrap();
        let log = &logs[&self.partition];
        Self::check(log, self.position)?;
        let from = usize::try_from(self.position - log.first).unwrap();
        let found: Vec<_> = log.entries[from..].iter().take(max_entries).cloned().collect();
        self.position += found.len() as u64;
        Ok(found)
    }

    fn seek(&mut self, offset: u64) -> Result<(), ReadError> {
        Self::check(&self.journal.answer()?[&self.partition], offset)?;
        self.position = offset;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn end(&self) -> Result<u64, ReadError> {
        Ok(self.journal.answer()?[&self.partition].end())
    }
}

/// A journal is shared; its readers hold on to it.
pub(crate) struct Shared(pub(crate) Arc<MemoryJournal>);

impl Journal for Shared {
    fn partitions(&self) -> Result<Vec<Partition>, ReadError> {
        Ok(self.0.answer()?.keys().cloned().collect())
    }

    fn reader(&self, partition: &Partition, from: u64) -> Result<Box<dyn Read>, ReadError> {
        let logs = self.0.answer()?;
        let log = logs.get(partition).ok_or_else(|| ReadError::NoPartition(partition.clone()))?;
        let position = if from == 0 { log.first } else { from };
        MemoryReader::check(log, position)?;
        let (journal, partition) = (Arc::clone(&self.0), partition.clone());
        Ok(Box::new(MemoryReader { journal, partition, position }))
    }

    fn release(&self, _: &Partition, _: u64) -> Result<(), ReadError> {
        Ok(())
    }
}
