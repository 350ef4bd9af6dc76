//! The streams of several servers as one.
//!
//! When one that has stood for a while breaks off, all of it does: the client opens it again, and
//! with it that of every server. One that breaks off at once is left out.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::{once, select_all, unfold};

use crate::payload::{BrokenOff, Pieces};

/// How long a stream must have stood.
const LASTING: Duration = Duration::from_secs(5);

/// All of them as one.
pub(crate) fn join(streams: Vec<Pieces>) -> Pieces {
    let began = Instant::now();
    let ending = |stream: Pieces| stream.chain(once(async { Err(BrokenOff) }));
    let all = select_all(streams.into_iter().map(|stream| Box::pin(ending(stream))));
    Box::pin(unfold(Some(all), move |all| async move {
        let mut all = all?;
        loop {
            match all.next().await? {
                Ok(piece) => return Some((Ok(piece), Some(all))),
                Err(BrokenOff) if began.elapsed() >= LASTING => {
                    return Some((Err(BrokenOff), None));
                }
                Err(BrokenOff) => {}
            }
        }
    }))
}
