//! How the topics have to be: what they are made with, and what is wrong with those there are.
//!
//! Pure: it judges what a cluster has answered, and every problem says how to mend it.

use std::collections::BTreeMap;
use std::fmt;

use super::settings::{KafkaSettings, LEAST_RETENTION};
use crate::Topic;

/// The largest batch of entries that a topic is made for.
const MAX_BYTES: u32 = 4 << 20;
/// The largest batch that a writer sends.
const LEAST_MAX_BYTES: u32 = 1 << 20;

/// Something wrong with a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The topic.
    pub topic: String,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {}: {}. {}", self.topic, self.what, self.fix)
    }
}

/// What a topic's setting has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Kafka's name of the setting.
    pub(crate) name: &'static str,
    /// What a topic is made with.
    pub(crate) value: String,
    least: Option<i64>,
}

impl Wanted {
    fn exactly(name: &'static str, value: &str) -> Self {
        Self { name, value: value.to_owned(), least: None }
    }

    fn at_least(name: &'static str, least: i64) -> Self {
        Self { name, value: least.to_string(), least: Some(least) }
    }

    fn is_met_by(&self, found: &str) -> bool {
        let Some(least) = self.least else { return found == self.value };
        // where Kafka keeps things without a limit it says -1
        found.parse::<i64>().is_ok_and(|found| found >= least || found == -1)
    }
}

/// The settings of `topic`.
pub(crate) fn wanted(topic: Topic, settings: &KafkaSettings) -> Vec<Wanted> {
    let topics = &settings.topics;
    let mut wanted = vec![
        Wanted::at_least("min.insync.replicas", i64::from(topics.min_in_sync)),
        Wanted::exactly("unclean.leader.election.enable", "false"),
        // by a writer's clock, wrong as it may be, Kafka would refuse entries or delete them
        Wanted::exactly("message.timestamp.type", "LogAppendTime"),
        Wanted {
            name: "max.message.bytes",
            value: MAX_BYTES.to_string(),
            least: Some(i64::from(LEAST_MAX_BYTES)),
        },
    ];
    match topic {
        Topic::Events | Topic::Bodies => {
            let retention = topics.retention.max(LEAST_RETENTION).as_millis();
            let retention = i64::try_from(retention).unwrap_or(i64::MAX);
            wanted.push(Wanted::exactly("cleanup.policy", "delete"));
            wanted.push(Wanted::at_least("retention.ms", retention));
            wanted.push(Wanted::exactly("retention.bytes", "-1"));
        }
        Topic::Control => wanted.push(Wanted::exactly("cleanup.policy", "compact")),
    }
    wanted
}

/// How many partitions `topic` has.
pub(crate) fn partitions(topic: Topic, settings: &KafkaSettings) -> i32 {
    match topic {
        Topic::Events | Topic::Bodies => settings.topics.partitions,
        Topic::Control => 1,
    }
}

/// One partition, as the cluster describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Laid {
    /// Its number.
    pub(crate) number: i32,
    /// Whether a broker leads it.
    pub(crate) led: bool,
    /// On how many brokers it lies.
    pub(crate) replicas: usize,
    /// How many of them have everything.
    pub(crate) in_sync: usize,
}

/// What is wrong with the partitions of `topic`; none at all means that there is no such topic.
pub(crate) fn judge_partitions(
    topic: Topic,
    settings: &KafkaSettings,
    laid: &[Laid],
) -> Vec<Problem> {
    let name = settings.topic(topic);
    if laid.is_empty() {
        return vec![missing(&name)];
    }
    let mut problems = Vec::new();
    let mut add = |what: String, fix: String| {
        problems.push(Problem { topic: name.clone(), what, fix });
    };
    let (found, asked) = (laid.len(), usize::try_from(partitions(topic, settings)).unwrap_or(0));
    if topic == Topic::Control && found != 1 {
        add(
            format!("it has {found} partitions instead of one, so control state has no order"),
            format!(
                "Delete it and run `custody topics create`: kafka-topics.sh --delete --topic {name}"
            ),
        );
    } else if found < asked {
        add(
            format!("it has {found} partitions, {asked} are configured"),
            format!(
                "Stop every writer, for a stream stays where it began, and run kafka-topics.sh \
                 --alter --topic {name} --partitions {asked}; or set partitions = {found} in \
                 [journal]"
            ),
        );
    } else if found > asked {
        add(
            format!("it has {found} partitions, {asked} are configured"),
            format!("Set partitions = {found} in [journal]: partitions cannot be taken away"),
        );
    }
    problems.extend(judge_replicas(&name, settings, laid));
    problems
}

fn missing(name: &str) -> Problem {
    Problem {
        topic: name.to_owned(),
        what: "it does not exist, or this user may not describe it".to_owned(),
        fix: "Run `custody topics create`, or give this user the right to describe it".to_owned(),
    }
}

fn judge_replicas(name: &str, settings: &KafkaSettings, laid: &[Laid]) -> Vec<Problem> {
    let as_count = |wanted: i32| usize::try_from(wanted).unwrap_or(0);
    let (replication, least) =
        (as_count(settings.topics.replication), as_count(settings.topics.min_in_sync));
    let mut problems = Vec::new();
    if let Some(few) = laid.iter().find(|partition| partition.replicas < replication) {
        let Laid { number, replicas, .. } = few;
        problems.push(Problem {
            topic: name.to_owned(),
            what: format!(
                "partition {number} lies on {replicas} brokers, {replication} are configured"
            ),
            fix: format!(
                "Give it more with kafka-reassign-partitions.sh, or set replication_factor = \
                 {replicas} in [journal] and live with what that loses"
            ),
        });
    }
    problems.extend(judge_health(name, least, laid));
    problems
}

/// What keeps entries from being acknowledged at the moment.
pub(crate) fn judge_health(name: &str, least: usize, laid: &[Laid]) -> Option<Problem> {
    let topic = name.to_owned();
    if let Some(orphan) = laid.iter().find(|partition| !partition.led) {
        return Some(Problem {
            topic,
            what: format!("partition {} has no leader", orphan.number),
            fix: "Start the brokers that hold it".to_owned(),
        });
    }
    // where there are fewer replicas than that, Kafka asks for all there are
    let is_weak = |partition: &&Laid| partition.in_sync < least.min(partition.replicas);
    let weak = laid.iter().find(is_weak)?;
    let least = least.min(weak.replicas);
    Some(Problem {
        topic,
        what: format!(
            "partition {} has {} replicas in sync of the {least} that must acknowledge",
            weak.number, weak.in_sync
        ),
        fix: "Nothing is acknowledged before the missing brokers are back".to_owned(),
    })
}

/// What is wrong with the settings `found` of `topic`.
pub(crate) fn judge_settings(
    topic: Topic,
    settings: &KafkaSettings,
    found: &BTreeMap<String, String>,
) -> Vec<Problem> {
    let name = settings.topic(topic);
    let mut problems = Vec::new();
    for wanted in wanted(topic, settings) {
        let Some(value) = found.get(wanted.name) else { continue };
        if wanted.is_met_by(value) {
            continue;
        }
        let (setting, needed, brokers) = (wanted.name, &wanted.value, &settings.brokers);
        problems.push(Problem {
            topic: name.clone(),
            what: format!("{setting} is {value}, {needed} is needed"),
            fix: format!(
                "Run kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics \
                 --entity-name {name} --add-config {setting}={needed}"
            ),
        });
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_topic_is_made_with_is_what_it_is_checked_against() {
        let settings = KafkaSettings::new("k1:9092");
        for topic in [Topic::Events, Topic::Bodies, Topic::Control] {
            let made: BTreeMap<_, _> = wanted(topic, &settings)
                .into_iter()
                .map(|wanted| (wanted.name.to_owned(), wanted.value))
                .collect();
            assert_eq!(judge_settings(topic, &settings, &made), []);
        }
    }

    #[test]
    fn every_wrong_setting_is_named_with_the_command_that_mends_it() {
        let settings = KafkaSettings::new("k1:9092");
        let wrong = found(&[
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "CreateTime"),
            ("min.insync.replicas", "1"),
            ("retention.bytes", "1000"),
            ("retention.ms", "86400000"),
            ("max.message.bytes", "1000"),
            ("unclean.leader.election.enable", "true"),
        ]);
        let problems = judge_settings(Topic::Events, &settings, &wrong);
        assert_eq!(problems.len(), wrong.len());
        let text = problems[0].to_string();
        assert_eq!(
            text,
            "topic custody.events: min.insync.replicas is 1, 2 is needed. Run kafka-configs.sh \
             --bootstrap-server k1:9092 --alter --entity-type topics --entity-name custody.events \
             --add-config min.insync.replicas=2"
        );
        let forever = found(&[("retention.ms", "-1"), ("max.message.bytes", "1048588")]);
        assert_eq!(judge_settings(Topic::Bodies, &settings, &forever), []);
    }

    #[test]
    fn partitions_are_judged_by_number_leader_and_replicas() {
        let settings = KafkaSettings::new("k1:9092");
        let laid = |count: i32, led, replicas, in_sync| -> Vec<_> {
            (0..count).map(|number| Laid { number, led, replicas, in_sync }).collect()
        };
        let judge = |topic, laid: &[Laid]| -> Vec<_> {
            let problems = judge_partitions(topic, &settings, laid);
            problems.into_iter().map(|problem| problem.what).collect()
        };
        assert_eq!(judge(Topic::Events, &laid(3, true, 3, 2)), [""; 0]);
        let what = judge(Topic::Events, &[]);
        assert_eq!(what, ["it does not exist, or this user may not describe it"]);
        let what = judge(Topic::Events, &laid(1, true, 3, 3));
        assert_eq!(what, ["it has 1 partitions, 3 are configured"]);
        let what = judge(Topic::Control, &laid(3, true, 3, 3));
        assert!(what[0].contains("instead of one"), "{what:?}");
        let what = judge(Topic::Bodies, &laid(3, false, 3, 0));
        assert_eq!(what, ["partition 0 has no leader"]);
        let what = judge(Topic::Bodies, &laid(3, true, 1, 1));
        assert_eq!(what, ["partition 0 lies on 1 brokers, 3 are configured"]);
        let what = judge(Topic::Bodies, &laid(3, true, 3, 1));
        assert_eq!(what, ["partition 0 has 1 replicas in sync of the 2 that must acknowledge"]);
    }
}
