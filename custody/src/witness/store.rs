//! What a witness keeps: its key, and the newest checkpoint of each log with its own cosignature.
//!
//! A checkpoint is on the disk, with its folder, before anybody hears of its cosignature. Only one
//! process at a time works on a folder. What cannot be read back is an error at the start: a
//! witness that forgets would cosign a second history.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use custody_schemas::id::Hash;
use custody_schemas::record::hash;
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::cosignature::{Cosigner, CosignerKey};
use custody_schemas::seal::witness::Head;

const KEY: &str = "witness.key";
const LOGS: &str = "logs";
const FORKS: &str = "forks";
/// How many proofs of second histories are kept.
const MAX_FORKS: usize = 100;

/// The folder of a witness.
pub(super) struct Store {
    dir: PathBuf,
    cosigner: Cosigner,
    heads: BTreeMap<String, (Head, u64)>,
    _lock: File,
}

impl Store {
    /// Opens the folder, and makes it and the key where they are not there.
    pub(super) fn open(dir: &Path, name: Option<&str>) -> anyhow::Result<Self> {
        for folder in [dir.to_owned(), dir.join(LOGS), dir.join(FORKS)] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.with_context(|| folder.display().to_string())?;
        }
        let lock = lock(&dir.join("lock"))?;
        let cosigner = key(&dir.join(KEY), name)?;
        let mut store = Self { dir: dir.to_owned(), cosigner, heads: BTreeMap::new(), _lock: lock };
        store.read()?;
        Ok(store)
    }

    /// The witness's key.
    pub(super) const fn cosigner(&self) -> &Cosigner {
        &self.cosigner
    }

    /// What was cosigned last of a log, and when (seconds since 1970).
    pub(super) fn latest(&self, origin: &str) -> Option<(Head, u64)> {
        self.heads.get(origin).copied()
    }

    /// Cosigns a checkpoint that may be: returns the line once the note is on the disk. `at` is
    /// the time in seconds; it never goes back.
    pub(super) fn cosign(
        &mut self,
        checkpoint: &Checkpoint,
        text: &str,
        note: &str,
        at: u64,
    ) -> io::Result<String> {
        let at = at.max(self.latest(&checkpoint.origin).map_or(0, |(_, last)| last));
        let line = self.cosigner.cosign(text, at);
        let path = self.path(&checkpoint.origin);
        replace(&path, &format!("{}{line}", without_own(note, self.cosigner.name())))?;
        let head: (u64, Hash) = (checkpoint.size, checkpoint.root);
        self.heads.insert(checkpoint.origin.clone(), (head, at));
        Ok(line)
    }

    /// Keeps a submission that proves a second history of a log.
    pub(super) fn keep_fork(&self, body: &[u8]) -> io::Result<()> {
        let folder = self.dir.join(FORKS);
        if fs::read_dir(&folder)?.count() < MAX_FORKS {
            replace(&folder.join(hash(body).to_string()), &String::from_utf8_lossy(body))?;
        }
        Ok(())
    }

    fn path(&self, origin: &str) -> PathBuf {
        self.dir.join(LOGS).join(hash(origin.as_bytes()).to_string())
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let key = CosignerKey::parse(&self.cosigner.vkey())?;
        for entry in fs::read_dir(self.dir.join(LOGS))? {
            let path = entry?.path();
            if path.extension().is_some() {
                continue; // half written when the process ended: nobody has heard of it
            }
            let note = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let text = note.split("\n\n").next().unwrap_or_default();
            let read = Checkpoint::parse(&format!("{text}\n")).ok();
            let at = key.cosigned(&note).ok().flatten();
            let (Some(checkpoint), Some(at)) = (read, at) else {
                bail!(
                    "{} is not what this witness wrote: restore it from a copy. Without it the \
                     witness would cosign whatever the log shows next",
                    path.display()
                );
            };
            let head = (checkpoint.size, checkpoint.root);
            self.heads.insert(checkpoint.origin, (head, at));
        }
        Ok(())
    }
}

/// The note without a line in the witness's own name, which somebody may have put there.
fn without_own(note: &str, name: &str) -> String {
    let own = format!("— {name} ");
    note.split_inclusive('\n').filter(|line| !line.starts_with(&own)).collect()
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if file.try_lock().is_err() {
        bail!(
            "{} is in use by another process: stop that one, or use another --data",
            path.display()
        );
    }
    Ok(file)
}

fn key(path: &Path, name: Option<&str>) -> anyhow::Result<Cosigner> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return new_key(path, name),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        bail!("{} may be read by others: run `chmod 600` on it", path.display());
    }
    let key = Cosigner::parse(&text).with_context(|| path.display().to_string())?;
    if let Some(name) = name.filter(|name| *name != key.name()) {
        bail!("the key in {} is called {}, not {name}", path.display(), key.name());
    }
    Ok(key)
}

fn new_key(path: &Path, name: Option<&str>) -> anyhow::Result<Cosigner> {
    let name = name.context("name the witness with --name at its first start")?;
    let (key, text) = Cosigner::from_seed(name, &rand::random())?;
    replace(path, &format!("{text}\n"))?;
    Ok(key)
}

/// Writes a file that is there as it was or as it is to be, and stays.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use custody_schemas::seal::key::Signer;
    use custody_schemas::seal::{Tree, leaf_hash};

    use super::*;

    fn checkpoint(size: u64) -> (Checkpoint, String, String) {
        let mut tree = Tree::new();
        (0..size).for_each(|_| tree.push_node(leaf_hash(b"entry")));
        let checkpoint = Checkpoint::of("a.example".to_owned(), &tree);
        let note = checkpoint.sign(&Signer::from_seed("a.example", &[5; 32]).unwrap().0).unwrap();
        let text = note.split_once("\n\n").unwrap().0.to_owned() + "\n";
        (checkpoint, text, note)
    }

    #[test]
    fn what_was_cosigned_is_known_after_a_restart_and_time_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("witness");
        assert!(Store::open(&dir, None).is_err(), "a new witness needs a name");
        let mut store = Store::open(&dir, Some("w.example/1")).unwrap();
        let vkey = store.cosigner().vkey();
        for (size, at, expected) in [(3, 100, 100), (5, 90, 100), (6, 110, 110)] {
            let (checkpoint, text, note) = checkpoint(size);
            store.cosign(&checkpoint, &text, &note, at).unwrap();
            let head = (size, checkpoint.root);
            assert_eq!(store.latest("a.example"), Some((head, expected)));
        }
        assert!(Store::open(&dir, None).is_err(), "one process at a time");
        drop(store);
        let store = Store::open(&dir, None).unwrap();
        assert_eq!(store.cosigner().vkey(), vkey);
        assert_eq!(store.latest("a.example").unwrap().0.0, 6);
        assert_eq!(store.latest("b.example"), None);
        drop(store);
        assert!(Store::open(&dir, Some("other.example")).is_err(), "another name");
    }

    #[test]
    fn a_damaged_memory_is_an_error_and_a_half_written_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), Some("w.example/1")).unwrap();
        let (checkpoint, text, note) = checkpoint(3);
        store.cosign(&checkpoint, &text, &note, 100).unwrap();
        let path = store.path("a.example");
        drop(store);
        fs::write(path.with_extension("new"), "half").unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        assert!(Store::open(folder.path(), None).is_ok());
        for damaged in [whole.replacen("\n3\n", "\n2\n", 1), String::new(), note] {
            fs::write(&path, &damaged).unwrap();
            assert!(Store::open(folder.path(), None).is_err(), "{damaged:?}");
        }
    }
}
