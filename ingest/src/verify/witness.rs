//! Witnesses: the log's head is shown to others, who cosign it if it has grown out of what they saw
//! last.
//!
//! The head that enough of them have cosigned stands beside the log with their lines. A witness
//! that has seen more than the log holds, or another tree, is the sign of a rollback or of a second
//! history: that is told once as an alert, and no head is cosigned until somebody has looked.
//! Whoever does not answer is asked again at the next pass; nothing waits for him.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use custody_lake::ask::{Refusal, Submit, alone, ask};
use custody_lake::tiles::{DeploymentLog, Seals, WITNESSED_PATH};
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::key::Signer;
use custody_schemas::seal::policy::{Policy, Witness};
use tokio::task::JoinSet;

use super::stream::stated;
use super::{Alert, PassError};

/// The most of an answer that becomes part of a note.
const MAX_LINES_BYTES: usize = 16 << 10;

/// Whom to ask, and how.
#[derive(Clone)]
pub struct Witnesses {
    /// Who they are, and how many of them are enough.
    pub policy: Arc<Policy>,
    /// The way to them.
    pub submit: Submit,
}

/// How one witness stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WitnessStatus {
    /// Its name in the policy.
    pub name: String,
    /// The size of the log that it has cosigned last.
    pub size: u64,
    /// How often it did not cosign what it was shown.
    pub failures: u64,
    /// Why it did not, the last time.
    pub problem: Option<String>,
}

/// One who asks witnesses.
pub(crate) struct Asking {
    witnesses: Witnesses,
    seals: Seals,
    known: Vec<WitnessStatus>,
    /// The head that is being cosigned, as far as it got.
    note: Option<(u64, String)>,
    /// The size that is kept as cosigned.
    kept: Option<u64>,
    told: BTreeSet<(String, &'static str)>,
}

impl Asking {
    pub(crate) fn new(witnesses: Witnesses, seals: Seals) -> Self {
        let name = |witness: &Witness| WitnessStatus {
            name: witness.name.clone(),
            ..WitnessStatus::default()
        };
        let known = witnesses.policy.witnesses().iter().map(name).collect();
        Self { witnesses, seals, known, note: None, kept: None, told: BTreeSet::new() }
    }

    /// Shows the log's head to all who have not cosigned it; what there is to be alarmed about.
    pub(crate) async fn pass(
        &mut self,
        log: &mut DeploymentLog,
        signer: &Signer,
    ) -> Result<Vec<Alert>, PassError> {
        let Some((head, note)) = log.head(signer).await? else { return Ok(Vec::new()) };
        let note = match self.note.take() {
            Some((size, note)) if size == head.size => note,
            _ => self.begin(head.size, note).await?,
        };
        let (note, refusals) = self.ask(&head, note).await;
        self.keep(head.size, &note).await?;
        self.note = Some((head.size, note));
        if refusals.iter().any(|(_, refusal)| *refusal != Refusal::Fork(head.size)) {
            // Another worker may have appended meanwhile, and shown what it appended.
            log.mend(signer).await?;
        }
        Ok(self.alerts(log.size(), refusals))
    }

    /// The size that enough have cosigned, and how each stands.
    pub(crate) fn status(&self) -> (u64, Vec<WitnessStatus>) {
        (self.kept.unwrap_or(0), self.known.clone())
    }

    /// Whatever is kept of this head already, else the head alone.
    async fn begin(&mut self, size: u64, note: String) -> Result<String, PassError> {
        let kept = self.seals.text(WITNESSED_PATH).await?;
        let of = kept.as_deref().and_then(stated).map(|kept| kept.size);
        self.kept = of;
        Ok(kept.filter(|_| of == Some(size)).unwrap_or(note))
    }

    /// Asks all at once.
    async fn ask(
        &mut self,
        head: &Checkpoint,
        mut note: String,
    ) -> (String, Vec<(usize, Refusal)>) {
        let mut asked = JoinSet::new();
        let alone = alone(&note);
        for (index, witness) in self.witnesses.policy.witnesses().iter().enumerate() {
            let Some(url) = &witness.url else { continue };
            if witness.key.cosigned(&note).is_ok_and(|at| at.is_some()) {
                self.known[index].size = head.size;
                continue;
            }
            let (seals, submit) = (self.seals.clone(), Arc::clone(&self.witnesses.submit));
            let (url, old, size) = (url.clone(), self.known[index].size, head.size);
            let alone = alone.clone();
            asked.spawn(
                async move { (index, ask(&seals, &submit, &url, old, (size, &alone)).await) },
            );
        }
        let mut answers = BTreeMap::new();
        while let Some(answered) = asked.join_next().await {
            answers.extend(answered.ok());
        }
        let mut refusals = Vec::new();
        for (index, answer) in answers {
            match answer.and_then(|lines| self.add(index, &mut note, &lines)) {
                Ok(()) => {
                    self.known[index].size = head.size;
                    self.known[index].problem = None;
                }
                Err(refusal) => refusals.push((index, refusal)),
            }
        }
        (note, refusals)
    }

    /// Adds the witness's own lines to the note, and nobody else's.
    fn add(&self, index: usize, note: &mut String, lines: &str) -> Result<(), Refusal> {
        let key = &self.witnesses.policy.witnesses()[index].key;
        for line in lines.lines().filter(|line| line.len() <= MAX_LINES_BYTES) {
            let longer = format!("{note}{line}\n");
            if key.cosigned(&longer).is_ok_and(|at| at.is_some()) {
                *note = longer;
                return Ok(());
            }
        }
        Err(Refusal::Unanswered("its answer holds no valid cosignature by its key".to_owned()))
    }

    /// Writes the cosigned head down once there are enough lines, unless a larger one is there.
    async fn keep(&mut self, size: u64, note: &str) -> Result<(), PassError> {
        let judged = self.witnesses.policy.judge(note).unwrap_or_default();
        if !judged.is_enough || judged.by.is_empty() {
            return Ok(());
        }
        let kept = self.seals.text(WITNESSED_PATH).await?;
        let of = kept.as_deref().and_then(stated).map_or(0, |kept| kept.size);
        let grows = size > of || size == of && kept.as_deref().is_none_or(|k| k.len() < note.len());
        if grows {
            self.seals.put(WITNESSED_PATH, note.to_owned()).await?;
        }
        self.kept = Some(size.max(of));
        Ok(())
    }

    fn alerts(&mut self, size: u64, refusals: Vec<(usize, Refusal)>) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for (index, refusal) in refusals {
            let status = &mut self.known[index];
            status.failures += 1;
            let (finding, at, problem) = match refusal {
                Refusal::Ahead(at) if at > size => (
                    Some("rolled_back"),
                    at,
                    format!("it has seen {at} entries of the log, which has only {size}"),
                ),
                Refusal::Ahead(at) => (None, at, format!("it has seen {at} entries already")),
                Refusal::Fork(at) => {
                    (Some("forked"), at, format!("it has seen another log of {at} entries"))
                }
                Refusal::Unanswered(problem) => (None, 0, problem),
            };
            tracing::warn!(witness = %status.name, problem, "a witness has not cosigned the log");
            status.problem = Some(problem);
            if let Some(finding) = finding
                && self.told.insert((status.name.clone(), finding))
            {
                let witness = Some(status.name.clone());
                alerts.push(Alert { place: "log".to_owned(), finding, at, witness });
            }
        }
        alerts
    }
}

#[cfg(test)]
mod tests;
