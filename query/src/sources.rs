//! What answers are made of: a version of the lake's tables, and the tail behind it.
//!
//! The view of the lake is renewed beside the questions, so that none waits for the object store to
//! say what is new: what a view does not hold yet is in the tail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use custody_journal::{Journal, Partition, ReadError, Topic};
use custody_lake::{Lake, LakeError, Snapshot, Table, app_id};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::engine::{EngineOptions, OpenError, now};
use crate::ledger::Ledger;
use crate::session::{SessionLimits, Sessions};
use crate::slice::Slice;
use crate::stored;
use crate::tail::{Offsets, Tail};

/// How often the view is renewed and the tail drops what the lake holds.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// The same while the tail's memory is short.
const RENEW_SOON: Duration = Duration::from_millis(500);
/// How long the journal and the lake may take to answer before that counts as a problem.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How many ledgers of cuts are kept.
const KEPT_CUTS: usize = 4;

/// One version of each table, and how far each partition is stored there.
pub(crate) struct View {
    pub(crate) events: Arc<Snapshot>,
    pub(crate) bodies: Arc<Snapshot>,
    pub(crate) starts: Offsets,
}

/// Lake and journal, opened.
pub(crate) struct Sources {
    lake: Lake,
    journal: Arc<dyn Journal>,
    options: EngineOptions,
    pub(crate) sessions: Sessions,
    pub(crate) tail: Tail,
    view: Mutex<Arc<View>>,
    /// When the newest renewal began; one at a time.
    renewing: tokio::sync::Mutex<Instant>,
    problem: Mutex<Option<String>>,
    cuts: Mutex<VecDeque<(String, Arc<Ledger>)>>,
}

impl Sources {
    /// Sums up what the lake holds, then follows the journal from there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) async fn open(
        lake: Lake,
        journal: Arc<dyn Journal>,
        options: EngineOptions,
    ) -> Result<Self, OpenError> {
        let begun = Instant::now();
        let partitions = partitions(&journal).await?;
        let view = view(&lake, &options, &partitions).await?;
        let sessions = sessions(&view, &options)?;
        let schema = view.events.schema();
        let slice = Slice::of("events", &view.events, &schema, None);
        let ledger = stored::ledger(&sessions, slice, &[]).await?;
        stored::remember_views(&sessions, &view).await?;
        let tail = Tail::new(Arc::clone(&journal), ledger, options.tail_bytes);
        tail.follow(&partitions, &view.starts)?;
        Ok(Self {
            lake,
            journal,
            options,
            sessions,
            tail,
            view: Mutex::new(Arc::new(view)),
            renewing: tokio::sync::Mutex::new(begun),
            problem: Mutex::new(None),
            cuts: Mutex::default(),
        })
    }

    /// The newest view.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock())
    }

    /// A view of the versions that are the newest now, or later ones.
    ///
    /// # Errors
    /// When the lake cannot be read.
    pub(crate) async fn renew(&self) -> Result<Arc<View>, LakeError> {
        let asked = Instant::now();
        let mut renewed = self.renewing.lock().await;
        if *renewed >= asked {
            return Ok(self.view());
        }
        let begun = Instant::now();
        let view = view(&self.lake, &self.options, &self.tail.partitions()).await?;
        let view = Arc::new(view);
        *self.view.lock() = Arc::clone(&view);
        *renewed = begun;
        Ok(view)
    }

    /// What keeps the lake or the journal from being read.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().clone().or_else(|| self.tail.problem())
    }

    /// Renews the view, lets the tail drop what the lake held one round before, and looks after new
    /// partitions, until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut before = Offsets::new();
        loop {
            let pause = if self.tail.is_short() { RENEW_SOON } else { RENEW_EVERY };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            let round = tokio::time::timeout(ANSWER_WITHIN, self.round(&mut before)).await;
            let problem = match round {
                Ok(Ok(())) => None,
                Ok(Err(problem)) => Some(problem),
                Err(_) => Some("the lake or the journal does not answer".to_owned()),
            };
            let mut known = self.problem.lock();
            if let Some(problem) = problem.as_ref().filter(|p| known.as_ref() != Some(*p)) {
                tracing::warn!(%problem, "answers are not as fresh as they should be");
            }
            *known = problem;
        }
    }

    async fn round(&self, before: &mut Offsets) -> Result<(), String> {
        self.tail.trim(before);
        let view = self.renew().await.map_err(|error| format!("the lake: {error}"))?;
        if self.tail.is_short() {
            // Whoever holds an older view pins again.
            self.tail.trim(&view.starts);
        }
        before.clone_from(&view.starts);
        let partitions = partitions(&self.journal).await;
        let partitions = partitions.map_err(|error| format!("the journal: {error}"))?;
        let followed = self.tail.follow(&partitions, &view.starts);
        followed.map_err(|error| format!("the journal: {error}"))?;
        let heard = self.tail.catch_up(now(), ANSWER_WITHIN / 2).await;
        match partitions.iter().find(|partition| !heard.contains_key(*partition)) {
            Some(partition) => Err(format!(
                "the journal does not say where {}/{} ends",
                partition.topic.name(),
                partition.name
            )),
            None => Ok(()),
        }
    }

    /// The ledger at a cut, if it was summed up not long ago.
    pub(crate) fn kept_cut(&self, name: &str) -> Option<Arc<Ledger>> {
        let cuts = self.cuts.lock();
        cuts.iter().find(|(known, _)| known == name).map(|(_, ledger)| Arc::clone(ledger))
    }

    /// Keeps the ledger at a cut for a while.
    pub(crate) fn keep_cut(&self, name: String, ledger: Arc<Ledger>) {
        let mut cuts = self.cuts.lock();
        cuts.truncate(KEPT_CUTS - 1);
        cuts.push_front((name, ledger));
    }

    /// The app id of a partition in the lake.
    pub(crate) fn app_id(&self, partition: &Partition) -> String {
        app_id_of(&self.options, partition)
    }
}

fn app_id_of(options: &EngineOptions, partition: &Partition) -> String {
    app_id(&options.cluster, partition.topic.name(), options.epoch, &partition.name)
}

/// The partitions of events and bodies.
async fn partitions(journal: &Arc<dyn Journal>) -> Result<Vec<Partition>, ReadError> {
    let journal = Arc::clone(journal);
    let listed = tokio::task::spawn_blocking(move || journal.partitions()).await;
    let broken = |error: tokio::task::JoinError| ReadError::Io {
        path: "its partitions".into(),
        source: std::io::Error::other(error),
    };
    let listed = listed.map_err(broken)??;
    Ok(listed.into_iter().filter(|partition| partition.topic != Topic::Control).collect())
}

async fn view(
    lake: &Lake,
    options: &EngineOptions,
    partitions: &[Partition],
) -> Result<View, LakeError> {
    let of = async |table: &Table| table.snapshot().await;
    let (events, bodies) = (of(lake.events()).await?, of(lake.bodies()).await?);
    let mut starts = Offsets::new();
    for partition in partitions {
        let snapshot = if partition.topic == Topic::Events { &events } else { &bodies };
        if let Some(next) = snapshot.txn(&app_id_of(options, partition)).await? {
            starts.insert(partition.clone(), next);
        }
    }
    Ok(View { events, bodies, starts })
}

fn sessions(view: &View, options: &EngineOptions) -> Result<Sessions, OpenError> {
    let stores = BTreeMap::from([("events", view.events.store()), ("bodies", view.bodies.store())]);
    let limits = SessionLimits {
        memory_bytes: options.memory_bytes,
        spill_bytes: options.spill_bytes,
        spill_dir: options.spill_dir.clone(),
        parallelism: options.threads,
        metadata_cache_bytes: 256 << 20,
    };
    Ok(Sessions::new(stores, limits)?)
}
