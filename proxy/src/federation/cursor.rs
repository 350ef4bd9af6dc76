//! One cursor for the lists of several servers.
//!
//! A page of the common list is made of the next page of every server that has more. The cursor that
//! a client gets for the next one holds each server's own, and how many pages there were; it is sealed
//! for the caller and the list that it was made for, so that nobody can use another's or make one up. A
//! list of more than [`MAX_PAGES`] pages is one that goes in circles.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most pages of one list.
pub(crate) const MAX_PAGES: u32 = 1000;
/// The longest cursor of one server.
pub(crate) const MAX_CURSOR: usize = 8 << 10;
/// The length of a seal.
const SEAL: usize = 16;

/// A cursor is not one that this caller was given for this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreign;

/// Where the list goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// How many pages there were.
    pub(crate) pages: u32,
    /// The servers that have more, and their own cursors, as raw tokens.
    pub(crate) servers: Vec<(String, String)>,
}

/// Seals cursors; another one for every run of the proxy.
pub(crate) struct Sealer([u8; 32]);

impl Sealer {
    /// A sealer with a key of its own.
    pub(crate) fn new() -> Self {
        Self(rand::random())
    }

    fn seal(&self, owner: &str, list: &str, text: &[u8]) -> [u8; SEAL] {
        let length = |text: &str| (text.len() as u64).to_be_bytes();
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(length(owner))
            .chain_update(owner)
            .chain_update(length(list))
            .chain_update(list)
            .chain_update(text)
            .finalize();
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&digest[..SEAL]);
        seal
    }

    /// The cursor for `owner`, who reads `list`.
    pub(crate) fn write(&self, owner: &str, list: &str, cursor: &Cursor) -> String {
        let text = serde_json::to_vec(cursor).unwrap_or_default();
        let mut bytes = self.seal(owner, list, &text).to_vec();
        bytes.extend_from_slice(&text);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The cursor that `owner` was given for `list`.
    pub(crate) fn read(&self, owner: &str, list: &str, cursor: &str) -> Result<Cursor, Foreign> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| Foreign)?;
        let (seal, text) = bytes.split_first_chunk::<SEAL>().ok_or(Foreign)?;
        let own = self.seal(owner, list, text);
        let difference = own.iter().zip(seal).fold(0u8, |sum, (a, b)| sum | (a ^ b));
        if std::hint::black_box(difference) != 0 {
            return Err(Foreign);
        }
        serde_json::from_slice(text).map_err(|_| Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_owner_and_its_list_only() {
        let sealer = Sealer::new();
        let cursor = Cursor { pages: 3, servers: vec![("ehr".into(), "\"x\"".into())] };
        let sealed = sealer.write("ann", "tools/list", &cursor);
        assert_eq!(sealer.read("ann", "tools/list", &sealed), Ok(cursor));
        assert_eq!(sealer.read("bob", "tools/list", &sealed), Err(Foreign));
        assert_eq!(sealer.read("ann", "prompts/list", &sealed), Err(Foreign));
        assert_eq!(Sealer::new().read("ann", "tools/list", &sealed), Err(Foreign));
        for forged in ["", "x", "!!!!", &sealed[1..], &format!("{sealed}A")] {
            assert_eq!(sealer.read("ann", "tools/list", forged), Err(Foreign), "{forged}");
        }
    }
}
