//! What a server says beside messages: its standard error, lines that are no messages, answers
//! that nobody waits for.
//!
//! It may hold anything, so it goes onto the record as a body and never into our log. What waits to
//! be recorded is limited, and so is what one process may say in a minute; the rest is counted, and
//! the count is on the record with what comes next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use custody_schemas::event::Who;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many notes wait to be recorded.
const MAX_WAITING: usize = 64;
/// How much of what one process says in a minute is recorded.
const MAX_BYTES_A_MINUTE: usize = 1 << 20;

/// Where something was said that is no message for anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// On standard error.
    Stderr,
    /// Where messages are expected, but it is none.
    Garbage,
    /// A message that nobody waits for.
    Undelivered,
    /// By the proxy: a call that its client has left is cancelled.
    Cancelled,
    /// By the system: how the process ended.
    Exit,
}

impl Said {
    /// The word for it in records.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Stderr => "stderr",
            Self::Garbage => "garbage",
            Self::Undelivered => "undelivered",
            Self::Cancelled => "cancelled",
            Self::Exit => "exit",
        }
    }
}

/// Something to be recorded.
#[derive(Debug)]
pub(crate) struct Note {
    /// The server's name.
    pub(crate) server: Arc<str>,
    /// For whom it worked.
    pub(crate) who: Arc<Who>,
    /// What it is.
    pub(crate) said: Said,
    /// The words.
    pub(crate) bytes: Bytes,
    /// How many bytes before it are not on the record.
    pub(crate) lost: u64,
}

/// Notes that wait to be recorded.
pub(crate) type Heard = mpsc::Receiver<Note>;

/// Where the notes of all servers go.
#[derive(Clone, Debug)]
pub(crate) struct Desk(mpsc::Sender<Note>);

impl Desk {
    /// A desk, and what is laid on it.
    pub(crate) fn new() -> (Self, Heard) {
        let (to, heard) = mpsc::channel(MAX_WAITING);
        (Self(to), heard)
    }

    /// Notes about `server` while it works for `who`.
    pub(super) fn notes(&self, server: &Arc<str>, who: &Arc<Who>) -> Notes {
        let spent = Spent { since: Instant::now(), bytes: 0, lost: 0 };
        Notes {
            desk: self.clone(),
            server: Arc::clone(server),
            who: Arc::clone(who),
            spent: Mutex::new(spent),
        }
    }
}

/// Notes about one process or connection.
#[derive(Debug)]
pub(super) struct Notes {
    desk: Desk,
    server: Arc<str>,
    who: Arc<Who>,
    spent: Mutex<Spent>,
}

#[derive(Debug)]
struct Spent {
    since: Instant,
    bytes: usize,
    lost: u64,
}

impl Notes {
    /// Notes something, or counts it.
    pub(super) fn take(&self, said: Said, bytes: Bytes) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.since.elapsed() > Duration::from_secs(60) {
            (spent.since, spent.bytes) = (Instant::now(), 0);
        }
        let length = bytes.len();
        let fits = spent.bytes + length <= MAX_BYTES_A_MINUTE || said == Said::Exit;
        let (server, who) = (Arc::clone(&self.server), Arc::clone(&self.who));
        let note = Note { server, who, said, bytes, lost: spent.lost };
        if fits && self.desk.0.try_send(note).is_ok() {
            spent.bytes += length;
            spent.lost = 0;
        } else {
            spent.lost += length as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_beyond_the_limit_is_counted_and_told_with_the_next_note() {
        let (desk, mut heard) = Desk::new();
        let notes = desk.notes(&Arc::from("ehr"), &Arc::default());
        let half = Bytes::from(vec![b'x'; MAX_BYTES_A_MINUTE / 2]);
        for _ in 0..3 {
            notes.take(Said::Stderr, half.clone());
        }
        notes.take(Said::Exit, Bytes::from_static(b"signal 9"));
        let mut lost = Vec::new();
        while let Ok(note) = heard.try_recv() {
            lost.push((note.said, note.lost));
        }
        let half = half.len() as u64;
        assert_eq!(lost, [(Said::Stderr, 0), (Said::Stderr, 0), (Said::Exit, half)]);
    }
}
