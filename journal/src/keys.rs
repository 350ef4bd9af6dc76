//! The keys of a deployment: a root that signs the keyring, and one for each writer.
//!
//! They lie as signed-note private keys, one line of text, in files that only their owner may
//! read. What is not there is made on the first start and never overwritten. Keep the root key
//! offline in earnest: nothing but a change of the keyring needs it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use custody_schemas::id::{Uint, is_writer_name};
use custody_schemas::json::Json;
use custody_schemas::seal::key::{KeyError, Signer};
use custody_schemas::seal::keyring::{Keyring, WriterKey};

use crate::control::{Control, ControlError};
use crate::file::now;

/// The control key under which the signed keyring lies.
pub const KEYRING: &str = "keyring";

const ROOT: &str = "root";

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The operating system's answer.
    #[error("cannot use the key file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Others than the owner may read a private key.
    #[error(
        "{} may be read by others: run `chmod 600` on it, and replace the key if somebody may \
         have read it",
        .0.display()
    )]
    Exposed(PathBuf),
    /// The file's text or name is no key.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
    /// The keyring in force is not signed by this root.
    #[error("the keyring in the control journal does not fit the root key: {0}")]
    Keyring(KeyError),
    /// The control journal failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The folder `{data}/keys` of one deployment.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
    deployment: String,
}

impl Keys {
    /// The keys in `dir` of the deployment called `deployment`. Touches nothing yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, deployment: &str) -> Self {
        Self { dir: dir.into(), deployment: deployment.to_owned() }
    }

    /// The root key, `{deployment}/root`, made if it is not there.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn root(&self) -> Result<Signer, KeysError> {
        self.key(ROOT)
    }

    /// The key of `writer`, `{deployment}/{writer}`, made if it is not there.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn writer(&self, writer: &str) -> Result<Signer, KeysError> {
        if writer == ROOT || !is_writer_name(writer) {
            let source = KeyError::Name(writer.to_owned());
            return Err(KeysError::Key { path: self.path(writer), source });
        }
        self.key(writer)
    }

    /// Makes sure that the keyring in `control` lists `writer` with its key, and returns the
    /// keyring. An entry with another key of that writer is closed.
    ///
    /// # Errors
    /// [`KeysError`]; when the keyring that is there is not signed by this root it stays.
    pub fn enrol(&self, control: &mut Control, writer: &Signer) -> Result<Keyring, KeysError> {
        let root = self.root()?;
        let mut ring = match control.get(KEYRING) {
            Some(Json::Text(note)) => {
                Keyring::verify(note, root.vkey()).map_err(KeysError::Keyring)?
            }
            _ => Keyring { deployment: self.deployment.clone(), ..Keyring::default() },
        };
        let prefix = format!("{}/", self.deployment);
        let name = writer.name().strip_prefix(&prefix).unwrap_or(writer.name());
        if !enter(&mut ring, name, writer.vkey(), Uint::new(now())) {
            return Ok(ring);
        }
        let note = ring.sign(&root).map_err(KeysError::Keyring)?;
        control.put(KEYRING, Some(Json::from(note)))?;
        Ok(ring)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    fn key(&self, name: &str) -> Result<Signer, KeysError> {
        let path = self.path(name);
        let io = |source| KeysError::Io { path: path.clone(), source };
        match fs::read_to_string(&path) {
            Ok(text) => {
                if fs::metadata(&path).map_err(io)?.permissions().mode() & 0o077 != 0 {
                    return Err(KeysError::Exposed(path));
                }
                Signer::parse(&text).map_err(|source| KeysError::Key { path: path.clone(), source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key_name = format!("{}/{name}", self.deployment);
                let (signer, text) = Signer::from_seed(&key_name, &rand::random())
                    .map_err(|source| KeysError::Key { path: path.clone(), source })?;
                store(&self.dir, &path, &text).map_err(io)?;
                tracing::info!(path = %path.display(), vkey = signer.vkey(), "made a key");
                Ok(signer)
            }
            Err(error) => Err(io(error)),
        }
    }
}

/// Lists the writer's key; whether anything changed.
fn enter(ring: &mut Keyring, name: &str, vkey: &str, now: Uint) -> bool {
    let is_ours = |key: &WriterKey| key.name == name && key.until.is_none() && !key.retired;
    if ring.writers.iter().any(|key| is_ours(key) && key.vkey == vkey) {
        return false;
    }
    for key in ring.writers.iter_mut().filter(|key| is_ours(key)) {
        key.until = Some(now);
    }
    ring.writers.push(WriterKey {
        name: name.to_owned(),
        vkey: vkey.to_owned(),
        from: now,
        until: None,
        retired: false,
    });
    ring.edition += 1;
    true
}

/// Writes a key file that never exists half written.
fn store(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    // a hard link does not replace a key that another process has made meanwhile
    fs::hard_link(&new, path)?;
    fs::remove_file(&new)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_read_back_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::new(dir.path().join("keys"), "audit.example");
        let first = keys.writer("edge-1").unwrap();
        assert_eq!(first.name(), "audit.example/edge-1");
        assert_eq!(keys.writer("edge-1").unwrap().vkey(), first.vkey());
        assert_ne!(keys.root().unwrap().vkey(), first.vkey());
        let path = dir.path().join("keys/edge-1.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(keys.writer("edge-1"), Err(KeysError::Exposed(_))));
        assert!(matches!(keys.writer("root"), Err(KeysError::Key { .. })));
        assert!(matches!(keys.writer("../x"), Err(KeysError::Key { .. })));
    }

    #[test]
    fn a_writer_is_enrolled_once_and_a_new_key_closes_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::new(dir.path().join("keys"), "audit.example");
        let mut control = Control::open(&dir.path().join("control")).unwrap();
        let writer = keys.writer("edge-1").unwrap();
        let ring = keys.enrol(&mut control, &writer).unwrap();
        assert_eq!((ring.edition, ring.writers.len()), (1, 1));
        assert_eq!(ring.writers[0].name, "edge-1");
        assert_eq!(keys.enrol(&mut control, &writer).unwrap(), ring);
        fs::remove_file(dir.path().join("keys/edge-1.key")).unwrap();
        drop(control);
        let mut control = Control::open(&dir.path().join("control")).unwrap();
        let ring = keys.enrol(&mut control, &keys.writer("edge-1").unwrap()).unwrap();
        assert_eq!((ring.edition, ring.writers.len()), (2, 2));
        assert!(ring.writers[0].until.is_some() && ring.writers[1].until.is_none());
        fs::remove_file(dir.path().join("keys/root.key")).unwrap();
        let refused = keys.enrol(&mut control, &writer);
        assert!(matches!(refused, Err(KeysError::Keyring(_))));
    }
}
