//! What one question is answered from: a version of each table, the rows of the tail behind it, and
//! what that is worth.
//!
//! Promises: nothing is missing and nothing is double between version and tail; a question at a cut
//! gets the rows below it and no other, whatever the node holds beyond, and an error when the node
//! has not come that far in time.

use std::sync::Arc;
use std::time::Duration;

use custody_journal::Topic;
use custody_schemas::id::{Micros, Uint};
use datafusion::common::DataFusionError;
use tokio::time::Instant;

use crate::catalog::Tables;
use crate::completeness::{Completeness, ListedWriter};
use crate::cut::Cut;
use crate::describe;
use crate::engine::now;
use crate::error::QueryError;
use crate::ledger::Ledger;
use crate::slice::{Below, Slice};
use crate::sources::{Sources, View};
use crate::stored;
use crate::tail::{Offsets, Taken};

/// How long a question waits for the tail to catch up.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long a question at a cut waits for this node to come as far.
const REACH: Duration = Duration::from_secs(10);
/// How often a pin is tried; each failure means that the lake has moved on meanwhile.
const PINS: usize = 5;

/// One version of each table, the tail behind it, and what that is worth.
pub(crate) struct Pin {
    pub(crate) tables: Tables,
    pub(crate) completeness: Completeness,
}

impl Sources {
    /// Pins what is durable now. `journal` names the offsets' journal in the cut.
    ///
    /// # Errors
    /// When the lake cannot be read.
    pub(crate) async fn pin(
        &self,
        writers: &[ListedWriter],
        journal: String,
    ) -> Result<Pin, QueryError> {
        // What is judged is what was there when the question came, or less.
        let as_of = now();
        let ends = self.tail.catch_up(as_of, CATCH_UP).await;
        let (taken, completeness, view) = self.take(writers, as_of, &ends).await?;
        let cut = Cut { journal, as_of, ends: taken.reached.clone() };
        let completeness = completeness.holding(&taken, cut.to_string());
        let tables = self.tables(&view, &taken, None, &completeness)?;
        Ok(Pin { tables, completeness })
    }

    async fn take(
        &self,
        writers: &[ListedWriter],
        as_of: Micros,
        ends: &Offsets,
    ) -> Result<(Taken, Completeness, Arc<View>), QueryError> {
        let mut view = self.view();
        for attempt in 1..=PINS {
            let judge = |ledger: &Ledger| ledger.judge(writers, as_of, 0);
            let taken = self.tail.take_with(&view.starts, ends, None, judge);
            // What the tail has no room for the lake may hold by now.
            let behind = taken.as_ref().is_none_or(|(t, _)| t.behind + t.bodies_behind > 0);
            let renewed = if behind && attempt == 1 || taken.is_none() {
                Some(self.renew().await)
            } else {
                None
            };
            match (taken, renewed) {
                (_, Some(Ok(renewed))) => view = renewed,
                (Some((taken, completeness)), _) => return Ok((taken, completeness, view)),
                (None, Some(Err(error))) => return Err(QueryError::Unavailable(error.to_string())),
                (None, None) => {}
            }
        }
        Err(QueryError::Unavailable("the lake moves on faster than it can be pinned".to_owned()))
    }

    /// Pins what is below a cut, as soon as this node has come that far.
    ///
    /// # Errors
    /// [`QueryError::NotYet`] when it has not in time.
    pub(crate) async fn pin_at(
        &self,
        cut: &Cut,
        writers: &[ListedWriter],
    ) -> Result<Pin, QueryError> {
        let (view, taken) = self.take_at(cut).await?;
        let ledger = self.ledger_at(cut, &view, &taken).await?;
        // Nobody can have seen the future.
        let as_of = Uint::new(cut.as_of.get().min(now().get()));
        let completeness = ledger.judge(writers, as_of, 0).holding(&taken, cut.to_string());
        let tables = self.tables(&view, &taken, Some(cut), &completeness)?;
        Ok(Pin { tables, completeness })
    }

    async fn take_at(&self, cut: &Cut) -> Result<(Arc<View>, Taken), QueryError> {
        let until = Instant::now() + REACH;
        loop {
            let view = self.view();
            let stored = |partition| view.starts.get(partition).copied().unwrap_or(0);
            let ahead = cut.ends.iter().filter(|(partition, end)| stored(partition) < **end);
            let ahead: Offsets = ahead.map(|(partition, end)| (partition.clone(), *end)).collect();
            self.tail.reach(&ahead, CATCH_UP).await;
            let taken = self.tail.take_with(&view.starts, &cut.ends, Some(&cut.ends), |_| ());
            let short = match taken {
                Some((taken, ())) => match short(cut, &taken) {
                    None => return Ok((view, taken)),
                    Some(short) => short,
                },
                None => "the lake moves on faster than it can be pinned".to_owned(),
            };
            if Instant::now() >= until {
                return Err(QueryError::NotYet(short));
            }
            let renewed = self.renew().await;
            renewed.map_err(|error| QueryError::Unavailable(error.to_string()))?;
        }
    }

    /// What the rows below a cut sum up to. Only the rows tell, so the newest results are kept.
    async fn ledger_at(
        &self,
        cut: &Cut,
        view: &View,
        taken: &Taken,
    ) -> Result<Arc<Ledger>, QueryError> {
        let name = cut.to_string();
        if let Some(known) = self.kept_cut(&name) {
            return Ok(known);
        }
        let below = self.below(Topic::Events, cut);
        let schema = view.events.schema();
        let slice = Slice::of("events", &view.events, &schema, Some(&below));
        let ledger = Arc::new(stored::ledger(&self.sessions, slice, &taken.events).await?);
        self.keep_cut(name, Arc::clone(&ledger));
        Ok(ledger)
    }

    /// The ends of the partitions of `topic`; those that the cut does not name had nothing then.
    fn below(&self, topic: Topic, cut: &Cut) -> Below {
        let followed = self.tail.partitions().into_iter().map(|p| (cut.end(&p), p));
        let ends = followed.map(|(end, partition)| (partition, end)).collect();
        Below::of(topic, &ends, |partition| self.app_id(partition))
    }

    /// The tables of a question.
    fn tables(
        &self,
        view: &View,
        taken: &Taken,
        cut: Option<&Cut>,
        completeness: &Completeness,
    ) -> Result<Tables, DataFusionError> {
        let mut tables = Tables::new();
        for (name, topic, snapshot, tail) in [
            ("events", Topic::Events, &view.events, &taken.events),
            ("bodies", Topic::Bodies, &view.bodies, &taken.bodies),
        ] {
            let below = cut.map(|cut| self.below(topic, cut));
            let schema = snapshot.schema();
            let slice = Slice::of(name, snapshot, &schema, below.as_ref());
            tables.insert(name, slice.table(tail)?);
        }
        tables.insert("columns", describe::columns()?);
        tables.insert("completeness", describe::completeness(completeness)?);
        Ok(tables)
    }
}

/// Where this node has not come as far as the cut.
fn short(cut: &Cut, taken: &Taken) -> Option<String> {
    let reached = |partition| taken.reached.get(partition).copied().unwrap_or(0);
    let short = cut.ends.iter().find(|(partition, end)| reached(partition) < **end);
    short.map(|(partition, end)| {
        let (topic, name) = (partition.topic.name(), &partition.name);
        format!("{topic}/{name} is read up to {} of {end} here", reached(partition))
    })
}

#[cfg(test)]
mod tests;
