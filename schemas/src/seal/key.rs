//! Ed25519 keys in the text forms of C2SP signed-note, and signing with them.

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
}

/// A private key with its name. Prints nothing of the secret.
pub struct Signer {
    inner: StandardSigner,
    vkey: String,
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
        let seed = skey.splitn(5, '+').nth(4).and_then(|b64| BASE64_STANDARD.decode(b64).ok());
        let seed = seed.as_deref().and_then(|bytes| bytes.get(1..));
        let seed = seed.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let seed = seed.ok_or_else(|| KeyError::Malformed("wrong length".to_owned()))?;
        let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        let vkey = signed_note::new_ed25519_verifier_key(inner.name(), &public);
        Ok(Self { inner, vkey })
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// The public text form, `name+id+key`.
    #[must_use]
    pub fn vkey(&self) -> &str {
        &self.vkey
    }

    /// Signs a text, which must end with a newline; the whole note.
    ///
    /// # Errors
    /// When the text cannot stand in a note.
    pub fn sign(&self, text: &str) -> Result<String, KeyError> {
        let wrong = |e: signed_note::NoteError| KeyError::Note(e.to_string());
        let mut note = Note::new(text.as_bytes(), &[]).map_err(wrong)?;
        note.add_sigs(&[&self.inner]).map_err(wrong)?;
        String::from_utf8(note.to_bytes()).map_err(|e| KeyError::Note(e.to_string()))
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.vkey)
    }
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

    #[test]
    fn a_key_is_never_printed() {
        let (signer, text) = Signer::from_seed("a.example/edge-1", &[7; 32]).unwrap();
        let secret = text.rsplit('+').next().unwrap();
        assert!(!format!("{signer:?}").contains(secret));
        let error = Signer::parse(&text[..text.len() - 2]).unwrap_err().to_string();
        assert!(!error.contains(&secret[..8]), "{error}");
    }
}
