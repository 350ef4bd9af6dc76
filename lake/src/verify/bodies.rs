//! Every stored body against the commitment in its record.

use std::collections::HashMap;

use custody_schemas::event::Bodies;
use custody_schemas::id::{BodyId, Bytes, Hash, Micros};

use super::columns::Stored;
use super::{Verdict, VerifyError};
use crate::lawful::Lawful;
use crate::tables::Lake;

/// What a record says of a body, and whether it was seen.
#[derive(Debug)]
struct Promised {
    commitment: Hash,
    chunks: u64,
    /// When the record was made.
    at: Micros,
    seen: bool,
}

/// The commitments that sealed records hold.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    commitments: HashMap<BodyId, Promised>,
}

/// The chunks of a body whose others have not been read yet.
#[derive(Default)]
struct Gathered {
    nonce: Vec<u8>,
    chunks: HashMap<u64, Vec<u8>>,
}

impl Wanted {
    pub(super) fn note(&mut self, bodies: &Bodies, at: Micros) {
        for body in [&bodies.request, &bodies.response, &bodies.edits].into_iter().flatten() {
            let (commitment, chunks) = (body.commitment, body.chunks.get());
            self.commitments.insert(body.body, Promised { commitment, chunks, at, seen: false });
        }
    }

    /// Reads every file of `bodies`.
    pub(super) async fn compare(
        mut self,
        lake: &Lake,
        lawful: &Lawful,
        verdict: &mut Verdict,
    ) -> Result<(), VerifyError> {
        let snapshot = lake.bodies().snapshot().await?;
        let mut gathered: HashMap<BodyId, Gathered> = HashMap::new();
        for file in snapshot.files() {
            let stored = match snapshot.read(file).await {
                Ok(batches) => Stored::new(&batches).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match stored {
                Ok(Some(stored)) => {
                    for row in 0..stored.len() {
                        let place = || format!("bodies/{} row {row}", file.path);
                        self.row(&stored, row, &mut gathered, place, verdict);
                    }
                }
                Ok(None) => {}
                Err(error) => verdict.find(format!("bodies/{}", file.path), error),
            }
        }
        for (body, promised) in self.commitments.iter().filter(|(_, promised)| !promised.seen) {
            match lawful.body(*body, promised.at) {
                Some(_) => verdict.bodies_gone += 1,
                None => verdict.bodies_missing += 1,
            }
        }
        Ok(())
    }

    fn row(
        &mut self,
        stored: &Stored,
        row: usize,
        gathered: &mut HashMap<BodyId, Gathered>,
        place: impl Fn() -> String,
        verdict: &mut Verdict,
    ) {
        let body = stored.text("body", row).and_then(|text| text.parse::<BodyId>().ok());
        let Some(body) = body else { return };
        // A body that no stored record names: its record may come later, or never.
        let Some(promised) = self.commitments.get_mut(&body) else { return };
        if promised.seen {
            return;
        }
        let one = gathered.entry(body).or_default();
        one.nonce = stored.bytes("nonce", row).unwrap_or_default().to_vec();
        let plain = match stored.text("encoding", row) {
            Some("identity") => stored.bytes("bytes", row).unwrap_or_default().to_vec(),
            _ => return verdict.find(place(), "its encoding is not known to this version"),
        };
        one.chunks.insert(stored.int("index", row).unwrap_or(0), plain);
        if (one.chunks.len() as u64) < promised.chunks {
            return;
        }
        promised.seen = true;
        verdict.bodies += 1;
        let whole: Vec<u8> =
            (0..promised.chunks).filter_map(|i| one.chunks.get(&i)).flatten().copied().collect();
        let nonce = <[u8; 32]>::try_from(one.nonce.as_slice()).unwrap_or_default();
        if custody_schemas::body::commitment(&Bytes(nonce), &whole) != promised.commitment {
            verdict.find(place(), format!("body {body} is not what its record commits to"));
        }
        gathered.remove(&body);
    }
}
