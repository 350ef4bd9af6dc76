//! The journal that Kafka keeps: partitions of events and bodies, by number.
//!
//! Every process reads what it wants from where it wants; Kafka deletes by its retention time
//! alone, so releasing only tells the consumer group how far the lake is, for displays of its lag.

use std::sync::Arc;

use super::cluster::Cluster;
use super::group::{Group, Progress};
use super::reader::KafkaReader;
use super::settings::KafkaSettings;
use crate::{Journal, Partition, Read, ReadError, Topic};

/// What proxies ship to, and ingest and query read.
#[derive(Debug)]
pub struct KafkaJournal {
    cluster: Arc<Cluster>,
    progress: Option<Arc<Progress>>,
}

impl KafkaJournal {
    /// The journal of these topics. Nothing is asked of Kafka yet, so it need not be reachable.
    ///
    /// # Errors
    /// [`ReadError::Io`] when librdkafka refuses a setting.
    pub fn open(settings: &KafkaSettings) -> Result<Self, ReadError> {
        Ok(Self { cluster: Arc::new(Cluster::new(settings)?), progress: None })
    }

    /// Tells `group` what is released, so that Kafka's tools show its lag.
    #[must_use]
    pub fn reporting_to(mut self, group: &Group) -> Self {
        self.progress = Some(group.progress());
        self
    }

    /// The number of a partition, if it can be one of this journal's.
    fn number(&self, partition: &Partition) -> Result<i32, ReadError> {
        let number = number_of(partition).filter(|_| partition.topic != Topic::Control);
        number.ok_or_else(|| ReadError::NoPartition(partition.clone()))
    }
}

/// A partition of Kafka under the name that the journal gives it.
pub(super) fn named(topic: Topic, number: i32) -> Partition {
    Partition { topic, name: number.to_string() }
}

/// The number that a partition's name says.
pub(super) fn number_of(partition: &Partition) -> Option<i32> {
    let number = partition.name.parse().ok().filter(|number| *number >= 0)?;
    (named(partition.topic, number) == *partition).then_some(number)
}

impl Journal for KafkaJournal {
    fn partitions(&self) -> Result<Vec<Partition>, ReadError> {
        let mut partitions = Vec::new();
        for topic in [Topic::Events, Topic::Bodies] {
            let count = self.cluster.partitions(topic)?;
            let count = count.ok_or_else(|| self.cluster.missing(topic))?;
            let numbers = 0..i32::try_from(count).unwrap_or(i32::MAX);
            partitions.extend(numbers.map(|number| named(topic, number)));
        }
        Ok(partitions)
    }

    fn reader(&self, partition: &Partition, from: u64) -> Result<Box<dyn Read>, ReadError> {
        let number = self.number(partition)?;
        let count = self.cluster.partitions(partition.topic)?.unwrap_or(0);
        if usize::try_from(number).is_ok_and(|number| number >= count) {
            return Err(ReadError::NoPartition(partition.clone()));
        }
        Ok(Box::new(KafkaReader::new(&self.cluster, partition, number, from)?))
    }

    fn release(&self, partition: &Partition, up_to: u64) -> Result<(), ReadError> {
        self.number(partition)?;
        if let Some(progress) = &self.progress {
            progress.stored(partition, up_to);
        }
        Ok(())
    }
}
