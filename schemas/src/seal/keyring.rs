//! The keyring: which writers belong to a deployment, with their keys, signed by its root key.
//!
//! An auditor pins the root's public key; completeness is judged over the writers listed here,
//! not over what happened to arrive.

use super::key::{KeyError, Signer, open};
use crate::id::{Micros, is_writer_name};

/// The name under which the keyring lists keys of the deployment log; no writer may have it.
pub const LOG: &str = "log";

/// One writer's key and when it was in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterKey {
    /// The writer's name.
    pub name: String,
    /// Its public key, `name+id+key`.
    pub vkey: String,
    /// In force from.
    pub from: Micros,
    /// In force until, exclusive; open when absent.
    pub until: Option<Micros>,
    /// Whether the writer will write no more.
    pub retired: bool,
}

/// The list of writers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    /// The deployment's name.
    pub deployment: String,
    /// Counts the editions, so that an old one cannot pass for a new one.
    pub edition: u64,
    /// The writers.
    pub writers: Vec<WriterKey>,
    /// The keys that sign the head of the deployment log.
    pub log: Vec<WriterKey>,
}

impl Keyring {
    /// The signed note.
    ///
    /// # Errors
    /// When a name cannot stand in a note.
    pub fn sign(&self, root: &Signer) -> Result<String, KeyError> {
        let mut text = format!("{}/keyring\n{}\n", self.deployment, self.edition);
        for w in self.log.iter().chain(&self.writers) {
            let until = w.until.map_or_else(|| "-".to_owned(), |until| until.to_string());
            let state = if w.retired { "retired" } else { "active" };
            text.push_str(&format!("{} {} {} {until} {state}\n", w.name, w.vkey, w.from));
        }
        root.sign(&text)
    }

    /// Reads a note that the root key has signed.
    ///
    /// # Errors
    /// When the signature or the form is wrong.
    pub fn verify(note: &str, root_vkey: &str) -> Result<Self, KeyError> {
        let text = open(note, &[root_vkey])?;
        let wrong = |what: &str| KeyError::Note(format!("keyring: {what}"));
        let mut lines = text.lines();
        let origin = lines.next().and_then(|line| line.strip_suffix("/keyring"));
        let edition = lines.next().and_then(|line| line.parse().ok());
        let keys: Vec<_> =
            lines.map(|line| writer(line).ok_or_else(|| wrong(line))).collect::<Result<_, _>>()?;
        let (log, writers) = keys.into_iter().partition(|key: &WriterKey| key.name == LOG);
        Ok(Self {
            deployment: origin.ok_or_else(|| wrong("no origin"))?.to_owned(),
            edition: edition.ok_or_else(|| wrong("no edition"))?,
            writers,
            log,
        })
    }

    /// The public keys that may sign streams of this writer.
    #[must_use]
    pub fn of_writer(&self, name: &str) -> Vec<&str> {
        self.writers.iter().filter(|key| key.name == name).map(|key| key.vkey.as_str()).collect()
    }

    /// The public keys that may sign the head of the deployment log.
    #[must_use]
    pub fn of_log(&self) -> Vec<&str> {
        self.log.iter().map(|key| key.vkey.as_str()).collect()
    }
}

fn writer(line: &str) -> Option<WriterKey> {
    let mut words = line.split(' ');
    let name = words.next().filter(|name| is_writer_name(name))?.to_owned();
    let vkey = words.next()?.to_owned();
    let from = Micros::new(words.next()?.parse().ok()?);
    let until = match words.next()? {
        "-" => None,
        until => Some(Micros::new(until.parse().ok()?)),
    };
    let retired = match words.next()? {
        "active" => false,
        "retired" => true,
        _ => return None,
    };
    words.next().is_none().then_some(WriterKey { name, vkey, from, until, retired })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_reads_back_under_its_root_only() {
        let root = Signer::from_seed("audit.example/root", &[1; 32]).unwrap().0;
        let writer = Signer::from_seed("audit.example/edge-1", &[2; 32]).unwrap().0;
        let key = |retired, until| WriterKey {
            name: "edge-1".into(),
            vkey: writer.vkey().to_owned(),
            from: Micros::new(5),
            until,
            retired,
        };
        let ring = Keyring {
            deployment: "audit.example".into(),
            edition: 2,
            writers: vec![key(true, Some(Micros::new(9))), key(false, None)],
            log: vec![WriterKey { name: LOG.into(), ..key(false, None) }],
        };
        assert_eq!(ring.of_writer("edge-1").len(), 2);
        let note = ring.sign(&root).unwrap();
        assert_eq!(Keyring::verify(&note, root.vkey()).unwrap(), ring);
        assert!(Keyring::verify(&note, writer.vkey()).is_err());
    }
}
