//! A real Kafka and a real object store for tests, as `compose/local` starts them.
//!
//! The shared ones serve every test of a run, whatever process it is in: tests keep apart by
//! topics and prefixes of their own. They end with the run. What a test breaks on purpose it
//! starts for itself.

use std::collections::BTreeMap;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// The name=value lines that `compose/local ARGUMENTS` prints.
///
/// # Errors
/// When it fails; what it said is on standard error.
pub fn local<S: AsRef<std::ffi::OsStr>>(
    arguments: &[S],
) -> anyhow::Result<BTreeMap<String, String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/local");
    let mut command = Command::new(script);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    if std::env::var_os("CUSTODY_BIN").is_none() {
        command.env("CUSTODY_BIN", crate::product::executable()?);
    }
    let output = command.output()?;
    if !output.status.success() {
        let asked: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        bail!("compose/local {} failed, see above", asked.join(" "));
    }
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Ok(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// A name that no other test of the run has.
#[must_use]
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{n}", std::process::id())
}

/// Where the services of this run are: its runner is our parent.
fn shared_folder(part: &str) -> PathBuf {
    std::env::temp_dir().join(format!("custody-run-{}", parent_id())).join(part)
}

/// Apache Kafka, one broker or three.
pub struct Kafka {
    folder: PathBuf,
    /// Present when the brokers are this test's own and end with it.
    own: Option<TempDir>,
    /// Where clients begin.
    pub bootstrap: String,
    /// What else a client needs: `ca`, `username`, `password` where it has to log in.
    pub facts: BTreeMap<String, String>,
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if self.own.is_some() {
            drop(self.tell("kill", None));
        }
    }
}

impl Kafka {
    /// The run's broker: one, in the clear.
    ///
    /// # Errors
    /// When it does not start.
    pub fn shared() -> anyhow::Result<Self> {
        let folder = shared_folder("kafka");
        let parent = parent_id().to_string();
        let start = [Path::new("kafka"), Path::new("start"), &folder];
        let options = ["--parent", &parent, "--temporary"].map(Path::new);
        let facts = local(&[&start[..], &options[..]].concat())?;
        Self::of(folder, None, facts)
    }

    /// Brokers for one test, with these options of `kafka start`.
    ///
    /// # Errors
    /// When they do not start.
    pub fn own(options: &[&str]) -> anyhow::Result<Self> {
        let own = tempfile::tempdir()?;
        let folder = own.path().join("kafka");
        let parent = std::process::id().to_string();
        let mut start = vec!["kafka", "start", folder.to_str().context("a folder's name")?];
        start.extend(["--parent", &parent]);
        start.extend(options);
        let facts = local(&start)?;
        Self::of(folder, Some(own), facts)
    }

    fn of(
        folder: PathBuf,
        own: Option<TempDir>,
        facts: BTreeMap<String, String>,
    ) -> anyhow::Result<Self> {
        let bootstrap = facts.get("bootstrap").context("no bootstrap address")?.clone();
        Ok(Self { folder, own, bootstrap, facts })
    }

    /// Does `stop`, `kill`, `pause`, `resume` or `restart` to a broker, or to all of them.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn tell(&self, verb: &str, broker: Option<u32>) -> anyhow::Result<()> {
        let number = broker.map(|n| n.to_string());
        let mut arguments = vec!["kafka", verb, self.folder.to_str().context("a folder's name")?];
        arguments.extend(number.as_deref());
        local(&arguments).map(drop)
    }

    /// Starts what does not run, with the data and at the ports that it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self) -> anyhow::Result<()> {
        self.tell("start", None)
    }

    /// The id of the process of the first broker.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&self) -> anyhow::Result<u32> {
        process_of(&self.folder.join("broker-1"))
    }
}

/// The id that `compose/local` keeps for a process.
fn process_of(folder: &Path) -> anyhow::Result<u32> {
    let file = folder.join("pid");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().parse()?)
}

/// An object store that speaks S3.
#[derive(Clone, Debug)]
pub struct Store {
    /// Where it is.
    pub endpoint: String,
    /// Who may use it.
    pub access_key: String,
    /// The key's secret.
    pub secret_key: String,
    /// A bucket in it.
    pub bucket: String,
}

impl Store {
    /// The run's object store.
    ///
    /// # Errors
    /// When it does not start.
    pub fn shared() -> anyhow::Result<Self> {
        Self::start(&shared_folder("minio"), parent_id(), &["--temporary"])
    }

    fn start(folder: &Path, parent: u32, options: &[&str]) -> anyhow::Result<Self> {
        let folder = folder.to_str().context("a folder's name")?;
        let parent = parent.to_string();
        let start = ["minio", "start", folder, "--parent", &parent];
        let mut facts = local(&[&start[..], options].concat())?;
        let mut take = |name: &str| facts.remove(name).with_context(|| format!("no {name}"));
        Ok(Self {
            endpoint: take("endpoint")?,
            access_key: take("access_key")?,
            secret_key: take("secret_key")?,
            bucket: take("bucket")?,
        })
    }
}

/// An object store for one test, which may do what it likes to it. It ends with the value.
pub struct OwnStore {
    folder: TempDir,
    /// What clients need.
    pub store: Store,
}

impl Drop for OwnStore {
    fn drop(&mut self) {
        drop(self.tell("kill"));
    }
}

impl OwnStore {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = Store::start(folder.path(), std::process::id(), &[])?;
        Ok(Self { folder, store })
    }

    /// Does `start`, `stop`, `kill`, `pause` or `resume` to it.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn tell(&self, verb: &str) -> anyhow::Result<()> {
        local(&["minio", verb, self.folder.path().to_str().context("a folder's name")?]).map(drop)
    }

    /// The id of its process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&self) -> anyhow::Result<u32> {
        process_of(&self.folder.path().join("minio"))
    }
}
