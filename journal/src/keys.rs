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
use custody_schemas::seal::keyring::{Keyring, LOG, WriterKey};

use crate::control::{Change, Control, ControlError};
use crate::file::now;

/// The control key under which the signed keyring lies.
pub const KEYRING: &str = "keyring";

/// The control key under which the root's public key lies.
pub const ROOT_VKEY: &str = "root";

const ROOT: &str = "root";
/// The file that keeps the root's public key where the root key is not.
const PIN: &str = "root.vkey";

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
    #[error(
        "the keyring in the control journal does not fit the root key: {0}. The root key that \
         signed it belongs in the folder of keys as root.key, or its public key as root.vkey"
    )]
    Keyring(KeyError),
    /// The writer is not on the keyring.
    #[error(
        "the writer {writer:?} is not on the keyring of {deployment}: where the root key is, run \
         `custody keys enrol {writer} --vkey {vkey}`, then start again"
    )]
    NotEnrolled {
        /// Its name.
        writer: String,
        /// Its public key.
        vkey: String,
        /// The deployment.
        deployment: String,
    },
    /// The control journal failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A keyring with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRing {
    /// What it says.
    pub ring: Keyring,
    /// The note that says and signs it.
    pub note: String,
    /// The root's public key.
    pub root_vkey: String,
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

    /// The key that signs the head of the deployment's log, named like the deployment, if it lies
    /// here.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn log(&self) -> Result<Option<Signer>, KeysError> {
        if self.path(LOG).exists() { self.key(LOG).map(Some) } else { Ok(None) }
    }

    /// The same key, made if it is not there, after it was put on the keyring. Needs the root key.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol).
    pub fn enrol_log(&self, control: &Control) -> Result<Signer, KeysError> {
        let signer = self.key(LOG)?;
        self.enter_vkey(control, LOG, signer.vkey())?;
        Ok(signer)
    }

    /// Whether the root key lies here.
    #[must_use]
    pub fn has_root(&self) -> bool {
        self.path(ROOT).exists()
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
        self.check_name(writer)?;
        self.key(writer)
    }

    /// Makes sure that the keyring in `control` lists `writer` with its key, and returns the
    /// keyring. An entry with another key of that writer is closed. Needs the root key, and makes
    /// one if there is none here; when others enrol themselves at once all stay on the keyring.
    ///
    /// # Errors
    /// [`KeysError`]; when the keyring that is there is not signed by this root it stays.
    pub fn enrol(&self, control: &Control, writer: &Signer) -> Result<Keyring, KeysError> {
        self.enrol_vkey(control, self.short(writer), writer.vkey())
    }

    /// The same for a writer whose key lies elsewhere: `vkey` is its public key.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol).
    pub fn enrol_vkey(
        &self,
        control: &Control,
        name: &str,
        vkey: &str,
    ) -> Result<Keyring, KeysError> {
        self.check_name(name)?;
        self.enter_vkey(control, name, vkey)
    }

    fn check_name(&self, name: &str) -> Result<(), KeysError> {
        if [ROOT, LOG].contains(&name) || !is_writer_name(name) {
            let source = KeyError::Name(name.to_owned());
            return Err(KeysError::Key { path: self.path(name), source });
        }
        Ok(())
    }

    fn enter_vkey(&self, control: &Control, name: &str, vkey: &str) -> Result<Keyring, KeysError> {
        let root = self.root()?;
        let mut done = Ok(Keyring::default());
        control.update(KEYRING, |note| {
            let (ring, change) = match self.entered(note, &root, name, vkey) {
                Ok(entered) => entered,
                Err(error) => {
                    done = Err(error);
                    return Change::Keep;
                }
            };
            done = Ok(ring);
            change
        })?;
        let ring = done?;
        self.publish(control, root.vkey())?;
        Ok(ring)
    }

    /// The keyring with the writer on it, and what that changes.
    fn entered(
        &self,
        note: Option<&Json>,
        root: &Signer,
        name: &str,
        vkey: &str,
    ) -> Result<(Keyring, Change), KeysError> {
        let mut ring = match note {
            Some(Json::Text(note)) => {
                Keyring::verify(note, root.vkey()).map_err(KeysError::Keyring)?
            }
            _ => Keyring { deployment: self.deployment.clone(), ..Keyring::default() },
        };
        if !enter(&mut ring, name, vkey, Uint::new(now())) {
            return Ok((ring, Change::Keep));
        }
        let note = ring.sign(root).map_err(KeysError::Keyring)?;
        Ok((ring, Change::Set(Json::from(note))))
    }

    /// Lets processes without the root key know whose signatures to expect.
    fn publish(&self, control: &Control, root_vkey: &str) -> Result<(), KeysError> {
        if control.get(ROOT_VKEY) != Some(Json::from(root_vkey)) {
            control.put(ROOT_VKEY, Some(Json::from(root_vkey)))?;
        }
        self.pin(root_vkey)
    }

    /// The keyring for a process of a deployment of several: `writer` must be on it. Where the root
    /// key lies here the writer is enrolled; elsewhere somebody must have done so before.
    ///
    /// # Errors
    /// [`KeysError::NotEnrolled`] names the command that enrols it.
    pub fn admit(&self, control: &Control, writer: &Signer) -> Result<Keyring, KeysError> {
        let (name, vkey) = (self.short(writer), writer.vkey());
        let listed = |key: &WriterKey| is_in_force(key, name) && key.vkey == vkey;
        match self.ring(control)? {
            // nothing is to be written, so that this works while Kafka is away, too
            Some(ring) if ring.writers.iter().any(listed) => Ok(ring),
            _ if self.path(ROOT).exists() => self.enrol(control, writer),
            _ => {
                let (writer, vkey) = (name.to_owned(), vkey.to_owned());
                Err(KeysError::NotEnrolled { writer, vkey, deployment: self.deployment.clone() })
            }
        }
    }

    /// The keyring in force, if there is one, after its signature was checked. The root's public
    /// key is that of the key that lies here, or the one that was seen first and is kept in
    /// `root.vkey` since: put that file there to trust no first sight.
    ///
    /// # Errors
    /// [`KeysError::Keyring`] when the signature is not the root's.
    pub fn ring(&self, control: &Control) -> Result<Option<Keyring>, KeysError> {
        Ok(self.signed_ring(control)?.map(|signed| signed.ring))
    }

    /// The same with the note that says and signs it.
    ///
    /// # Errors
    /// As [`ring`](Self::ring).
    pub fn signed_ring(&self, control: &Control) -> Result<Option<SignedRing>, KeysError> {
        let state = control.state();
        let Some(Json::Text(note)) = state.get(KEYRING) else { return Ok(None) };
        let vkey = match (self.pinned()?, state.get(ROOT_VKEY)) {
            (Some(pinned), _) => pinned,
            (None, Some(Json::Text(seen))) => seen.clone(),
            (None, _) => return Ok(None),
        };
        let ring = Keyring::verify(note, &vkey).map_err(KeysError::Keyring)?;
        self.pin(&vkey)?;
        Ok(Some(SignedRing { ring, note: note.clone(), root_vkey: vkey }))
    }

    /// The root's public key as it is known here.
    fn pinned(&self) -> Result<Option<String>, KeysError> {
        if self.path(ROOT).exists() {
            return Ok(Some(self.root()?.vkey().to_owned()));
        }
        let path = self.dir.join(PIN);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeysError::Io { path, source }),
        }
    }

    /// Keeps the root's public key, unless one is kept already.
    fn pin(&self, vkey: &str) -> Result<(), KeysError> {
        let path = self.dir.join(PIN);
        if path.exists() {
            return Ok(());
        }
        match store(&self.dir, &path, vkey) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(KeysError::Io { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// A writer's name without the deployment's.
    fn short<'a>(&self, writer: &'a Signer) -> &'a str {
        let name = writer.name();
        let short = name.strip_prefix(&self.deployment).and_then(|rest| rest.strip_prefix('/'));
        short.unwrap_or(name)
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
                let key_name = match name {
                    LOG => self.deployment.clone(),
                    _ => format!("{}/{name}", self.deployment),
                };
                let (signer, text) = Signer::from_seed(&key_name, &rand::random())
                    .map_err(|source| KeysError::Key { path: path.clone(), source })?;
                match store(&self.dir, &path, &text) {
                    // another process was faster: its key is the one
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.key(name),
                    Err(error) => Err(io(error)),
                    Ok(()) => {
                        tracing::info!(path = %path.display(), vkey = signer.vkey(), "made a key");
                        Ok(signer)
                    }
                }
            }
            Err(error) => Err(io(error)),
        }
    }
}

fn is_in_force(key: &WriterKey, name: &str) -> bool {
    key.name == name && key.until.is_none() && !key.retired
}

/// Lists the writer's key; whether anything changed.
fn enter(ring: &mut Keyring, name: &str, vkey: &str, now: Uint) -> bool {
    let keys = if name == LOG { &mut ring.log } else { &mut ring.writers };
    if keys.iter().any(|key| is_in_force(key, name) && key.vkey == vkey) {
        return false;
    }
    for key in keys.iter_mut().filter(|key| is_in_force(key, name)) {
        key.until = Some(now);
    }
    keys.push(WriterKey {
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
    let new = path.with_extension(format!("{:08x}.new", rand::random::<u32>()));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    // a hard link does not replace a key that another process has made meanwhile
    let linked = fs::hard_link(&new, path);
    fs::remove_file(&new)?;
    linked?;
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
    fn the_key_of_the_log_carries_the_deployments_name_and_is_no_writers() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::new(dir.path().join("keys"), "audit.example");
        let control = Control::open(&dir.path().join("control")).unwrap();
        assert!(keys.log().unwrap().is_none() && !keys.has_root());
        let signer = keys.enrol_log(&control).unwrap();
        assert_eq!(signer.name(), "audit.example");
        assert_eq!(keys.log().unwrap().unwrap().vkey(), signer.vkey());
        let signed = keys.signed_ring(&control).unwrap().unwrap();
        assert_eq!((signed.ring.of_log(), signed.ring.writers.len()), (vec![signer.vkey()], 0));
        assert!(Keyring::verify(&signed.note, &signed.root_vkey).is_ok());
        assert!(matches!(keys.writer("log"), Err(KeysError::Key { .. })));
    }

    #[test]
    fn a_writer_is_enrolled_once_and_a_new_key_closes_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::new(dir.path().join("keys"), "audit.example");
        let control = Control::open(&dir.path().join("control")).unwrap();
        let writer = keys.writer("edge-1").unwrap();
        let ring = keys.enrol(&control, &writer).unwrap();
        assert_eq!((ring.edition, ring.writers.len()), (1, 1));
        assert_eq!(ring.writers[0].name, "edge-1");
        assert_eq!(keys.enrol(&control, &writer).unwrap(), ring);
        fs::remove_file(dir.path().join("keys/edge-1.key")).unwrap();
        drop(control);
        let control = Control::open(&dir.path().join("control")).unwrap();
        let ring = keys.enrol(&control, &keys.writer("edge-1").unwrap()).unwrap();
        assert_eq!((ring.edition, ring.writers.len()), (2, 2));
        assert!(ring.writers[0].until.is_some() && ring.writers[1].until.is_none());
        fs::remove_file(dir.path().join("keys/root.key")).unwrap();
        let refused = keys.enrol(&control, &writer);
        assert!(matches!(refused, Err(KeysError::Keyring(_))));
    }
}
