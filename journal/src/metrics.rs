//! What a writer's spool and its shipper show of themselves, for `/metrics`.
//!
//! Everything is asked when the page is; nothing here is counted twice or kept alive. There are no
//! labels at all.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::Writer;
use crate::file::now;
#[cfg(feature = "kafka")]
use crate::ship::ShipStatus;
use crate::writer::Shared;

/// Shows on `page` how `writer` and its spool are doing, for as long as it is there.
pub fn spool(page: &mut Registry, writer: &Writer) {
    page.register_collector(Box::new(Spool(Arc::downgrade(writer.shared()))));
}

/// Shows on `page` how shipping is going, as long as `status` knows.
#[cfg(feature = "kafka")]
pub fn ship(page: &mut Registry, status: impl Fn() -> Option<ShipStatus> + Send + Sync + 'static) {
    page.register_collector(Box::new(Ship(Box::new(status))));
}

#[derive(Debug)]
struct Spool(Weak<Shared>);

#[cfg(feature = "kafka")]
struct Ship(Box<dyn Fn() -> Option<ShipStatus> + Send + Sync>);

#[cfg(feature = "kafka")]
impl fmt::Debug for Ship {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ship").finish_non_exhaustive()
    }
}

/// Writes metrics with a common beginning of their names.
struct Lines<'e>(DescriptorEncoder<'e>, &'static str);

impl Lines<'_> {
    fn write(
        &mut self,
        (name, help): (&str, &str),
        unit: Option<Unit>,
        value: &impl EncodeMetric,
    ) -> fmt::Result {
        let name = format!("{}_{name}", self.1);
        let encoder = self.0.encode_descriptor(&name, help, unit.as_ref(), value.metric_type())?;
        value.encode(encoder)
    }

    fn gauge(&mut self, what: (&str, &str), value: u64) -> fmt::Result {
        self.write(what, None, &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn bytes(&mut self, what: (&str, &str), value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        self.write(what, Some(Unit::Bytes), &gauge)
    }

    fn seconds(&mut self, what: (&str, &str), value: Duration) -> fmt::Result {
        self.write(what, Some(Unit::Seconds), &ConstGauge::new(value.as_secs_f64()))
    }

    fn counter(&mut self, what: (&str, &str), value: u64) -> fmt::Result {
        self.write(what, None, &ConstCounter::new(value))
    }
}

/// How long ago `at` (µs since 1970) was; nothing for what is not there.
fn age(at: Option<u64>) -> Duration {
    Duration::from_micros(at.map_or(0, |at| now().saturating_sub(at)))
}

impl Collector for Spool {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        let status = shared.status();
        let backlog = shared.journal().backlog();
        let mut to = Lines(encoder, "custody_spool");
        to.bytes(("used", "Disk that the spool takes"), status.spool_used_bytes)?;
        to.bytes(("limit", "Disk that it may take"), status.spool_max_bytes)?;
        let help = "Entries that are neither in the lake nor acknowledged by Kafka";
        to.gauge(("waiting_entries", help), backlog.entries)?;
        let help = "Age of the oldest of them";
        to.seconds(("waiting", help), age(backlog.oldest_at))?;
        to.gauge(("open_calls", "Calls that hold a slot"), status.slots as u64)?;
        let works = u64::from(status.problem.is_none());
        to.gauge(("writable", "1 as long as events can be recorded, else 0"), works)?;
        to.counter(("events", "Events recorded"), status.events)?;
        to.counter(
            ("syncs", "Batches made durable; events by this is one sync's"),
            status.commits,
        )?;
        to.counter(("failed_runs", "Streams that ended because the disk failed"), status.poisoned)
    }
}

#[cfg(feature = "kafka")]
impl Collector for Ship {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(status) = (self.0)() else { return Ok(()) };
        let mut to = Lines(encoder, "custody_ship");
        let connected = u64::from(status.connected);
        to.gauge(("connected", "1 as long as Kafka answers, else 0"), connected)?;
        let help = "Entries that Kafka has not acknowledged";
        to.gauge(("unshipped_entries", help), status.unshipped_entries)?;
        to.bytes(("unshipped", "About how long these entries are"), status.unshipped_bytes)?;
        let oldest = age(status.oldest_unshipped_at.map(|at| at.get()));
        to.seconds(("lag", "Age of the oldest of them"), oldest)?;
        let acknowledged = status.acknowledged_entries;
        to.counter(("acknowledged_entries", "Entries that Kafka acknowledged"), acknowledged)?;
        to.write(
            ("acknowledged", "Their length"),
            Some(Unit::Bytes),
            &ConstCounter::new(status.acknowledged_bytes),
        )?;
        to.counter(("retries", "How often shipping was begun again"), status.retries)?;
        let help = "Entries that somebody removed from the spool before they were shipped";
        to.counter(("lost_entries", help), status.lost_entries)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use custody_schemas::event::Draft;
    use custody_schemas::kind::Kind;
    use custody_schemas::seal::key::Signer;
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::{Journal as _, WriterOptions};

    fn value(page: &Registry, name: &str) -> f64 {
        let mut text = String::new();
        encode(&mut text, page).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not there: {text}")).parse().unwrap()
    }

    #[tokio::test]
    async fn a_spool_shows_what_waits_in_it_and_for_how_long_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let options = WriterOptions {
            segment_bytes: 4 << 20,
            sync: false,
            ..WriterOptions::new(dir.path(), "edge-1")
        };
        let (signer, _) = Signer::from_seed("edge-1", &[7; 32]).unwrap();
        let (writer, _) = Writer::open(options, signer).unwrap();
        let mut page = Registry::default();
        spool(&mut page, &writer);
        let appending = writer.append(Draft::new(Kind::AuthRefused), Vec::new());
        let appended = appending.await.unwrap();
        assert!(value(&page, "custody_spool_waiting_entries") >= 2.0);
        let begun = Instant::now();
        while value(&page, "custody_spool_waiting_seconds") < 0.001 {
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
        assert!(value(&page, "custody_spool_events_total") >= 1.0);
        assert!(value(&page, "custody_spool_used_bytes") > 0.0);
        let journal = writer.journal();
        for partition in journal.partitions().unwrap() {
            journal.release(&partition, appended.offset + 1).unwrap();
        }
        assert!(value(&page, "custody_spool_waiting_entries") < 2.0);
        drop(writer);
        let mut text = String::new();
        encode(&mut text, &page).unwrap();
        assert_eq!(text, "# EOF\n", "the page keeps nothing alive");
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn shipping_shows_how_far_it_is_behind() {
        let mut page = Registry::default();
        let status = || {
            let at = custody_schemas::id::Uint::new(now() - 5_000_000);
            Some(ShipStatus {
                unshipped_entries: 7,
                oldest_unshipped_at: Some(at),
                ..ShipStatus::default()
            })
        };
        ship(&mut page, status);
        assert_eq!(value(&page, "custody_ship_unshipped_entries"), 7.0);
        assert!(value(&page, "custody_ship_lag_seconds") >= 5.0);
        assert_eq!(value(&page, "custody_ship_connected"), 0.0);
    }
}
