//! Bodies: the bytes that passed, kept apart from the records that commit to them.
//!
//! The commitment is SHA-256(nonce ‖ plain bytes). The nonce is stored with the body only, so that
//! equal bodies cannot be matched by their records, and a body that could be guessed cannot be
//! tested against one; whoever destroys nonce and bytes has destroyed the fingerprint too.

use bytes::Bytes as Buffer;
use sha2::{Digest, Sha256};

use crate::event::BodyRef;
use crate::id::{BodyId, Bytes, Hash, Uint};

/// The longest chunk.
pub const MAX_CHUNK_BYTES: usize = 512 * 1024;

/// 32 random bytes that a commitment begins with.
pub type Nonce = Bytes<32>;

/// SHA-256(nonce ‖ bytes).
#[must_use]
pub fn commitment(nonce: &Nonce, bytes: &[u8]) -> Hash {
    Bytes(Sha256::new().chain_update(nonce.0).chain_update(bytes).finalize().into())
}

/// How the bytes of a chunk are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they passed.
    Identity,
    /// Zstandard.
    Zstd,
}

/// How the bytes of a chunk are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// Not at all.
    None,
    /// AES-256-GCM under the chunk's data key.
    Aes256Gcm,
}

impl Encoding {
    /// The word in headers and SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Zstd => "zstd",
        }
    }
}

impl Cipher {
    /// The word in headers and SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

/// What a chunk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The body it is part of.
    pub body: BodyId,
    /// Its place, from 0.
    pub index: u32,
    /// How many chunks the body has.
    pub count: u32,
    /// Length of the whole plain body.
    pub length: u64,
    /// The nonce of the body's commitment.
    pub nonce: Nonce,
    /// Encoding of this chunk.
    pub encoding: Encoding,
    /// Encryption of this chunk.
    pub cipher: Cipher,
    /// The id of the wrapped data key; empty without encryption.
    pub key: String,
}

/// One piece of a body, as it stands in `custody.bodies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What it says of itself.
    pub header: ChunkHeader,
    /// Its bytes.
    pub value: Buffer,
}

/// A chunk header cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a chunk header: {0}")]
pub struct ChunkError(String);

/// The version byte of an encoded header.
const HEADER_VERSION: u8 = 1;

impl ChunkHeader {
    /// version (1) ‖ body (16) ‖ index, count (u32) ‖ length (u64) ‖ nonce (32) ‖ encoding ‖
    /// cipher ‖ key length (u8) ‖ key; numbers big endian.
    #[must_use]
    pub fn encode(&self) -> Buffer {
        let key = &self.key.as_bytes()[..self.key.len().min(255)];
        let mut bytes = Vec::with_capacity(68 + key.len());
        bytes.push(HEADER_VERSION);
        bytes.extend_from_slice(&self.body.0);
        bytes.extend_from_slice(&self.index.to_be_bytes());
        bytes.extend_from_slice(&self.count.to_be_bytes());
        bytes.extend_from_slice(&self.length.to_be_bytes());
        bytes.extend_from_slice(&self.nonce.0);
        bytes.push(match self.encoding {
            Encoding::Identity => 0,
            Encoding::Zstd => 1,
        });
        bytes.push(match self.cipher {
            Cipher::None => 0,
            Cipher::Aes256Gcm => 1,
        });
        bytes.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(key);
        bytes.into()
    }

    /// The reverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// When the bytes are anything else, or name an encoding or cipher that this version does not
    /// know.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChunkError> {
        let wrong = |what: &str| ChunkError(what.to_owned());
        let [HEADER_VERSION, rest @ ..] = bytes else {
            return Err(wrong("unknown version"));
        };
        let (body, rest) = take::<16>(rest)?;
        let (index, rest) = take::<4>(rest)?;
        let (count, rest) = take::<4>(rest)?;
        let (length, rest) = take::<8>(rest)?;
        let (nonce, rest) = take::<32>(rest)?;
        let ([encoding, cipher, key_length], key) = take::<3>(rest)?;
        let (index, count) = (u32::from_be_bytes(index), u32::from_be_bytes(count));
        if index >= count || key.len() != usize::from(key_length) {
            return Err(wrong("its numbers contradict each other"));
        }
        Ok(Self {
            body: Bytes(body),
            index,
            count,
            length: u64::from_be_bytes(length),
            nonce: Bytes(nonce),
            encoding: match encoding {
                0 => Encoding::Identity,
                1 => Encoding::Zstd,
                _ => return Err(ChunkError(format!("unknown encoding {encoding}"))),
            },
            cipher: match cipher {
                0 => Cipher::None,
                1 => Cipher::Aes256Gcm,
                _ => return Err(ChunkError(format!("unknown cipher {cipher}"))),
            },
            key: String::from_utf8(key.to_vec()).map_err(|_| wrong("the key id is no text"))?,
        })
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), ChunkError> {
    let (head, rest) =
        bytes.split_first_chunk::<N>().ok_or_else(|| ChunkError("cut short".to_owned()))?;
    Ok((*head, rest))
}

/// The reference that a record holds to a body, and the body's chunks. Copies nothing.
#[must_use]
pub fn split(body: BodyId, nonce: Nonce, bytes: &Buffer) -> (BodyRef, Vec<Chunk>) {
    let count = bytes.len().div_ceil(MAX_CHUNK_BYTES).max(1);
    let count32 = u32::try_from(count).unwrap_or(u32::MAX);
    let chunk = |index: u32| {
        let from = index as usize * MAX_CHUNK_BYTES;
        let to = (from + MAX_CHUNK_BYTES).min(bytes.len());
        let header = ChunkHeader {
            body,
            index,
            count: count32,
            length: bytes.len() as u64,
            nonce,
            encoding: Encoding::Identity,
            cipher: Cipher::None,
            key: String::new(),
        };
        Chunk { header, value: bytes.slice(from..to) }
    };
    let reference = BodyRef {
        body,
        bytes: Uint::new(bytes.len() as u64),
        chunks: Uint::new(count as u64),
        commitment: commitment(&nonce, bytes),
    };
    (reference, (0..count32).map(chunk).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_join_to_the_body_that_the_commitment_is_over() {
        for length in [0, 1, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + 1, 3 * MAX_CHUNK_BYTES] {
            let bytes = Buffer::from(vec![42u8; length]);
            let (reference, chunks) = split(Bytes([1; 16]), Bytes([2; 32]), &bytes);
            let joined: Vec<u8> = chunks.iter().flat_map(|c| c.value.to_vec()).collect();
            assert_eq!(joined, bytes);
            assert_eq!(commitment(&Bytes([2; 32]), &joined), reference.commitment);
            assert_eq!(chunks.len() as u64, reference.chunks.get());
            for chunk in chunks {
                assert_eq!(ChunkHeader::decode(&chunk.header.encode()), Ok(chunk.header));
            }
        }
    }

    #[test]
    fn a_damaged_header_is_an_error_and_never_a_panic() {
        let (_, chunks) = split(Bytes([1; 16]), Bytes([2; 32]), &Buffer::from_static(b"x"));
        let good = chunks[0].header.encode();
        for end in 0..good.len() {
            assert!(ChunkHeader::decode(&good[..end]).is_err());
        }
        let mut unknown = good.to_vec();
        unknown[65] = 9;
        assert_eq!(ChunkHeader::decode(&unknown), Err(ChunkError("unknown encoding 9".into())));
    }
}
