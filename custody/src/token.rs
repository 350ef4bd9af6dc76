//! Bearer tokens and agents' keys: 256 random bits, of which only the hash is configured.

use sha2::{Digest, Sha256};

/// A new token and the `sha256:…` that goes into the configuration.
pub fn create() -> (String, String) {
    let secret: [u8; 32] = rand::random();
    let token = format!("custody_{}", hex::encode(secret));
    let hash = hash(&token);
    (token, hash)
}

/// What a configuration holds of a token.
pub fn hash(token: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(token.as_bytes())))
}
