//! What ingest shows of itself, for `/metrics`: one line for each partition that it carries or has
//! carried, and how sealing stands, asked when the page is.
//!
//! Labels are topics and the names of partitions, which are numbers or writers' names, and the names
//! of witnesses in the policy.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::status::DURATION_BOUNDS;
use crate::{Ingest, PartitionStatus, SealStatus, WitnessStatus};

/// Shows on `page` how every partition of `ingest` stands, for as long as it is there.
pub fn show(page: &mut Registry, ingest: &Arc<Ingest>) {
    page.register_collector(Box::new(Page(Arc::downgrade(ingest))));
}

#[derive(Debug)]
struct Page(Weak<Ingest>);

type Labels = [(&'static str, String); 2];

/// The partitions, with their labels.
struct Lines<'e> {
    to: DescriptorEncoder<'e>,
    partitions: Vec<(Labels, PartitionStatus)>,
}

impl Lines<'_> {
    /// A number of each partition that has it.
    fn gauge(
        &mut self,
        (name, help): (&str, &str),
        unit: Option<Unit>,
        number: impl Fn(&PartitionStatus) -> Option<f64>,
    ) -> fmt::Result {
        let mut lines = self.to.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, partition) in &self.partitions {
            if let Some(number) = number(partition) {
                lines.encode_family(labels)?.encode_gauge(&number)?;
            }
        }
        Ok(())
    }

    fn counter(
        &mut self,
        (name, help): (&str, &str),
        number: impl Fn(&PartitionStatus) -> u64,
    ) -> fmt::Result {
        let mut lines = self.to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, partition) in &self.partitions {
            let mut line = lines.encode_family(labels)?;
            line.encode_counter::<NoLabelSet, u64, u64>(&number(partition), None)?;
        }
        Ok(())
    }

    fn commits(&mut self) -> fmt::Result {
        let (name, help) = ("custody_ingest_commit", "How long commits took that landed");
        let unit = Some(Unit::Seconds);
        let kind = MetricType::Histogram;
        let mut lines = self.to.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, partition) in &self.partitions {
            let took = &partition.commits;
            let bounds = DURATION_BOUNDS.into_iter().chain([f64::INFINITY]);
            let classes: Vec<_> = bounds.zip(took.classes).collect();
            let mut line = lines.encode_family(labels)?;
            let sum = took.sum.as_secs_f64();
            line.encode_histogram::<NoLabelSet>(sum, took.count, &classes, None)?;
        }
        Ok(())
    }
}

fn number(count: u64) -> f64 {
    count as f64
}

fn truth(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

impl Collector for Page {
    fn encode(&self, to: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(ingest) = self.0.upgrade() else { return Ok(()) };
        let labelled = |status: PartitionStatus| {
            let topic = status.partition.topic.name().to_owned();
            let labels = [("topic", topic), ("partition", status.partition.name.clone())];
            (labels, status)
        };
        let partitions = ingest.status().into_iter().map(labelled).collect();
        let mut lines = Lines { to, partitions };
        let carried = |status: &PartitionStatus| status.assigned;
        let help = "1 for a partition that this worker carries at present";
        lines.gauge(("custody_ingest_assigned", help), None, |p| Some(truth(carried(p))))?;
        let help = "Entries between the table and the journal's end";
        lines.gauge(("custody_ingest_lag_entries", help), None, |p| {
            p.lag().filter(|_| carried(p)).map(number)
        })?;
        let help = "Entries that have not been read yet";
        lines.gauge(("custody_ingest_unread_entries", help), None, |p| {
            p.unread().filter(|_| carried(p)).map(number)
        })?;
        let help = "Age of the oldest entry that is known not to be in the table";
        lines.gauge(("custody_ingest_lag", help), Some(Unit::Seconds), |p| {
            carried(p).then(|| p.waiting.map_or(0.0, |age| age.as_secs_f64()))
        })?;
        let help = "1 while something keeps the partition from moving";
        lines.gauge(("custody_ingest_stuck", help), None, |p| Some(truth(p.problem.is_some())))?;
        lines.counts()?;
        lines.commits()?;
        match ingest.seals() {
            Some(seals) => Seals { to: lines.to, seals }.encode(),
            None => Ok(()),
        }
    }
}

/// How sealing stands.
struct Seals<'e> {
    to: DescriptorEncoder<'e>,
    seals: SealStatus,
}

impl Seals<'_> {
    fn encode(mut self) -> fmt::Result {
        let seals = std::mem::take(&mut self.seals);
        self.counter("custody_seal_leaves", "Leaves verified and sealed", seals.leaves)?;
        let help = "Leaves that were signed and whose record is not in the table";
        self.counter("custody_seal_missing", help, seals.missing)?;
        let help = "Findings of something stored that is not what was signed";
        self.counter("custody_seal_findings", help, seals.faults)?;
        let help = "Stored records that wait for a checkpoint";
        self.gauge("custody_seal_waiting_records", help, number(seals.waiting))?;
        let help = "Entries of the deployment log";
        self.gauge("custody_seal_log_entries", help, number(seals.log_size))?;
        let help = "1 while something keeps stored records from being sealed";
        self.gauge("custody_seal_stuck", help, truth(seals.problem.is_some()))?;
        if seals.witnesses.is_empty() {
            return Ok(());
        }
        let help = "Entries of the deployment log that enough witnesses have cosigned";
        self.gauge("custody_seal_witnessed_entries", help, number(seals.witnessed))?;
        self.witnesses(&seals.witnesses)
    }

    fn witnesses(&mut self, witnesses: &[WitnessStatus]) -> fmt::Result {
        let help = "Entries of the deployment log that the witness has cosigned";
        let kind = MetricType::Gauge;
        let mut lines = self.to.encode_descriptor("custody_witness_entries", help, None, kind)?;
        for witness in witnesses {
            let labels = [("witness", witness.name.as_str())];
            lines.encode_family(&labels)?.encode_gauge(&number(witness.size))?;
        }
        let help = "How often the witness did not cosign what it was shown";
        let kind = MetricType::Counter;
        let mut lines = self.to.encode_descriptor("custody_witness_failures", help, None, kind)?;
        for witness in witnesses {
            let labels = [("witness", witness.name.as_str())];
            let mut line = lines.encode_family(&labels)?;
            line.encode_counter::<NoLabelSet, u64, u64>(&witness.failures, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, number: f64) -> fmt::Result {
        self.to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&number)
    }

    fn counter(&mut self, name: &str, help: &str, number: u64) -> fmt::Result {
        let mut line = self.to.encode_descriptor(name, help, None, MetricType::Counter)?;
        line.encode_counter::<NoLabelSet, u64, u64>(&number, None)
    }
}

impl Lines<'_> {
    fn counts(&mut self) -> fmt::Result {
        self.counter(("custody_ingest_rows", "Rows stored"), |p| p.counts.rows)?;
        let help = "Records that were sent again and are stored already";
        self.counter(("custody_ingest_duplicates", help), |p| p.counts.duplicates)?;
        let help = "Records stored whose identity another one has";
        self.counter(("custody_ingest_conflicts", help), |p| p.counts.conflicts)?;
        let help = "Entries stored as bytes that nobody could read";
        self.counter(("custody_ingest_undecodable", help), |p| p.counts.undecodable)?;
        let help = "Batches dropped because another worker had moved the partition on";
        self.counter(("custody_ingest_commit_conflicts", help), |p| p.fenced)?;
        let help = "How often the store or the table was tried again";
        self.counter(("custody_ingest_retries", help), |p| p.retries)
    }
}
