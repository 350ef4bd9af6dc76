//! A real Kafka for tests: one that all tests of a run share, and others to be broken.

use std::collections::BTreeMap;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::settings::{KafkaSettings, Login, Sasl, Secret, Security, Tls, Topics};

/// Brokers on this machine, started by `compose/local`.
pub(crate) struct Cluster {
    dir: PathBuf,
    /// Present where they are this test's own and end with it.
    own: Option<TempDir>,
    said: BTreeMap<String, String>,
    brokers: i32,
}

impl Cluster {
    /// A cluster of `brokers` (1 or 3), with TLS and SCRAM where `secured`.
    pub(crate) fn start(brokers: i32, secured: bool) -> Self {
        let own = tempfile::tempdir().unwrap();
        let dir = own.path().to_owned();
        Self::launch(dir, Some(own), std::process::id(), brokers, secured)
    }

    fn launch(
        dir: PathBuf,
        own: Option<TempDir>,
        parent: u32,
        brokers: i32,
        secured: bool,
    ) -> Self {
        let (count, parent) = (brokers.to_string(), parent.to_string());
        let mut args = vec!["start", "--brokers", &count, "--parent", &parent, "--temporary"];
        args.extend(secured.then_some("--sasl"));
        let printed = local(&dir, &args);
        let pairs = printed.lines().filter_map(|line| line.split_once('='));
        let said = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { dir, own, said, brokers }
    }

    /// The one that nobody breaks. It serves every test of the run, whatever process it is in, and
    /// ends with the runner, our parent.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let run = format!("custody-run-{}", parent_id());
            let dir = std::env::temp_dir().join(run).join("kafka");
            Self::launch(dir, None, parent_id(), 1, false)
        })
    }

    /// What the script has printed under `name`.
    pub(crate) fn said(&self, name: &str) -> &str {
        &self.said[name]
    }

    /// Settings for a deployment of its own with `partitions` partitions, on as many brokers as
    /// there are.
    pub(crate) fn deployment(&self, partitions: i32) -> KafkaSettings {
        let mut settings = KafkaSettings::new(self.said("bootstrap"));
        settings.topics = Topics {
            prefix: Some(format!("t{}", uuid::Uuid::new_v4().simple())),
            partitions,
            replication: self.brokers,
            min_in_sync: if self.brokers > 1 { 2 } else { 1 },
            ..Topics::default()
        };
        if let Some(ca) = self.said.get("ca") {
            settings.security = Security::Tls(Tls { ca: Some(ca.into()), client: None });
            let password = Secret::new(self.said("password"));
            let username = self.said("username").to_owned();
            settings.sasl = Some(Sasl::ScramSha512(Login { username, password }));
        }
        settings
    }

    /// The same with topics that have been made.
    pub(crate) fn with_topics(&self, partitions: i32) -> KafkaSettings {
        let settings = self.deployment(partitions);
        let report = now(super::create(&settings)).unwrap();
        assert_eq!(report.problems, []);
        settings
    }

    /// Removes a topic.
    pub(crate) fn delete(&self, topic: &str) {
        let admin = self.admin();
        now(admin.delete_topics(&[topic], &AdminOptions::new())).unwrap().remove(0).unwrap();
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.deployment(1).client_config(&[], &[]).create().unwrap()
    }

    /// `kill`, `pause`, `resume` or `restart` broker `number`, or all of them.
    pub(crate) fn tell(&self, verb: &str, number: Option<i32>) {
        let number = number.map(|number| number.to_string());
        let mut args = vec![verb];
        args.extend(number.as_deref());
        local(&self.dir, &args);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.own.is_some() {
            self.tell("kill", None);
        }
    }
}

fn local(dir: &Path, args: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/local");
    let mut command = Command::new(script);
    command.arg("kafka").arg(args[0]).arg(dir).args(&args[1..]);
    let output = command.output().expect("compose/local cannot be run");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "compose/local kafka {args:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a future to its end.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap()).block_on(future)
}

/// Waits until `is_so`, for a minute at most.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < until, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
