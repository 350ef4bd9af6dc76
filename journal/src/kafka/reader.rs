//! Reads one partition of Kafka from any offset, and follows it.
//!
//! A reader has a consumer of its own, made when it first reads, with this one partition assigned
//! to it for good: no group decides what it reads, no stored offset where it begins. It is polled
//! on the caller's thread.
//!
//! Nothing is skipped: a gap of offsets is passed only when two new consumers, each made after the
//! leader was asked where the partition ends, have found nothing in between (what transactions
//! leave behind). A reader at the end makes sure every few seconds that its partition is still there and
//! as long. A message that cannot be read is an error, and the reader stays in front of it. Errors
//! of the connection are [`ReadError::Io`]: read again, the client connects anew by itself.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::cluster::{ANSWER, Bounds, Cluster, consumer, failed};
use super::link::Link;
use super::wire;
use crate::{Entry, Partition, Read, ReadError};

/// How long a consumer that is not at the end may stay without a message before that is an error.
const SILENCE: Duration = Duration::from_secs(10);
/// How long entries that should be there are waited for before a new consumer looks for them.
const LATE: Duration = Duration::from_millis(400);

/// How often a reader that is at the end makes sure that its partition is still the same.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What may be set otherwise: a reader takes some megabytes ahead, so that it is never idle, learns
/// within a tenth of a second that there is no more, and lets a little come together, since it is
/// the answer that costs and not what is in it.
const USUAL: [(&str, &str); 6] = [
    ("fetch.wait.max.ms", "100"),
    ("fetch.min.bytes", "32768"),
    ("fetch.message.max.bytes", "2097152"),
    ("queued.max.messages.kbytes", "8192"),
    ("fetch.queue.backoff.ms", "5"),
    ("fetch.error.backoff.ms", "200"),
];

/// What the promises stand on.
const FIXED: [(&str, &str); 6] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("check.crcs", "true"),
    ("enable.partition.eof", "true"),
];

/// A reader of one partition.
pub(crate) struct KafkaReader {
    cluster: Arc<Cluster>,
    partition: Partition,
    number: i32,
    /// The next offset.
    position: u64,
    /// Read from Kafka, not yet returned.
    held: Option<Entry>,
    /// Comes after what was read before it.
    failed: Option<ReadError>,
    source: Option<Source>,
    /// Where the partition ended when nothing came up to there.
    missing: Option<u64>,
    /// The position at which a new consumer found nothing, although the partition ends later.
    empty_at: Option<u64>,
    /// At which position it was last made sure that there is nothing, and when.
    looked: Option<(u64, Instant)>,
}

/// A consumer, and what it has told.
struct Source {
    consumer: BaseConsumer<Link>,
    /// Where the partition ended before the consumer was made, until it says that there is no more.
    ended: Option<u64>,
    at_end: bool,
    /// When something came last.
    heard_at: Instant,
}

impl Source {
    fn hears(&mut self, at_end: bool) {
        self.at_end = at_end;
        self.heard_at = Instant::now();
        if self.consumer.context().is_down() {
            self.consumer.context().works();
        }
    }
}

/// What one look at the consumer brought.
enum Next {
    Entry(Entry),
    /// There is nothing below the position any more.
    Moved,
    Nothing,
}

impl KafkaReader {
    /// A reader that begins at `from`; 0 means the oldest entry.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        partition: &Partition,
        number: i32,
        from: u64,
    ) -> Result<Self, ReadError> {
        let bounds = cluster.bounds(partition, number)?;
        let position = if from == 0 { bounds.first } else { from };
        within(position, bounds)?;
        Ok(Self {
            cluster: Arc::clone(cluster),
            partition: partition.clone(),
            number,
            position,
            held: None,
            failed: None,
            source: None,
            missing: None,
            looked: None,
            empty_at: None,
        })
    }

    fn bounds(&self) -> Result<Bounds, ReadError> {
        self.cluster.bounds(&self.partition, self.number)
    }

    /// The next entry, waited for no longer than `wait`.
    fn next(&mut self, wait: Duration) -> Result<Next, ReadError> {
        if let Some(held) = self.held.take() {
            return Ok(Next::Entry(held));
        }
        let source = match self.source.take() {
            Some(source) => source,
            None => self.assigned()?,
        };
        let source = self.source.insert(source);
        let (position, topic) = (self.position, self.partition.topic);
        let told = match source.consumer.poll(wait) {
            None if source.at_end || source.heard_at.elapsed() < SILENCE => {
                return Ok(Next::Nothing);
            }
            None => None,
            Some(Ok(message)) => {
                let entry = wire::entry(topic, &message);
                source.hears(false);
                // what was fetched for an earlier position does not count
                let expected = entry.offset >= position;
                return Ok(if expected { Next::Entry(entry) } else { Next::Nothing });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                source.hears(true);
                let ended = source.ended.take().filter(|ended| *ended > position);
                return Ok(ended.map_or(Next::Nothing, |ended| self.pass(ended)));
            }
            Some(Err(error)) => Some(error),
        };
        match told {
            Some(error) => self.judge(&error),
            None => Err(self.silent()),
        }
    }

    /// A new consumer says that there is nothing up to `ended`. Once that may be a leader that has
    /// just taken over and does not know yet how far it may show its entries; it knows when it has
    /// said again where the partition ends, so the second consumer is believed.
    fn pass(&mut self, ended: u64) -> Next {
        self.source = None;
        if self.empty_at == Some(self.position) {
            self.position = ended;
            return Next::Moved;
        }
        self.empty_at = Some(self.position);
        Next::Nothing
    }

    /// A new consumer that stands at the position.
    fn assigned(&self) -> Result<Source, ReadError> {
        let bounds = self.bounds()?;
        within(self.position, bounds)?;
        let settings = self.cluster.settings();
        let group = format!("{}.readers", settings.topic(self.partition.topic));
        let mut fixed = FIXED.to_vec();
        // never joined: librdkafka assigns nothing without a name
        fixed.push(("group.id", &group));
        let made = consumer(&self.cluster, &USUAL, &fixed, Link::default());
        let made = made.and_then(|consumer| {
            let mut list = TopicPartitionList::new();
            let offset = Offset::Offset(i64::try_from(self.position).unwrap_or(i64::MAX));
            let topic = settings.topic(self.partition.topic);
            list.add_partition_offset(&topic, self.number, offset)?;
            consumer.assign(&list)?;
            Ok(consumer)
        });
        let consumer = made.map_err(|error| self.error(&error))?;
        let ended = Some(bounds.end);
        Ok(Source { consumer, ended, at_end: false, heard_at: Instant::now() })
    }

    /// What an error of the consumer means.
    fn judge(&mut self, error: &KafkaError) -> Result<Next, ReadError> {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match error.rdkafka_error_code() {
            // one connection of several, or one that was idle: the client makes another
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::GroupAuthorizationFailed,
            ) if !fatal => Ok(Next::Nothing),
            Some(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::Authentication,
            ) if !fatal => Err(self.error(error)),
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.source = None;
                within(self.position, self.bounds()?)?;
                Err(self.error(error))
            }
            // also a batch with a wrong checksum: a new consumer begins in front of it
            _ => {
                self.source = None;
                Err(self.cluster.lost(&self.partition, self.number, error))
            }
        }
    }

    fn error(&self, error: &KafkaError) -> ReadError {
        let trouble = self.source.as_ref().and_then(|source| source.consumer.context().problem());
        let place = self.cluster.place(self.partition.topic, Some(self.number));
        failed(place, error, trouble)
    }

    /// Why nothing came, which is not for want of entries.
    fn silent(&mut self) -> ReadError {
        let source = self.source.take();
        let trouble = source.and_then(|source| source.consumer.context().problem());
        if let Err(error) = self.bounds().and_then(|bounds| within(self.position, bounds)) {
            return error;
        }
        let trouble = trouble.map_or_else(String::new, |trouble| format!("; {trouble}"));
        let text = format!("nothing came for {SILENCE:?}{trouble}");
        let place = self.cluster.place(self.partition.topic, Some(self.number));
        ReadError::io(place, io::Error::new(ErrorKind::TimedOut, text))
    }

    /// Takes entries until there are enough, or there is none; the first is waited for until
    /// `until`, and so are all below `end`.
    fn take(
        &mut self,
        taken: &mut Taken,
        until: Instant,
        end: Option<u64>,
    ) -> Result<(), ReadError> {
        let begun_at = self.position;
        let mut moved_at = Instant::now();
        while !taken.is_full() && end.is_none_or(|end| self.position < end) {
            let left = until.saturating_duration_since(Instant::now());
            let more = end.is_none() && self.position > begun_at;
            let wait = if more { Duration::ZERO } else { left };
            let wait = if end.is_some() { wait.min(LATE) } else { wait };
            match self.next(wait)? {
                Next::Entry(entry) => {
                    let after = entry.offset + 1;
                    if let Some(entry) = taken.offer(entry) {
                        self.held = Some(entry);
                        return Ok(());
                    }
                    self.position = after;
                    moved_at = Instant::now();
                }
                Next::Moved => {}
                Next::Nothing if more => return Ok(()),
                Next::Nothing if left.is_zero() && end.is_some() => return Err(self.silent()),
                Next::Nothing if left.is_zero() => return Ok(()),
                // a new consumer, made after the end was asked for, will say what is there
                Next::Nothing if end.is_some() && moved_at.elapsed() >= LATE => {
                    self.source = self.source.take().filter(|source| source.ended.is_some());
                }
                Next::Nothing => {}
            }
        }
        Ok(())
    }

    /// After a wait in which nothing came: whether that is because there is nothing. What one look
    /// finds missing is on its way; what the next still does is not there, and a new consumer will
    /// say so.
    fn look_around(&mut self) -> Result<(), ReadError> {
        let at_end = self.source.as_ref().is_some_and(|source| source.at_end);
        let due = self.looked.is_none_or(|(at, when)| {
            at != self.position || self.missing.is_some() || when.elapsed() >= LOOK_EVERY
        });
        if !at_end || !due {
            return Ok(());
        }
        self.looked = Some((self.position, Instant::now()));
        let bounds = self.bounds()?;
        within(self.position, bounds)?;
        let missing = Some(bounds.end).filter(|end| *end > self.position);
        if missing.is_some() && missing == self.missing {
            self.source = None;
        }
        self.missing = missing;
        Ok(())
    }
}

/// Whether a reader may stand at `position`.
fn within(position: u64, bounds: Bounds) -> Result<(), ReadError> {
    let Bounds { first, end } = bounds;
    if position < first {
        return Err(ReadError::Gone { wanted: position, first });
    }
    if position > end {
        return Err(ReadError::Beyond { wanted: position, end });
    }
    Ok(())
}

/// Entries that one call returns.
struct Taken {
    entries: Vec<Entry>,
    max_entries: usize,
    bytes_left: usize,
}

impl Taken {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.max_entries
    }

    /// Takes the entry, or gives it back when it is too much.
    fn offer(&mut self, entry: Entry) -> Option<Entry> {
        let bytes = entry.header.len() + entry.value.len();
        if !self.entries.is_empty() && bytes > self.bytes_left {
            return Some(entry);
        }
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.entries.push(entry);
        None
    }
}

impl Read for KafkaReader {
    fn read(
        &mut self,
        max_entries: usize,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, ReadError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut taken = Taken { entries: Vec::new(), max_entries, bytes_left: max_bytes };
        if max_entries == 0 {
            return Ok(taken.entries);
        }
        // without a wait, everything that is there now is what is meant
        let end = if wait.is_zero() { Some(self.end()?) } else { None };
        let patience = if wait.is_zero() { ANSWER + SILENCE } else { wait };
        let begun_at = self.position;
        let until = Instant::now() + patience;
        match self.take(&mut taken, until, end) {
            Ok(()) if self.position == begun_at && end.is_none() => self.look_around()?,
            Ok(()) => {}
            Err(error) if taken.entries.is_empty() => return Err(error),
            // what was read before it comes first
            Err(error) => self.failed = Some(error),
        }
        Ok(taken.entries)
    }

    fn seek(&mut self, offset: u64) -> Result<(), ReadError> {
        within(offset, self.bounds()?)?;
        if offset != self.position || self.failed.is_some() {
            (self.held, self.failed, self.source, self.missing) = (None, None, None, None);
            self.position = offset;
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn end(&self) -> Result<u64, ReadError> {
        Ok(self.bounds()?.end)
    }
}
