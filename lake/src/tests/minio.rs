//! A real object store for tests: MinIO on a free port, one for each test process, gone with it.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::OnceLock;

use crate::Storage;

/// A running store.
pub(super) struct Minio {
    folder: tempfile::TempDir,
    told: BTreeMap<String, String>,
}

/// The one that tests share.
pub(super) fn shared() -> &'static Minio {
    static SHARED: OnceLock<Minio> = OnceLock::new();
    SHARED.get_or_init(Minio::start)
}

impl Minio {
    /// One of its own, for a test that stops it.
    pub(super) fn start() -> Self {
        let mut minio = Self { folder: tempfile::tempdir().unwrap(), told: BTreeMap::default() };
        minio.told =
            minio.run("start", &["--parent", &std::process::id().to_string(), "--temporary"]);
        minio
    }

    /// `stop`, `pause`, `resume`, or `start` again at the same place.
    pub(super) fn run(&self, verb: &str, more: &[&str]) -> BTreeMap<String, String> {
        let script = super::home().join("../compose/local");
        let mut command = Command::new(script);
        command.args(["minio", verb]).arg(self.folder.path()).args(more);
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "compose/local minio {verb}: {words}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let pairs = lines.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// `127.0.0.1:PORT`.
    pub(super) fn address(&self) -> &str {
        self.told["endpoint"].strip_prefix("http://").unwrap()
    }

    /// A place of its own in the bucket.
    pub(super) fn new_url(&self) -> String {
        format!("s3://{}/{}/lake", self.told["bucket"], uuid::Uuid::new_v4().simple())
    }

    /// What `[lake.storage]` would say.
    pub(super) fn options(&self) -> BTreeMap<String, String> {
        let told = |name: &str| self.told[name].clone();
        BTreeMap::from([
            ("endpoint".to_owned(), told("endpoint")),
            ("access_key_id".to_owned(), told("access_key")),
            ("secret_access_key".to_owned(), told("secret_key")),
            ("region".to_owned(), told("region")),
            ("allow_http".to_owned(), "true".to_owned()),
        ])
    }

    pub(super) fn storage(&self) -> Storage {
        Storage::from_iter(self.options())
    }

    /// The same with one option given or changed.
    pub(super) fn storage_with(&self, key: &str, value: &str) -> Storage {
        let mut options = self.options();
        options.insert(key.to_owned(), value.to_owned());
        Storage::from_iter(options)
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        self.run("stop", &[]);
    }
}
