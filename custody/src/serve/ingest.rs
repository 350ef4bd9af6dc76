//! Ingest: its settings, and the role that runs one worker alone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use custody_ingest::{Assigned, Ingest, Sealing, Settings};
use custody_journal::Journal;
use custody_journal::kafka::Group;
use custody_lake::Lake;

use super::health::{self, Ready};
use super::process::{Part, Process, listen};
use super::{kafka, lake, sealing};
use crate::config::{Config, Kafka};

/// `custody ingest`: one worker of the group.
pub async fn start(config: Config, kafka: Kafka) -> anyhow::Result<Process> {
    let mut process = Process::default();
    kafka::look_at(&kafka);
    let lake = lake::open(&config).await?;
    let sealing = sealing::apart(&config).await?;
    let worker = Worker::join(&config, &kafka, lake, sealing)?;
    let listener = listen(config.ingest.listen, "ingest.listen").await?;
    process.listens("ingest", listener.local_addr()?);
    let (page, ready) = (Arc::clone(&process.page), worker.ready());
    let telling = |stop| health::serve(listener, page, ready, stop);
    worker.show(&process);
    process.then(worker.carry());
    process.then(Part::start("health", telling));
    Ok(process)
}

/// A worker, and what says which partitions are its own.
pub struct Worker {
    ingest: Arc<Ingest>,
    group: Option<Arc<Group>>,
}

impl Worker {
    /// The only worker of a journal on local disk: all of it is its own.
    pub fn alone(
        config: &Config,
        journal: Arc<dyn Journal>,
        lake: Lake,
        sealing: Option<Sealing>,
    ) -> anyhow::Result<Self> {
        let ingest = Arc::new(worker(Ingest::new(journal, lake, settings(config)?), sealing));
        Ok(Self { ingest, group: None })
    }

    /// One of several that share the partitions of Kafka.
    pub fn join(
        config: &Config,
        kafka: &Kafka,
        lake: Lake,
        sealing: Option<Sealing>,
    ) -> anyhow::Result<Self> {
        let (group, journal) = kafka::member(kafka)?;
        let ingest = Arc::new(worker(Ingest::new(journal, lake, settings(config)?), sealing));
        Ok(Self { ingest, group: Some(Arc::new(group)) })
    }

    /// Whether everything moves that this worker carries.
    pub fn ready(&self) -> Ready {
        // whoever only watches does not keep this worker in the group
        let (ingest, group) = (Arc::clone(&self.ingest), self.group.as_ref().map(Arc::downgrade));
        Arc::new(move || {
            let group = group.as_ref().and_then(Weak::upgrade);
            let apart = group.and_then(|group| group.problem());
            let of_group = apart.map(|problem| format!("the consumer group: {problem}"));
            let stuck = ingest.status().into_iter().filter(|partition| partition.assigned);
            let stuck = stuck.filter_map(|p| Some(format!("{}: {}", p.app_id, p.problem?)));
            let problems: Vec<_> = of_group.into_iter().chain(stuck).collect();
            if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
        })
    }

    /// Lets `process` show how every partition stands.
    pub fn show(&self, process: &Process) {
        process.show(|page| custody_ingest::metrics::show(page, &self.ingest));
    }

    /// Carries entries until it is stopped; then commits, and leaves the group last.
    pub fn carry(self) -> Part {
        let assigned = match &self.group {
            Some(group) => Assigned::Group(group.assigned()),
            None => Assigned::All,
        };
        Part::start("ingest", |stop| async move {
            let carried = self.ingest.run(assigned, stop).await;
            tokio::task::spawn_blocking(move || drop(self.group)).await?;
            Ok(carried?)
        })
    }
}

fn worker(ingest: Ingest, sealing: Option<Sealing>) -> Ingest {
    match sealing {
        Some(sealing) => ingest.sealing(sealing),
        None => ingest,
    }
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    let (cluster, epoch) = kafka::positions(config);
    Ok(Settings {
        flush_bytes: usize::try_from(config.lake.flush_bytes)?,
        flush_after: Duration::from_secs(config.lake.flush_seconds),
        cluster,
        epoch,
    })
}
