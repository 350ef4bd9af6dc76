//! Cosignatures of witnesses: C2SP tlog-cosignature, with Ed25519.
//!
//! A witness says of a log's checkpoint that, at a moment, this was the largest tree that it had
//! seen, and that it had grown out of every one it had seen before. It stands as one more signature
//! line on the checkpoint's note.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};
use signed_note::{Note, NoteError, VerifierList, key_id};

use super::key::{KeyError, seed};

/// The algorithm byte of a cosignature in a signed-note key.
const COSIGNATURE_V1: u8 = 4;
/// A time and an Ed25519 signature.
const BYTES: usize = 8 + 64;

/// A witness's private key. Prints nothing of the secret.
pub struct Cosigner {
    name: String,
    id: u32,
    key: SigningKey,
}

impl std::fmt::Debug for Cosigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cosigner({})", self.vkey())
    }
}

impl Cosigner {
    /// The key called `name` that grows from 32 secret random bytes, and its private text form, to
    /// be kept where only the owner may read.
    ///
    /// # Errors
    /// When the name cannot stand in a note.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<(Self, String), KeyError> {
        if !signed_note::is_key_name_valid(name) {
            return Err(KeyError::Name(name.to_owned()));
        }
        let key = SigningKey::from_bytes(seed);
        let id = key_id(name, &public(&key.verifying_key()));
        let secret = BASE64_STANDARD.encode([&[COSIGNATURE_V1][..], seed].concat());
        let text = format!("PRIVATE+KEY+{name}+{id:08x}+{secret}");
        Ok((Self { name: name.to_owned(), id, key }, text))
    }

    /// Reads the private text form.
    ///
    /// # Errors
    /// When the text is no such key; the error never repeats the text.
    pub fn parse(skey: &str) -> Result<Self, KeyError> {
        let mut parts = skey.trim().splitn(5, '+').skip(2);
        let name = parts.next().unwrap_or_default();
        Ok(Self::from_seed(name, &seed(skey, COSIGNATURE_V1)?)?.0)
    }

    /// The witness's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public text form, `name+id+key`.
    #[must_use]
    pub fn vkey(&self) -> String {
        let key = BASE64_STANDARD.encode(public(&self.key.verifying_key()));
        format!("{}+{:08x}+{key}", self.name, self.id)
    }

    /// The signature line, with its newline, on a checkpoint of this text at this moment (seconds
    /// since 1970).
    #[must_use]
    pub fn cosign(&self, text: &str, at: u64) -> String {
        let signature = self.key.sign(message(text, at).as_bytes());
        let id = self.id.to_be_bytes();
        let bytes = [&id[..], &at.to_be_bytes(), &signature.to_bytes()].concat();
        format!("— {} {}\n", self.name, BASE64_STANDARD.encode(bytes))
    }
}

/// A witness's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignerKey {
    name: String,
    id: u32,
    key: VerifyingKey,
}

impl CosignerKey {
    /// Reads the public text form.
    ///
    /// # Errors
    /// When the text is no key of a witness.
    pub fn parse(vkey: &str) -> Result<Self, KeyError> {
        let wrong = |what: &str| KeyError::Malformed(what.to_owned());
        let mut parts = vkey.trim().splitn(3, '+');
        let (name, id, key) = (parts.next(), parts.next(), parts.next());
        let name = name.filter(|name| signed_note::is_key_name_valid(name));
        let name = name.ok_or_else(|| wrong("it has no name"))?;
        let id = id.filter(|id| id.len() == 8).and_then(|id| u32::from_str_radix(id, 16).ok());
        let bytes = key.and_then(|key| BASE64_STANDARD.decode(key).ok()).unwrap_or_default();
        let [COSIGNATURE_V1, rest @ ..] = bytes.as_slice() else {
            return Err(wrong("a witness's key begins with the byte 4 (Ed25519 cosignatures)"));
        };
        let key = rest.try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let key = key.ok_or_else(|| wrong("it holds no Ed25519 key"))?;
        if id != Some(key_id(name, &bytes)) {
            return Err(wrong("its id does not fit its name and key"));
        }
        Ok(Self { name: name.to_owned(), id: key_id(name, &bytes), key })
    }

    /// The witness's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether both wrap the same key, whatever it is called.
    #[must_use]
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// When this witness cosigned the note (seconds since 1970); none when it did not.
    ///
    /// # Errors
    /// When the note is malformed, or a line that claims to be this witness's is wrong.
    pub fn cosigned(&self, note: &str) -> Result<Option<u64>, KeyError> {
        let wrong = |error: NoteError| KeyError::Note(error.to_string());
        let note = Note::from_bytes(note.as_bytes()).map_err(wrong)?;
        let known = VerifierList::new(vec![Box::new(self.clone())]);
        let found = match note.verify(&known) {
            Ok((found, _)) => found,
            Err(NoteError::UnverifiedNote) => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        let time = found.first().and_then(|line| line.signature().first_chunk());
        Ok(time.map(|time| u64::from_be_bytes(*time)))
    }
}

impl signed_note::Verifier for CosignerKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let (Ok(signature), Ok(text)) =
            (<[u8; BYTES]>::try_from(signature), std::str::from_utf8(text))
        else {
            return false;
        };
        let Some((time, signature)) = signature.split_first_chunk::<8>() else { return false };
        let time = u64::from_be_bytes(*time);
        let signature = Signature::from_slice(signature);
        let valid = |signature| self.key.verify(message(text, time).as_bytes(), &signature).is_ok();
        time <= u64::MAX >> 1 && signature.is_ok_and(valid)
    }
}

fn public(key: &VerifyingKey) -> Vec<u8> {
    [&[COSIGNATURE_V1][..], key.as_bytes()].concat()
}

/// What a witness signs.
fn message(text: &str, at: u64) -> String {
    format!("cosignature/v1\ntime {at}\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::key::Signer;

    const TEXT: &str = "a.example\n7\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    fn witness() -> Cosigner {
        Cosigner::from_seed("witness.example/w1", &[9; 32]).unwrap().0
    }

    #[test]
    fn a_cosignature_counts_with_its_time_for_its_own_text_and_witness_only() {
        let log = Signer::from_seed("a.example", &[5; 32]).unwrap().0;
        let key = CosignerKey::parse(&witness().vkey()).unwrap();
        let alone = log.sign(TEXT).unwrap();
        assert_eq!(key.cosigned(&alone).unwrap(), None);
        let note = format!("{alone}{}", witness().cosign(TEXT, 1_679_315_147));
        assert_eq!(key.cosigned(&note).unwrap(), Some(1_679_315_147));
        assert_eq!(crate::seal::key::open(&note, &[log.vkey()]).unwrap(), TEXT);
        assert!(key.cosigned(&note.replacen("\n7\n", "\n8\n", 1)).is_err());
        let other = Cosigner::from_seed("witness.example/w2", &[8; 32]).unwrap().0;
        assert_eq!(CosignerKey::parse(&other.vkey()).unwrap().cosigned(&note).unwrap(), None);
    }

    #[test]
    fn another_time_under_the_same_signature_is_a_wrong_signature() {
        let line = witness().cosign(TEXT, 100);
        let (head, base64) = line.trim_end().rsplit_once(' ').unwrap();
        let mut bytes = BASE64_STANDARD.decode(base64).unwrap();
        bytes[11] += 1;
        let later = format!("{TEXT}\n{head} {}\n", BASE64_STANDARD.encode(bytes));
        let key = CosignerKey::parse(&witness().vkey()).unwrap();
        assert!(key.cosigned(&later).is_err());
    }

    #[test]
    fn keys_read_back_and_a_logs_key_is_no_witnesss() {
        let (cosigner, text) = Cosigner::from_seed("witness.example/w1", &[9; 32]).unwrap();
        assert_eq!(Cosigner::parse(&text).unwrap().vkey(), cosigner.vkey());
        let log = Signer::from_seed("witness.example/w1", &[9; 32]).unwrap();
        assert!(CosignerKey::parse(log.0.vkey()).is_err() && Cosigner::parse(&log.1).is_err());
        let key = CosignerKey::parse(&cosigner.vkey()).unwrap();
        assert!(CosignerKey::parse(&cosigner.vkey().replacen("w1", "w2", 1)).is_err());
        let renamed = Cosigner::from_seed("witness.example/w2", &[9; 32]).unwrap().0;
        assert!(key.is_same_key(&CosignerKey::parse(&renamed.vkey()).unwrap()));
    }

    /// The key that github.com/transparency-dev/formats tests its reader with.
    #[test]
    fn a_published_key_of_a_witness_is_read() {
        let vkey = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";
        assert_eq!(CosignerKey::parse(vkey).unwrap().name(), "remora.n621.de");
    }
}
