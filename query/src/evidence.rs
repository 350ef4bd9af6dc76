//! `GET /v1/evidence`: an evidence package of a period, made from what is sealed.
//!
//! Asking for it is recorded before anything is read; that it was handed out, with its hash, is
//! recorded before its first byte leaves. A package is made on disk, one at a time, by a thread of
//! its own, and checked there as its reader will.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use custody_journal::Writer;
use custody_lake::Lake;
use custody_lake::evidence::{Challenge, ExportError, Filter, Judged, Order, Scope, export};
use custody_schemas::event::Draft;
use custody_schemas::id::{Bytes, Hash, Micros, Uint};
use custody_schemas::kind::Kind;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::access::Asker;
use crate::audit::Asked;
use crate::error::QueryError;
use crate::reports::Period;

/// What `GET /v1/evidence` takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvidenceOf {
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) purpose: Option<String>,
    population: Option<Scope>,
    user: Option<String>,
    agent: Option<String>,
    patient: Option<String>,
    tool: Option<String>,
    /// The auditor's word for a sample, and how much of it.
    seed: Option<String>,
    count: Option<u32>,
}

/// How many records are drawn where nobody says.
const SAMPLE: u32 = 100;

impl EvidenceOf {
    /// What a package of this kind opens.
    pub(crate) fn filter(&self) -> Result<Option<Filter>, QueryError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let filter = Filter {
            user: given(&self.user),
            agent: given(&self.agent),
            patient: given(&self.patient),
            tool: given(&self.tool),
        };
        let problem = match (self.population.unwrap_or_default(), filter.is_empty()) {
            (Scope::Full, true) => return Ok(None),
            (Scope::Flags, false) => return Ok(Some(filter)),
            (Scope::Full, false) => {
                "a full package holds every flagged event: with a filter ask for population=flags"
            }
            (Scope::Flags, true) => {
                "population=flags opens what a filter cites: name a user, agent, patient or tool"
            }
        };
        Err(QueryError::BadRequest(problem.to_owned()))
    }

    /// The sample that it asks for.
    pub(crate) fn challenge(&self) -> Result<Option<Challenge>, QueryError> {
        let Some(seed) = self.seed.clone() else { return Ok(None) };
        let challenge = Challenge { seed, count: self.count.unwrap_or(SAMPLE) };
        match challenge.mistake() {
            Some(mistake) => Err(QueryError::BadRequest(mistake.to_owned())),
            None => Ok(Some(challenge)),
        }
    }

    /// As a question is recorded.
    pub(crate) fn params(&self, period: &Period) -> Map<String, Value> {
        let params = json!({
            "from": period.from_utc, "to": period.to_utc, "purpose": self.purpose,
            "population": self.population.unwrap_or_default(), "user": self.user,
            "agent": self.agent, "patient": self.patient, "tool": self.tool, "seed": self.seed,
            "count": self.count,
        });
        let params = params.as_object().cloned().unwrap_or_default();
        params.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

/// A package that may leave.
pub(crate) struct Package {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) judged: Judged,
}

/// Makes the package and records that it leaves.
pub(crate) async fn make(
    lake: Lake,
    scratch: PathBuf,
    writer: &Writer,
    asker: &Asker,
    asked: &Asked,
    (of, period): (&EvidenceOf, &Period),
) -> Result<Package, QueryError> {
    let moment = |text: &str| -> Result<Micros, QueryError> {
        let at: Timestamp =
            text.parse().map_err(|_| QueryError::BadRequest(format!("{text:?} is no instant")))?;
        Ok(Uint::new(u64::try_from(at.as_microsecond()).unwrap_or(0)))
    };
    let order = Order {
        from: moment(&period.from_utc)?,
        to: moment(&period.to_utc)?,
        made_at: now(),
        asked: about(asker, asked, period, of.purpose.as_deref()),
        filter: of.filter()?,
        challenge: of.challenge()?,
        scratch,
    };
    let (package, sum, order) = apart(lake, order).await?;
    if let Some(finding) = package.judged.findings.first() {
        let text =
            format!("the package would not be valid: {}: {}", finding.place, finding.problem);
        return Err(QueryError::Unavailable(text));
    }
    let draft = exported(asker, asked, &order, &package, sum);
    let recorded = writer.append(draft, Vec::new()).await;
    recorded.map_err(|error| QueryError::Audit(error.to_string()))?;
    Ok(package)
}

/// Makes it on a thread of its own: unfolding and hashing would hold up everybody else.
async fn apart(lake: Lake, order: Order) -> Result<(Package, Hash, Order), QueryError> {
    let runtime = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || -> Result<_, ExportError> {
        let (mut file, judged) = runtime.block_on(export(&lake, &order))?;
        let (mut sum, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 1 << 16]);
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            sum.update(piece.get(..read).unwrap_or_default());
            bytes += read as u64;
        }
        file.seek(SeekFrom::Start(0))?;
        Ok((Package { file, bytes, judged }, Bytes(sum.finalize().into()), order))
    });
    let made = work.await.map_err(|error| QueryError::Internal(error.to_string()))?;
    made.map_err(|error| match error {
        ExportError::TooMuch => QueryError::BadRequest(error.to_string()),
        ExportError::Lake(_)
        | ExportError::ReadBack(_)
        | ExportError::Seal(_)
        | ExportError::Unsealed
        | ExportError::Broken(_)
        | ExportError::Zip(_)
        | ExportError::Scratch(_) => QueryError::Unavailable(error.to_string()),
    })
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uint::new(u64::try_from(since.as_micros()).unwrap_or(0))
}

fn about(
    asker: &Asker,
    asked: &Asked,
    period: &Period,
    purpose: Option<&str>,
) -> Map<String, Value> {
    let who = serde_json::to_value(asker.who()).unwrap_or_default();
    let about = json!({
        "who": who, "purpose": purpose, "query": asked.call().to_string(), "period": period,
    });
    about.as_object().cloned().unwrap_or_default()
}

fn exported(asker: &Asker, asked: &Asked, order: &Order, package: &Package, sum: Hash) -> Draft {
    let mut draft = Draft::new(Kind::EvidenceExported)
        .with("sha256", sum.to_string())
        .with("bytes", package.bytes)
        .with("from", order.from)
        .with("to", order.to)
        .with("log_size", package.judged.log_size)
        .with("records", package.judged.opened);
    if let Some(filter) = &order.filter {
        draft = draft.with("filter", filter.words());
    }
    if let Some(challenge) = &order.challenge {
        draft = draft.with("seed", challenge.seed.clone()).with("drawn", package.judged.drawn);
    }
    draft.call = Some(asked.call());
    draft.who = Some(asker.who().into());
    draft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_needs_flags_and_flags_a_filter() {
        let of = |population, patient: Option<&str>| {
            let patient = patient.map(str::to_owned);
            EvidenceOf { population, patient, ..EvidenceOf::default() }.filter()
        };
        assert_eq!(of(None, None).unwrap(), None);
        assert_eq!(of(Some(Scope::Full), Some("")).unwrap(), None);
        let cited = of(Some(Scope::Flags), Some("synthetic-1")).unwrap().unwrap();
        assert_eq!(cited.words(), "patient \"synthetic-1\"");
        assert!(of(None, Some("synthetic-1")).is_err());
        assert!(of(Some(Scope::Flags), None).is_err());
    }
}
