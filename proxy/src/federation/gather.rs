//! The answer of one of several servers, taken out of what would have gone to the client.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::Response;
use tokio::time::timeout;

use crate::envelope::{Envelope, Look, same_id};
use crate::payload::Payload;
use crate::sse::Framer;

/// How long a server may take with its part of a common answer.
pub(crate) const WAIT: Duration = Duration::from_secs(30);
/// How many messages may come before it.
const MAX_BEFORE: usize = 64;
/// The error that says that a server does not know a method.
const METHOD_NOT_FOUND: &str = "-32601";

/// What a server answered.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Its answer, if it gave one.
    pub(crate) answer: Option<Bytes>,
    /// The events that came before it.
    pub(crate) before: Vec<Bytes>,
}

impl Gathered {
    /// Whether it answered that it does not know the method.
    pub(crate) fn knows_no_such_method(&self) -> bool {
        let answer =
            self.answer.as_deref().and_then(|bytes| Envelope::read(bytes, Look::Policy).ok());
        answer.is_some_and(|answer| answer.code == Some(METHOD_NOT_FOUND))
    }
}

/// Waits for the answer to the request with this id, a raw token.
pub(crate) async fn gather(
    asking: impl Future<Output = Response<Payload>>,
    id: &str,
    limit: usize,
) -> Gathered {
    let mut gathered = Gathered::default();
    let gathering = async {
        match asking.await.into_body() {
            Payload::Whole(bytes) => gathered.answer = bytes,
            Payload::Pieces(mut pieces) => {
                let mut framer = Framer::new(limit);
                while let Some(Ok(piece)) = pieces.next().await {
                    framer.push(&piece);
                    if take(&mut framer, id, &mut gathered) {
                        break;
                    }
                }
                // its call ends with its stream
                while let Some(Ok(_)) = pieces.next().await {}
            }
        }
    };
    if timeout(WAIT, gathering).await.is_err() {
        tracing::debug!("a server took too long with its part of a common answer");
    }
    gathered
}

/// Takes in what has come; whether the answer is there, or will not be waited for.
fn take(framer: &mut Framer, id: &str, gathered: &mut Gathered) -> bool {
    while let Ok(Some(frame)) = framer.frame() {
        let Some(data) = frame.data.filter(|data| !data.is_empty()) else { continue };
        let message = Envelope::read(&data, Look::Policy).unwrap_or_default();
        let answers = message.result.is_some() || message.error.is_some();
        if answers && same_id(message.id.unwrap_or("null"), id) {
            gathered.answer = Some(data.clone());
            return true;
        }
        if gathered.before.len() == MAX_BEFORE {
            return true;
        }
        gathered.before.push(frame.raw);
    }
    false
}
