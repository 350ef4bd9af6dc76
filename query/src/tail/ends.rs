//! Where a partition ends, asked of a medium that may be slow or not answer at all.
//!
//! Promises: at most one question for an end is on its way, however many wait for it, and none of
//! them takes an answer that was begun before it asked.

use std::sync::Arc;

use custody_journal::{Journal, Partition, Read};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Asks for the end of one partition.
pub(super) struct Ends {
    journal: Arc<dyn Journal>,
    partition: Partition,
    /// Made when it is first needed; never reads.
    reader: Arc<Mutex<Option<Box<dyn Read>>>>,
    known: tokio::sync::Mutex<Option<Known>>,
}

struct Known {
    begun: Instant,
    end: Result<u64, String>,
}

impl Ends {
    pub(super) fn of(journal: Arc<dyn Journal>, partition: Partition) -> Self {
        Self { journal, partition, reader: Arc::default(), known: tokio::sync::Mutex::default() }
    }

    /// The end at `moment` or later; what keeps it from being known otherwise.
    pub(super) async fn since(&self, moment: Instant) -> Result<u64, String> {
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.begun >= moment) {
            return known.end.clone();
        }
        let begun = Instant::now();
        let (journal, partition) = (Arc::clone(&self.journal), self.partition.clone());
        let reader = Arc::clone(&self.reader);
        let asked = tokio::task::spawn_blocking(move || {
            // Whoever gave up waiting has left its question running.
            let mut reader = reader.try_lock().ok_or("the journal has not answered yet")?;
            let reader = match &mut *reader {
                Some(reader) => reader,
                none => none.insert(made(journal.as_ref(), &partition)?),
            };
            reader.end().map_err(|error| error.to_string())
        });
        let end = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        *known = Some(Known { begun, end: end.clone() });
        end
    }
}

fn made(journal: &dyn Journal, partition: &Partition) -> Result<Box<dyn Read>, String> {
    journal.reader(partition, 0).map_err(|error| error.to_string())
}
