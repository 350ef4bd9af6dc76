//! Membership of a consumer group: which partitions this process shall carry to the lake.
//!
//! Only that. The member's consumer never fetches: what it is given it pauses at once, and data are
//! read by plain readers from where the *table* stands. Nothing depends on two processes never
//! having the same partition, the table's own fence decides; the group only spreads the work.
//!
//! Promises: the member is polled on a thread of its own, however long a commit takes, so that only
//! a process that is dead, stopped or cut off loses its partitions. What it lost is taken from
//! [`Group::assigned`] before anybody is told to have it, unless the process was not running. Kafka
//! away: the session ends after its time, everything is taken back, and the member joins again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::watch;

use super::cluster::{Cluster, consumer, is_cut_off};
use super::journal::{named, number_of};
use super::link::Link;
use super::settings::{KafkaSettings, explain};
use crate::{Partition, ReadError, Topic};

/// How long one poll takes at most, and so a leave.
const POLL: Duration = Duration::from_millis(100);
/// How often the lake's position is told to the group.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long a member has to show that it reaches a broker.
const SHOW: Duration = Duration::from_secs(2);
/// How often in a row it may fail to, while others do, before it is replaced.
const STRANDED: u32 = 2;
/// The pause before a member that was put out joins again.
const AGAIN: Duration = Duration::from_secs(2);

/// Whose partitions are shared out, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group's name: the same for all ingest workers of a deployment.
    pub group: String,
    /// The member's name, different in each process and the same after its restart: then a restart
    /// within the session's time moves no partition. Without one every start is a new member.
    pub instance: Option<String>,
    /// How long a member may stay silent before its partitions go to others; brokers ask for at
    /// least 6 s unless told otherwise.
    pub session: Duration,
}

impl Membership {
    /// An unnamed member with a session of ten seconds.
    #[must_use]
    pub fn new(group: impl Into<String>) -> Self {
        Self { group: group.into(), instance: None, session: Duration::from_secs(10) }
    }
}

/// How far the lake is, for displays of the group's lag.
#[derive(Debug, Default)]
pub(super) struct Progress {
    offsets: Mutex<BTreeMap<Partition, u64>>,
}

impl Progress {
    pub(super) fn stored(&self, partition: &Partition, up_to: u64) {
        self.offsets.lock().insert(partition.clone(), up_to);
    }

    /// What has changed of `assigned` since it was last taken.
    fn take(&self, assigned: &BTreeSet<Partition>) -> BTreeMap<Partition, u64> {
        let mut offsets = std::mem::take(&mut *self.offsets.lock());
        offsets.retain(|partition, _| assigned.contains(partition));
        offsets
    }
}

/// This process's membership, from [`join`](Self::join) until it is dropped.
#[derive(Debug)]
pub struct Group {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    assigned: watch::Sender<BTreeSet<Partition>>,
    progress: Arc<Progress>,
    problem: Mutex<Option<Problem>>,
    stop: AtomicBool,
}

/// What keeps the process from being a member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    text: String,
    /// Kafka cannot be reached.
    cut_off: bool,
}

impl Group {
    /// Joins, and stays a member until dropped. Does not wait for the first assignment.
    ///
    /// # Errors
    /// [`ReadError::Io`] when librdkafka refuses a setting or no thread can be started.
    pub fn join(settings: &KafkaSettings, membership: &Membership) -> Result<Self, ReadError> {
        let cluster = Arc::new(Cluster::new(settings)?);
        let shared = Arc::new(Shared {
            assigned: watch::Sender::new(BTreeSet::new()),
            progress: Arc::default(),
            problem: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let member =
            Member { cluster, membership: membership.clone(), shared: Arc::clone(&shared) };
        let first = member.enter().map_err(|error| member.error(&error))?;
        let spawned = std::thread::Builder::new().name("group".to_owned());
        let spawned = spawned.spawn(move || member.run(first));
        let thread = spawned.map_err(|error| ReadError::io("a new thread", error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The partitions that this process shall carry, now and at every change.
    #[must_use]
    pub fn assigned(&self) -> watch::Receiver<BTreeSet<Partition>> {
        self.shared.assigned.subscribe()
    }

    /// What keeps this process from being a member, when something does.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.shared.problem.lock().as_ref().map(|problem| problem.text.clone())
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.shared.progress)
    }
}

impl Drop for Group {
    /// Leaves; takes a second at most where Kafka answers.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the consumer group broke off");
        }
    }
}

/// The thread's side.
struct Member {
    cluster: Arc<Cluster>,
    membership: Membership,
    shared: Arc<Shared>,
}

/// What librdkafka calls while it is polled.
struct Rebalances {
    shared: Arc<Shared>,
    topics: [(String, Topic); 2],
    link: Link,
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.link.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(error, reason);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let assign = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let partitions = self.partitions(list);
        let done = match (assign, cooperative) {
            (true, cooperative) => self.take(consumer, list, cooperative),
            (false, true) => consumer.incremental_unassign(list),
            (false, false) => consumer.unassign(),
        };
        if let Err(error) = done {
            tracing::error!(%error, "partitions of the consumer group cannot be taken or given up");
        }
        tracing::info!(?partitions, assign, "the consumer group shares its partitions out anew");
        self.shared.assigned.send_if_modified(|assigned| {
            let before = assigned.len();
            if assign {
                assigned.extend(partitions);
            } else {
                assigned.retain(|partition| !partitions.contains(partition));
            }
            assigned.len() != before
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "the group's lag is not up to date");
        }
    }
}

impl Rebalances {
    /// Takes what is given, without ever fetching it: an offset that needs no look-up, and a pause.
    fn take(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
        cooperative: bool,
    ) -> KafkaResult<()> {
        list.set_all_offsets(Offset::End)?;
        if cooperative {
            consumer.incremental_assign(list)?;
        } else {
            consumer.assign(list)?;
        }
        if list.count() == 0 { Ok(()) } else { consumer.pause(list) }
    }

    fn partitions(&self, list: &TopicPartitionList) -> BTreeSet<Partition> {
        let elements = list.elements();
        let known = elements.iter().filter_map(|element| {
            let (_, topic) = self.topics.iter().find(|(name, _)| name == element.topic())?;
            Some(named(*topic, element.partition()))
        });
        known.collect()
    }
}

impl Member {
    /// A consumer that is on its way into the group.
    fn enter(&self) -> KafkaResult<BaseConsumer<Rebalances>> {
        let settings = self.cluster.settings();
        let topics = [Topic::Events, Topic::Bodies].map(|topic| (settings.topic(topic), topic));
        let names = topics.each_ref().map(|(name, _)| name.as_str());
        let session_ms = self.membership.session.as_millis();
        let (session, beat) = (session_ms.to_string(), (session_ms / 4).max(1).to_string());
        let usual = [
            ("session.timeout.ms", &*session),
            ("heartbeat.interval.ms", &*beat),
            // topics that are made later, and partitions that are added
            ("topic.metadata.refresh.interval.ms", "10000"),
        ];
        let mut fixed = vec![
            ("group.id", &*self.membership.group),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("queued.min.messages", "1"),
        ];
        if let Some(instance) = &self.membership.instance {
            fixed.push(("group.instance.id", instance));
        }
        let context = Rebalances {
            shared: Arc::clone(&self.shared),
            topics: topics.clone(),
            link: Link::default(),
        };
        let consumer = consumer(&self.cluster, &usual, &fixed, context)?;
        consumer.subscribe(&names)?;
        Ok(consumer)
    }

    fn run(&self, first: BaseConsumer<Rebalances>) {
        let mut consumer = Some(first);
        while !self.stopped() {
            match consumer.take() {
                Some(member) => self.stay(&member),
                None => match self.enter() {
                    Ok(entered) => consumer = Some(entered),
                    Err(error) => {
                        let problem = Problem { text: explain(&error), cut_off: false };
                        *self.shared.problem.lock() = Some(problem);
                    }
                },
            }
            // whoever is put out has nothing
            self.give_up_all();
            let until = Instant::now() + AGAIN;
            while consumer.is_none() && !self.stopped() && Instant::now() < until {
                std::thread::sleep(POLL);
            }
        }
        drop(consumer);
        self.give_up_all();
    }

    /// Polls until the end, or until the group puts this member out for good.
    fn stay(&self, member: &BaseConsumer<Rebalances>) {
        let mut told_at = Instant::now();
        let mut stranded = 0;
        while !self.stopped() {
            match member.poll(POLL) {
                None | Some(Ok(_)) => {
                    if !self.assigned_nothing() {
                        self.recovered(member, false);
                    }
                }
                Some(Err(error)) => {
                    let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
                    self.trouble(member, &error, fatal);
                    if fatal {
                        return;
                    }
                }
            }
            if told_at.elapsed() >= TELL_EVERY {
                self.tell(member, CommitMode::Async);
                if self.is_cut_off() && self.cluster.partitions(Topic::Events).is_ok() {
                    stranded = if self.reaches(member) { 0 } else { stranded + 1 };
                    if stranded == 0 {
                        self.recovered(member, true);
                    } else if stranded == STRANDED {
                        tracing::warn!("the consumer group's client lost all brokers: a new one");
                        return;
                    }
                }
                told_at = Instant::now();
            }
        }
        self.tell(member, CommitMode::Async);
    }

    /// Whether this member has a broker to talk to.
    fn reaches(&self, member: &BaseConsumer<Rebalances>) -> bool {
        let topic = self.cluster.settings().topic(Topic::Events);
        member.fetch_metadata(Some(&topic), SHOW).is_ok()
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    fn give_up_all(&self) {
        self.shared.assigned.send_if_modified(|assigned| {
            let had = !assigned.is_empty();
            assigned.clear();
            had
        });
    }

    fn assigned_nothing(&self) -> bool {
        self.shared.assigned.borrow().is_empty()
    }

    /// Whether the problem is that Kafka cannot be reached.
    fn is_cut_off(&self) -> bool {
        self.shared.problem.lock().as_ref().is_some_and(|problem| problem.cut_off)
    }

    /// The problem is over: the connection's when Kafka has answered, any other when the member
    /// has been given something.
    fn recovered(&self, member: &BaseConsumer<Rebalances>, answered: bool) {
        let mut problem = self.shared.problem.lock();
        if problem.as_ref().is_some_and(|problem| problem.cut_off == answered) {
            *problem = None;
            member.context().link.works();
        }
    }

    fn trouble(&self, member: &BaseConsumer<Rebalances>, error: &KafkaError, fatal: bool) {
        let trouble = member.context().link.problem();
        let mut text = trouble.unwrap_or_else(|| explain(error));
        if fatal && self.membership.instance.is_some() {
            text.push_str(
                ". If another process has the same name in its `instance`, give it its own",
            );
        }
        let cut_off = !fatal && is_cut_off(error);
        let problem = Some(Problem { text, cut_off });
        let mut known = self.shared.problem.lock();
        if *known != problem {
            tracing::warn!(?problem, "the consumer group");
        }
        *known = problem;
    }

    /// Tells the group how far the lake is.
    fn tell(&self, member: &BaseConsumer<Rebalances>, mode: CommitMode) {
        let offsets = self.shared.progress.take(&self.shared.assigned.borrow());
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &offsets {
            let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
            let topic = self.cluster.settings().topic(partition.topic);
            let Some(number) = number_of(partition) else { continue };
            if let Err(error) = list.add_partition_offset(&topic, number, offset) {
                tracing::debug!(%error, "an offset that Kafka does not take");
            }
        }
        if list.count() > 0
            && let Err(error) = member.commit(&list, mode)
        {
            tracing::debug!(%error, "the group's lag is not up to date");
        }
    }

    fn error(&self, error: &KafkaError) -> ReadError {
        let place = format!("consumer group {}", self.membership.group);
        ReadError::io(place, io::Error::other(explain(error)))
    }
}
