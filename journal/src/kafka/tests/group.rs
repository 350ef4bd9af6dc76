//! Three members that join, leave, and are stopped for longer than their session.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::{events, send};
use crate::kafka::testing::{Cluster, eventually, now};
use crate::kafka::{Group, KafkaAppend, KafkaJournal, KafkaSettings, Membership, Topics};
use crate::{Journal, Partition, Topic};

/// How the test binary is told to be a member, and where.
const MEMBER: &str = "CUSTODY_TEST_GROUP_MEMBER";

fn membership(settings: &KafkaSettings, instance: Option<&str>) -> Membership {
    let group = format!("{}.ingest", settings.topic(Topic::Events));
    let instance = instance.map(str::to_owned);
    Membership { group, instance, session: Duration::from_secs(2) }
}

fn has(group: &Group) -> BTreeSet<Partition> {
    group.assigned().borrow().clone()
}

/// Whether every partition has exactly one owner, and nobody more than two apart from others.
fn shared_out(owned: &[BTreeSet<Partition>], partitions: usize) -> bool {
    let all: BTreeSet<_> = owned.iter().flatten().collect();
    let sizes = owned.iter().map(BTreeSet::len);
    let (least, most) = (sizes.clone().min().unwrap(), sizes.clone().max().unwrap());
    all.len() == partitions && sizes.sum::<usize>() == partitions && most - least <= 2
}

#[test]
fn three_members_share_the_partitions_and_those_who_leave_hand_theirs_on() {
    let settings = Cluster::shared().with_topics(3);
    let join = || Group::join(&settings, &membership(&settings, None)).unwrap();
    let first = join();
    eventually("one member has all", || has(&first).len() == 6);
    let (second, third) = (join(), join());
    eventually("three members share", || shared_out(&[has(&first), has(&second), has(&third)], 6));
    drop(second);
    eventually("two members share", || shared_out(&[has(&first), has(&third)], 6));
    drop(first);
    eventually("one member has all again", || has(&third).len() == 6);
    assert_eq!(third.problem(), None);
}

#[test]
fn topics_that_are_made_later_and_partitions_that_are_added_are_shared_out_too() {
    let settings = Cluster::shared().deployment(1);
    let group = Group::join(&settings, &membership(&settings, None)).unwrap();
    eventually("the member says what is missing", || {
        group.problem().is_some_and(|problem| problem.contains("custody topics create"))
    });
    now(crate::kafka::create(&settings)).unwrap();
    eventually("the member has both", || has(&group).len() == 2);
    eventually("nothing is missing any more", || group.problem().is_none());
    let admin: AdminClient<DefaultClientContext> =
        settings.client_config(&[], &[]).create().unwrap();
    let topic = settings.topic(Topic::Events);
    let more = NewPartitions::new(&topic, 2);
    now(admin.create_partitions(&[more], &AdminOptions::new())).unwrap();
    eventually("the member has three", || has(&group).len() == 3);
}

#[test]
fn what_is_released_shows_as_the_groups_offset() {
    let settings = Cluster::shared().with_topics(1);
    send(&mut KafkaAppend::open(&settings).unwrap(), (0..9).map(|n| n.to_string()));
    let membership = membership(&settings, Some("worker-1"));
    let group = Group::join(&settings, &membership).unwrap();
    let journal = KafkaJournal::open(&settings).unwrap().reporting_to(&group);
    eventually("the member has both", || has(&group).len() == 2);
    journal.release(&events(), 7).unwrap();
    let config = settings.client_config(&[], &[("group.id", &membership.group)]);
    let looking: BaseConsumer = config.create().unwrap();
    eventually("the group's offset is 7", || {
        let mut list = TopicPartitionList::new();
        list.add_partition(&settings.topic(Topic::Events), 0);
        let found = looking.committed_offsets(list, Duration::from_secs(5)).unwrap();
        found.elements()[0].offset() == Offset::Offset(7)
    });
}

#[test]
fn a_second_member_with_the_same_name_is_told_and_the_name_is_said() {
    let settings = Cluster::shared().with_topics(1);
    let membership = membership(&settings, Some("worker-1"));
    let first = Group::join(&settings, &membership).unwrap();
    eventually("the first member has both", || has(&first).len() == 2);
    let second = Group::join(&settings, &membership).unwrap();
    eventually("one of them says what to do", || {
        [&first, &second]
            .iter()
            .any(|group| group.problem().is_some_and(|problem| problem.contains("`instance`")))
    });
}

/// Not a test of its own: what [`member`] starts as a process, which the system can stop.
#[test]
fn a_member_that_is_a_process() {
    let Ok(told) = std::env::var(MEMBER) else { return };
    let (brokers, prefix) = told.split_once(' ').unwrap();
    let topics = Topics { prefix: Some(prefix.to_owned()), ..Topics::default() };
    let settings = KafkaSettings { topics, ..KafkaSettings::new(brokers) };
    let group = Group::join(&settings, &membership(&settings, Some("stopped"))).unwrap();
    let mut assigned = group.assigned();
    loop {
        let names: Vec<_> = assigned.borrow_and_update().iter().map(|p| p.name.clone()).collect();
        writeln!(std::io::stdout(), "\nassigned {}", names.join(",")).unwrap();
        now(assigned.changed()).unwrap();
    }
}

struct Member {
    process: Child,
    assigned: Arc<Mutex<usize>>,
}

impl Member {
    fn start(settings: &KafkaSettings) -> Self {
        let prefix = settings.topics.prefix.clone().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kafka::tests::group::a_member_that_is_a_process", "--nocapture"])
            .env(MEMBER, format!("{} {prefix}", settings.brokers))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let assigned = Arc::new(Mutex::new(0));
        let seen = Arc::clone(&assigned);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(names) = line.strip_prefix("assigned ") {
                    *seen.lock() = names.split(',').filter(|name| !name.is_empty()).count();
                }
            }
        });
        Self { process, assigned }
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_member_that_is_stopped_loses_its_partitions_and_comes_back_when_it_goes_on() {
    let settings = Cluster::shared().with_topics(2);
    let here = Group::join(&settings, &membership(&settings, Some("here"))).unwrap();
    eventually("the first member has all", || has(&here).len() == 4);
    let there = Member::start(&settings);
    eventually("both have two", || has(&here).len() == 2 && *there.assigned.lock() == 2);
    there.signal("-STOP");
    eventually("the other takes over", || has(&here).len() == 4);
    there.signal("-CONT");
    eventually("both have two again", || has(&here).len() == 2 && *there.assigned.lock() == 2);
}
