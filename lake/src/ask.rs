//! Shows a head of the deployment log to one witness, with the proof that it has grown (C2SP
//! tlog-witness).
//!
//! Whoever asks brings the way to the witness along; nothing here knows of a network.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use custody_schemas::seal::witness::{PATH, Submission, number};

use crate::tiles::{LOG_FOLDER, Seals};

/// How often a witness is asked: it may say at first which size it knows.
const ATTEMPTS: u32 = 3;

/// What a witness answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, as far as anybody may expect one to go.
    pub body: Vec<u8>,
}

/// An answer on its way; an error says why there is none. It has a time limit of its own.
pub type Answering = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>>;

/// Posts a body to an address.
pub type Submit = Arc<dyn Fn(String, String) -> Answering + Send + Sync>;

/// Why a witness has not cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has cosigned more entries than there are.
    Ahead(u64),
    /// It has cosigned another tree of this size.
    Fork(u64),
    /// Anything that may pass.
    Unanswered(String),
}

/// Asks the witness at `url` to cosign the log's head of this size, whose note carries the log's
/// signature alone; `old` is the size that it has cosigned last, as far as is known, or 0. The
/// lines that it answers, unseen.
///
/// # Errors
/// [`Refusal`].
pub async fn ask(
    seals: &Seals,
    submit: &Submit,
    url: &str,
    mut old: u64,
    (size, note): (u64, &str),
) -> Result<String, Refusal> {
    let url = format!("{}/{PATH}", url.trim_end_matches('/'));
    for _ in 0..ATTEMPTS {
        if old > size {
            return Err(Refusal::Ahead(old));
        }
        let proof = seals.consistency(LOG_FOLDER, old, size).await;
        let proof = proof.map_err(|error| Refusal::Unanswered(error.to_string()))?;
        let body = Submission { old, proof, note: note.to_owned() }.encode();
        let answer = submit(url.clone(), body).await.map_err(Refusal::Unanswered)?;
        let text = String::from_utf8_lossy(&answer.body);
        match (answer.status, number(text.trim_end())) {
            (200, _) => return Ok(text.into_owned()),
            (409, Some(known)) if known != old => old = known,
            (409, _) if old == size => return Err(Refusal::Fork(size)),
            (422, _) if old > 0 => return Err(Refusal::Fork(old)),
            (status, _) => return Err(Refusal::Unanswered(format!("it answered {status}"))),
        }
    }
    Err(Refusal::Unanswered("it says another size each time".to_owned()))
}

/// The note with its first signature only: what a witness is shown.
#[must_use]
pub fn alone(note: &str) -> String {
    let mut signatures = 0;
    let is_first = |line: &&str| {
        signatures += u32::from(line.starts_with("— "));
        !line.starts_with("— ") || signatures == 1
    };
    note.split_inclusive('\n').filter(is_first).collect()
}
