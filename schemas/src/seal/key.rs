//! Ed25519 keys in the text forms of C2SP signed-note, and signing with them.
//!
//! A key is held here or somewhere else, in a security module or behind another program: then only
//! texts go there and signatures come back, and none is passed on that does not fit the public key.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use signed_note::{Note, Signer as _, StandardSigner, StandardVerifier, VerifierList};

/// The algorithm byte of Ed25519 in a signed-note key.
const ED25519: u8 = 1;

/// Why a key or a signed note is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no key.
    #[error("this is no signed-note Ed25519 key: {0}")]
    Malformed(String),
    /// The name cannot stand in a note.
    #[error("{0:?} cannot name a key: it must not be empty nor hold spaces or '+'")]
    Name(String),
    /// The note's text, form or signature is wrong.
    #[error("the note is not valid: {0}")]
    Note(String),
    /// Whoever holds the key has not signed.
    #[error("the external signer of {name}: {problem}")]
    Elsewhere {
        /// The key.
        name: String,
        /// What was wrong.
        problem: String,
    },
}

/// Asks whoever holds a key for the signature line of a text.
pub type AskedElsewhere = dyn Fn(&str) -> Result<String, String> + Send + Sync;

/// A private key with its name, held here or elsewhere. Prints nothing of the secret.
pub struct Signer {
    held: Held,
    name: String,
    vkey: String,
}

enum Held {
    Here(Box<StandardSigner>),
    Elsewhere(Box<AskedElsewhere>),
}

impl Signer {
    /// The key called `name` that grows from 32 secret random bytes, and its private text form
    /// (`PRIVATE+KEY+…`), to be kept where only the owner may read.
    ///
    /// # Errors
    /// When the name cannot stand in a note.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<(Self, String), KeyError> {
        if !signed_note::is_key_name_valid(name) {
            return Err(KeyError::Name(name.to_owned()));
        }
        let public = ed25519_dalek::SigningKey::from_bytes(seed).verifying_key().to_bytes();
        let id = signed_note::key_id(name, &[&[ED25519][..], &public].concat());
        let secret = BASE64_STANDARD.encode([&[ED25519][..], seed].concat());
        let text = format!("PRIVATE+KEY+{name}+{id:08x}+{secret}");
        Ok((Self::parse(&text)?, text))
    }

    /// Reads the private text form.
    ///
    /// # Errors
    /// When the text is no such key; the error never repeats the text.
    pub fn parse(skey: &str) -> Result<Self, KeyError> {
        let skey = skey.trim();
        let inner = StandardSigner::new(skey).map_err(|e| KeyError::Malformed(e.to_string()))?;
        let seed = seed(skey, ED25519)?;
        let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        let vkey = signed_note::new_ed25519_verifier_key(inner.name(), &public);
        let name = inner.name().to_owned();
        Ok(Self { held: Held::Here(Box::new(inner)), name, vkey })
    }

    /// A key that is held elsewhere: `vkey` is its public text form, `ask` has it sign a text.
    ///
    /// # Errors
    /// When the public form is none.
    pub fn elsewhere(vkey: &str, ask: Box<AskedElsewhere>) -> Result<Self, KeyError> {
        let vkey = vkey.trim().to_owned();
        check(&vkey)?;
        let name = vkey.split('+').next().unwrap_or_default().to_owned();
        Ok(Self { held: Held::Elsewhere(ask), name, vkey })
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public text form, `name+id+key`.
    #[must_use]
    pub fn vkey(&self) -> &str {
        &self.vkey
    }

    /// Signs a text, which must end with a newline; the whole note.
    ///
    /// # Errors
    /// When the text cannot stand in a note, or whoever holds the key does not sign it.
    pub fn sign(&self, text: &str) -> Result<String, KeyError> {
        let wrong = |e: signed_note::NoteError| KeyError::Note(e.to_string());
        let mut note = Note::new(text.as_bytes(), &[]).map_err(wrong)?;
        match &self.held {
            Held::Here(key) => note.add_sigs(&[&**key]).map_err(wrong)?,
            Held::Elsewhere(ask) => return self.signed_elsewhere(text, ask),
        }
        String::from_utf8(note.to_bytes()).map_err(|e| KeyError::Note(e.to_string()))
    }

    /// The note with the line that the other side has made, if it is a signature of this text.
    fn signed_elsewhere(&self, text: &str, ask: &AskedElsewhere) -> Result<String, KeyError> {
        let problem = |problem| KeyError::Elsewhere { name: self.name.clone(), problem };
        let line = ask(text).map_err(problem)?;
        let note = format!("{text}\n{}\n", line.trim_end());
        match open(&note, &[&self.vkey]) {
            Ok(signed) if signed == text => Ok(note),
            _ => Err(problem("what it answered is no signature of the text by its key".to_owned())),
        }
    }
}

/// The secret bytes in a private text form of this algorithm.
pub(super) fn seed(skey: &str, algorithm: u8) -> Result<[u8; 32], KeyError> {
    let bytes = skey.trim().splitn(5, '+').nth(4).and_then(|b64| BASE64_STANDARD.decode(b64).ok());
    let seed = match bytes.as_deref() {
        Some([first, seed @ ..]) if *first == algorithm => <[u8; 32]>::try_from(seed).ok(),
        _ => None,
    };
    seed.ok_or_else(|| KeyError::Malformed("wrong length or kind".to_owned()))
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.vkey)
    }
}

/// Whether a text is the public form of a key that signs notes.
///
/// # Errors
/// [`KeyError::Malformed`] when it is not.
pub fn check(vkey: &str) -> Result<(), KeyError> {
    StandardVerifier::new(vkey).map(drop).map_err(|e| KeyError::Malformed(e.to_string()))
}

/// The text of a note that carries a valid signature by one of the keys.
///
/// # Errors
/// When the note is malformed, or no signature by these keys is on it, or one is wrong.
pub fn open(note: &str, vkeys: &[&str]) -> Result<String, KeyError> {
    let mut verifiers: Vec<Box<dyn signed_note::Verifier>> = Vec::new();
    for vkey in vkeys {
        let verifier = StandardVerifier::new(vkey);
        verifiers.push(Box::new(verifier.map_err(|e| KeyError::Malformed(e.to_string()))?));
    }
    let wrong = |e: signed_note::NoteError| KeyError::Note(e.to_string());
    let note = Note::from_bytes(note.as_bytes()).map_err(wrong)?;
    note.verify(&VerifierList::new(verifiers)).map_err(wrong)?;
    String::from_utf8(note.text().to_vec()).map_err(|e| KeyError::Note(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back_whatever_base64_makes_of_it() {
        let mut with_plus = 0;
        for i in 0..=255u8 {
            let (signer, text) = Signer::from_seed("a.example/edge-1", &[i; 32]).unwrap();
            with_plus += usize::from(text.matches('+').count() > 4);
            assert_eq!(Signer::parse(&text).unwrap().vkey(), signer.vkey());
            let note = signer.sign("text\n").unwrap();
            assert_eq!(open(&note, &[signer.vkey()]).unwrap(), "text\n");
        }
        assert!(with_plus > 0, "a plus sign is what once was read wrongly");
    }

    /// The vector of golang.org/x/mod/sumdb/note, which C2SP signed-note describes.
    #[test]
    fn the_published_key_signs_the_published_note() {
        let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let text = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n";
        let note = format!(
            "{text}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
        );
        let signer = Signer::parse(skey).unwrap();
        assert_eq!((signer.vkey(), signer.sign(text).unwrap()), (vkey, note.clone()));
        assert_eq!(open(&note, &[vkey]).unwrap(), text);
        assert!(open(&note.replacen("know", "knew", 1), &[vkey]).is_err());
    }

    #[test]
    fn a_key_is_never_printed() {
        let (signer, text) = Signer::from_seed("a.example/edge-1", &[7; 32]).unwrap();
        let secret = text.rsplit('+').next().unwrap();
        assert!(!format!("{signer:?}").contains(secret));
        let error = Signer::parse(&text[..text.len() - 2]).unwrap_err().to_string();
        assert!(!error.contains(&secret[..8]), "{error}");
    }

    #[test]
    fn a_key_that_is_held_elsewhere_signs_there_and_a_wrong_answer_is_no_signature() {
        let here = Signer::from_seed("a.example/log", &[7; 32]).unwrap().0;
        let vkey = here.vkey().to_owned();
        let line = |note: String| note.lines().last().unwrap().to_owned();
        let ask = move |text: &str| Ok(line(here.sign(text).unwrap()));
        let signer = Signer::elsewhere(&vkey, Box::new(ask)).unwrap();
        assert_eq!((signer.name(), signer.vkey()), ("a.example/log", vkey.as_str()));
        let note = signer.sign("text\n").unwrap();
        assert_eq!(open(&note, &[&vkey]).unwrap(), "text\n");
        let other =
            line(Signer::from_seed("a.example/log", &[8; 32]).unwrap().0.sign("text\n").unwrap());
        let old = line(note);
        for answer in [other, old, String::new(), "line\n\nline".to_owned()] {
            let again = answer.clone();
            let signer = Signer::elsewhere(&vkey, Box::new(move |_| Ok(again.clone()))).unwrap();
            let signed = signer.sign("another text\n");
            assert!(matches!(signed, Err(KeyError::Elsewhere { .. })), "{answer:?}");
        }
        let dead = Signer::elsewhere(&vkey, Box::new(|_| Err("gone".into()))).unwrap();
        assert!(dead.sign("text\n").unwrap_err().to_string().contains("gone"));
    }
}
