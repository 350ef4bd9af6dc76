//! From Kafka: twelve writers in three partitions, a bare consumer that counts, and one worker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use custody_ingest::Settings;
use custody_journal::kafka::{KafkaAppend, KafkaJournal, KafkaSettings, Topics, create};
use custody_journal::{Append, Journal, Topic};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{Failure, Watch, carry, rows, write};

const PARTITIONS: i32 = 3;
const WRITERS: u64 = 12;

/// Fills topics of its own, counts them, carries them.
pub async fn run(brokers: &str, calls: u64, folder: &Path) -> Result<(), Failure> {
    let mut settings = KafkaSettings::new(brokers);
    settings.topics = Topics {
        prefix: Some(format!("measure-{}", std::process::id())),
        partitions: PARTITIONS,
        replication: 1,
        min_in_sync: 1,
        ..Topics::default()
    };
    create(&settings).await?;
    let calls = calls / WRITERS;
    let mut append = KafkaAppend::open(&settings)?;
    for writer in 1..=WRITERS {
        write(writer, calls, |entries| {
            append.append(entries)?;
            Ok(())
        })?;
    }
    let (events, all) = (2 * calls, rows(2 * calls, WRITERS));
    println!("{} events in Kafka", events * WRITERS);
    let watch = Watch::start()?;
    let bytes = count(&settings, all)?;
    watch.stop("bare consumer that counts", events * WRITERS)?;
    println!("{} bytes each", bytes / all);
    let journal: Arc<dyn Journal> = Arc::new(KafkaJournal::open(&settings)?);
    let to = Settings { cluster: "measure".to_owned(), ..Settings::default() };
    carry("one worker from Kafka", journal, to, folder, (events, WRITERS)).await
}

/// Reads `all` messages of the events' topic; their bytes.
fn count(settings: &KafkaSettings, all: u64) -> Result<u64, Failure> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &settings.brokers).set("group.id", "measure");
    let consumer: BaseConsumer = config.set("enable.auto.commit", "false").create()?;
    let mut partitions = TopicPartitionList::new();
    for number in 0..PARTITIONS {
        let topic = settings.topic(Topic::Events);
        partitions.add_partition_offset(&topic, number, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    let (mut messages, mut bytes) = (0, 0);
    while messages < all {
        let message = consumer.poll(Duration::from_secs(20)).ok_or("no more messages")??;
        messages += 1;
        bytes += message.payload_len() as u64;
    }
    Ok(bytes)
}
