//! The keys of a deployment: a root that signs the keyring, one for each writer, one for the log.
//!
//! They lie as signed-note private keys, one line of text, in files that only their owner may
//! read. What is not there is made on the first start and never overwritten. A key may be in the
//! environment instead, or with somebody who signs for us ([`Source`]): whoever uses one does not
//! know which. Keep the root key offline in earnest: nothing but a change of the keyring needs it.
//!
//! A writer takes a new key into use at the beginning of a run only. So there is a time in which
//! both are in force ([`Keys::rotate`]); then the old one is closed ([`Keys::add`]).

mod place;
mod ring;
mod source;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use custody_schemas::id::{Uint, is_writer_name};
use custody_schemas::json::Json;
use custody_schemas::seal::key::{KeyError, Signer};
use custody_schemas::seal::keyring::{Keyring, LOG};

pub use source::Source;

use place::{read, store};

use crate::control::{Change, Control, ControlError};
use crate::file::now;

/// The control key under which the signed keyring lies.
pub const KEYRING: &str = "keyring";

/// The control key under which the root's public key lies.
pub const ROOT_VKEY: &str = "root";

const ROOT: &str = "root";
/// The file that keeps the root's public key where the root key is not.
const PIN: &str = "root.vkey";
/// What stands behind a writer's name in the name of the key that it is to have next.
const NEXT: &str = ".next";

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
    /// The key is not where it is said to be, or is another one.
    #[error("{place}: {source}")]
    Source {
        /// Where it should be.
        place: String,
        /// What is wrong.
        source: KeyError,
    },
    /// A key that is not held here cannot be made here.
    #[error(
        "{name} has a place of its own in [deployment.signers]: make its new key there, and \
             name its public key with --vkey"
    )]
    NotHere {
        /// The key.
        name: String,
    },
    /// The writer was retired.
    #[error(
        "the writer {0:?} was retired: if it is to record again, run `custody keys add {0}` where \
         the root key is"
    )]
    Retired(String),
    /// Nobody of that name is on the keyring.
    #[error("{0:?} is not on the keyring: `custody keys list` shows who is")]
    Unknown(String),
    /// The keyring in force is not signed by this root.
    #[error(
        "the keyring in the control journal does not fit the root key: {0}. The root key that \
         signed it belongs in the folder of keys as root.key, or its public key as root.vkey"
    )]
    Keyring(KeyError),
    /// The writer is not on the keyring.
    #[error(
        "the writer {writer:?} is not on the keyring of {deployment}: where the root key is, run \
         `custody keys add {writer} --vkey {vkey}`, then start again"
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
    /// Where keys are that do not lie in the folder, by their names.
    sources: Vec<(String, Source)>,
}

impl Keys {
    /// The keys in `dir` of the deployment called `deployment`. Touches nothing yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, deployment: &str) -> Self {
        Self { dir: dir.into(), deployment: deployment.to_owned(), sources: Vec::new() }
    }

    /// The same, with some keys elsewhere.
    #[must_use]
    pub fn with_sources(self, sources: Vec<(String, Source)>) -> Self {
        Self { sources, ..self }
    }

    fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|(known, _)| known == name).map(|(_, source)| source)
    }

    /// Whether there is such a key, without making one.
    fn has(&self, name: &str) -> bool {
        self.source(name).is_some() || self.path(name).exists()
    }

    /// The key that signs the head of the deployment's log, named like the deployment, if it lies
    /// here.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn log(&self) -> Result<Option<Signer>, KeysError> {
        if self.has(LOG) { self.key(LOG).map(Some) } else { Ok(None) }
    }

    /// The same key, made if it is not there, after it was put on the keyring. Needs the root key.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol).
    pub fn enrol_log(&self, control: &Control) -> Result<Signer, KeysError> {
        let signer = self.key(LOG)?;
        self.change(control, |ring, now| Ok(ring::enter(ring, LOG, signer.vkey(), now)))?;
        Ok(signer)
    }

    /// Whether the root key can be used here.
    #[must_use]
    pub fn has_root(&self) -> bool {
        self.has(ROOT)
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
    /// [`KeysError`]; when the keyring that is there is not signed by this root it stays. A writer
    /// that was retired does not come back by itself.
    pub fn enrol(&self, control: &Control, writer: &Signer) -> Result<Keyring, KeysError> {
        let (name, vkey) = (self.short(writer), writer.vkey());
        self.check_name(name)?;
        self.change(control, |ring, now| {
            if ring::is_retired(ring, name) {
                return Err(KeysError::Retired(name.to_owned()));
            }
            Ok(ring::enter(ring, name, vkey, now))
        })
    }

    /// Puts a writer on the keyring with this public key and closes every other key of it.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol), but for writers that were retired.
    pub fn add(&self, control: &Control, name: &str, vkey: &str) -> Result<Keyring, KeysError> {
        self.check_vkey(name, vkey)?;
        self.change(control, |ring, now| Ok(ring::add(ring, name, vkey, now)))
    }

    /// Puts one more key of a writer on the keyring, beside the one in force. Without `vkey` the
    /// key is made here, for the writer to find at the beginning of its next run.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol); [`KeysError::NotHere`] when the key is not to be made here.
    pub fn rotate(
        &self,
        control: &Control,
        name: &str,
        vkey: Option<&str>,
    ) -> Result<Keyring, KeysError> {
        self.check_name(name)?;
        let made = match vkey {
            Some(vkey) => vkey.to_owned(),
            None if self.source(name).is_some() => {
                return Err(KeysError::NotHere { name: name.to_owned() });
            }
            None => self.made(&format!("{name}{NEXT}"), &self.key_name(name))?.vkey().to_owned(),
        };
        self.check_vkey(name, &made)?;
        self.change(control, |ring, now| {
            if !ring::has(ring, name) {
                return Err(KeysError::Unknown(name.to_owned()));
            }
            Ok(ring::beside(ring, name, &made, now))
        })
    }

    /// Closes every key of a writer that will write no more.
    ///
    /// # Errors
    /// [`KeysError::Unknown`] when it is not on the keyring; as [`enrol`](Self::enrol).
    pub fn retire(&self, control: &Control, name: &str) -> Result<Keyring, KeysError> {
        self.check_name(name)?;
        self.change(control, |ring, now| {
            if !ring::has(ring, name) {
                return Err(KeysError::Unknown(name.to_owned()));
            }
            Ok(ring::retire(ring, name, now))
        })
    }

    /// The key that `writer` is to use from its next run on, when one lies here and is on the
    /// keyring: it takes the place of the one before.
    ///
    /// # Errors
    /// [`KeysError`]; the key in use stays.
    pub fn next(&self, control: &Control, writer: &str) -> Result<Option<Signer>, KeysError> {
        let next = self.path(&format!("{writer}{NEXT}"));
        if self.source(writer).is_some() || !next.exists() {
            return Ok(None);
        }
        let signer = read(&next)?;
        let listed = self.ring(control)?;
        if !listed.is_some_and(|ring| ring::is_in_force(&ring, writer, signer.vkey())) {
            return Ok(None);
        }
        let io = |source| KeysError::Io { path: next.clone(), source };
        fs::rename(&next, self.path(writer)).map_err(io)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        Ok(Some(signer))
    }

    fn check_name(&self, name: &str) -> Result<(), KeysError> {
        if [ROOT, LOG].contains(&name) || !is_writer_name(name) {
            let source = KeyError::Name(name.to_owned());
            return Err(KeysError::Key { path: self.path(name), source });
        }
        Ok(())
    }

    /// A writer's public key carries its name.
    fn check_vkey(&self, name: &str, vkey: &str) -> Result<(), KeysError> {
        self.check_name(name)?;
        let wrong = |source| KeysError::Source { place: vkey.to_owned(), source };
        custody_schemas::seal::key::check(vkey).map_err(wrong)?;
        let expected = self.key_name(name);
        if vkey.split('+').next() == Some(&expected) {
            return Ok(());
        }
        Err(wrong(KeyError::Malformed(format!("the key of {name} must be called {expected}"))))
    }

    /// Changes the keyring in force, under the root's signature; `change` says whether it has.
    fn change(
        &self,
        control: &Control,
        change: impl Fn(&mut Keyring, Uint) -> Result<bool, KeysError>,
    ) -> Result<Keyring, KeysError> {
        let root = self.root()?;
        let mut done = Ok(Keyring::default());
        control.update(KEYRING, |note| {
            let (ring, change) = match self.changed(note, &root, &change) {
                Ok(changed) => changed,
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

    /// The keyring after a change, and what that is to control state.
    fn changed(
        &self,
        note: Option<&Json>,
        root: &Signer,
        change: impl Fn(&mut Keyring, Uint) -> Result<bool, KeysError>,
    ) -> Result<(Keyring, Change), KeysError> {
        let mut ring = match note {
            Some(Json::Text(note)) => {
                Keyring::verify(note, root.vkey()).map_err(KeysError::Keyring)?
            }
            _ => Keyring { deployment: self.deployment.clone(), ..Keyring::default() },
        };
        if !change(&mut ring, Uint::new(now()))? {
            return Ok((ring, Change::Keep));
        }
        ring.edition += 1;
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
        match self.ring(control)? {
            // nothing is to be written, so that this works while Kafka is away, too
            Some(ring) if ring::is_in_force(&ring, name, vkey) => Ok(ring),
            Some(ring) if ring::is_retired(&ring, name) => Err(KeysError::Retired(name.to_owned())),
            _ if self.has_root() => self.enrol(control, writer),
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
        if self.has_root() {
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

    /// The name that a key carries.
    fn key_name(&self, name: &str) -> String {
        match name {
            LOG => self.deployment.clone(),
            _ => format!("{}/{name}", self.deployment),
        }
    }

    fn key(&self, name: &str) -> Result<Signer, KeysError> {
        match self.source(name) {
            Some(source) => source.signer(&self.key_name(name)),
            None => self.made(name, &self.key_name(name)),
        }
    }

    /// The key in the folder's file of this name, made if it is not there.
    fn made(&self, name: &str, key_name: &str) -> Result<Signer, KeysError> {
        let path = self.path(name);
        if path.exists() {
            return read(&path);
        }
        let (signer, text) = Signer::from_seed(key_name, &rand::random())
            .map_err(|source| KeysError::Key { path: path.clone(), source })?;
        match store(&self.dir, &path, &text) {
            // another process was faster: its key is the one
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(&path),
            Err(source) => Err(KeysError::Io { path, source }),
            Ok(()) => {
                tracing::info!(path = %path.display(), vkey = signer.vkey(), "made a key");
                Ok(signer)
            }
        }
    }
}
