//! The way to the witnesses that the configuration's policy names.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
#[cfg(feature = "ingest")]
use custody_ingest::verify::Witnesses;
use custody_lake::ask::{Answer, Answering, Submit};
use custody_schemas::seal::policy::Policy;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};

#[cfg(feature = "ingest")]
use crate::config::Config;
use crate::outbound::{Outbound, client};

/// How long one may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The most that is read of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Whom to ask, if anybody.
#[cfg(feature = "ingest")]
pub(super) fn witnesses(config: &Config) -> anyhow::Result<Option<Witnesses>> {
    let Some(policy) = &config.witness.policy else { return Ok(None) };
    if policy.witnesses().iter().all(|witness| witness.url.is_none()) {
        tracing::warn!("nobody cosigns the log: the policy names no witness with an address");
        return Ok(None);
    }
    Ok(Some(Witnesses { policy: Arc::clone(policy), submit: to(policy)? }))
}

/// The way to the witnesses of a policy.
pub fn to(policy: &Policy) -> anyhow::Result<Submit> {
    let mut urls = policy.witnesses().iter().filter_map(|witness| witness.url.as_deref());
    Ok(submit(client(urls.any(|url| url.starts_with("https:")), ANSWER)?))
}

fn submit(client: Outbound) -> Submit {
    Arc::new(move |url, body| -> Answering {
        let client = client.clone();
        Box::pin(async move {
            let answering = post(&client, &url, body);
            match tokio::time::timeout(ANSWER, answering).await {
                Ok(answer) => answer.map_err(|error| format!("{url}: {error:#}")),
                Err(_) => Err(format!("{url}: no answer in {} s", ANSWER.as_secs())),
            }
        })
    })
}

async fn post(client: &Outbound, url: &str, body: String) -> anyhow::Result<Answer> {
    let request = Request::builder().method(Method::POST).uri(url);
    let request = request.body(Full::new(Bytes::from(body)))?;
    let (head, body) = client.request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Answer { status: head.status.as_u16(), body: body.to_bytes().to_vec() })
}
