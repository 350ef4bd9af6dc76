//! `GET /v1/evidence`: an evidence package of a period, made from what is sealed.
//!
//! Asking for it is recorded before anything is read; that it was handed out, with its hash, is
//! recorded before its first byte leaves.

use std::time::{SystemTime, UNIX_EPOCH};

use custody_journal::Writer;
use custody_lake::Lake;
use custody_lake::evidence::{Judged, Order, export};
use custody_schemas::event::Draft;
use custody_schemas::id::{Micros, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::hash;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::access::Asker;
use crate::audit::Asked;
use crate::error::QueryError;
use crate::reports::Period;

/// The largest package that is handed out, so that a careless period cannot fill the memory.
const MAX_BYTES: usize = 1 << 30;

/// Makes the package and records that it leaves.
pub(crate) async fn make(
    lake: &Lake,
    writer: &Writer,
    asker: &Asker,
    asked: &Asked,
    period: &Period,
    purpose: Option<&str>,
) -> Result<(Vec<u8>, Judged), QueryError> {
    let moment = |text: &str| -> Result<Micros, QueryError> {
        let at: Timestamp =
            text.parse().map_err(|_| QueryError::BadRequest(format!("{text:?} is no instant")))?;
        Ok(Uint::new(u64::try_from(at.as_microsecond()).unwrap_or(0)))
    };
    let order = Order {
        from: moment(&period.from_utc)?,
        to: moment(&period.to_utc)?,
        made_at: now(),
        asked: about(asker, asked, period, purpose),
    };
    let made = export(lake, &order).await;
    let (package, judged) = made.map_err(|error| QueryError::Unavailable(error.to_string()))?;
    if let Some(finding) = judged.findings.first() {
        let text =
            format!("the package would not be valid: {}: {}", finding.place, finding.problem);
        return Err(QueryError::Unavailable(text));
    }
    if package.len() > MAX_BYTES {
        let text = "the package would be larger than 1 GiB: ask for a shorter period";
        return Err(QueryError::BadRequest(text.to_owned()));
    }
    let draft = exported(asker, asked, &order, &package, &judged);
    let recorded = writer.append(draft, Vec::new()).await;
    recorded.map_err(|error| QueryError::Audit(error.to_string()))?;
    Ok((package, judged))
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

fn exported(asker: &Asker, asked: &Asked, order: &Order, package: &[u8], judged: &Judged) -> Draft {
    let mut draft = Draft::new(Kind::EvidenceExported)
        .with("sha256", hash(package).to_string())
        .with("bytes", package.len() as u64)
        .with("from", order.from)
        .with("to", order.to)
        .with("log_size", judged.log_size)
        .with("records", judged.opened);
    draft.call = Some(asked.call());
    draft.who = Some(asker.who().into());
    draft
}
