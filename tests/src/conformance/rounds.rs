//! Calls in rounds (2026-07-28): the server names the inputs that it wants, the client calls again
//! with them, and with the server's own state, which nobody else can make.

use rmcp::model::{
    ErrorData, InputRequests, InputRequiredResult, InputResponses, RequestMetaObject,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{fill, typed};

/// What makes a state ours. It guards nothing: this server is for tests.
const SECRET: &[u8] = b"a secret of a server that has none";

/// What comes next.
pub(super) enum Next {
    /// The client is to call again.
    Ask(InputRequiredResult),
    /// Everything is there.
    Done(String),
}

/// The next round of a tool or prompt, whose rounds `wanted` describes.
pub(super) fn next(
    wanted: &Value,
    name: &str,
    responses: Option<InputResponses>,
    state: Option<String>,
    meta: &RequestMetaObject,
) -> Result<Next, ErrorData> {
    let none = Vec::new();
    let rounds = wanted["rounds"].as_array().unwrap_or(&none);
    let at = match &state {
        Some(state) => open(name, state)?,
        None => 0,
    };
    let responses = responses.unwrap_or_default();
    let missing = |round: &Value| {
        let mut keys = round.as_object().into_iter().flat_map(Map::keys);
        keys.any(|key| !responses.get(key).is_some_and(Value::is_object))
    };
    let able = wanted["able"] == json!(true);
    let answered =
        rounds.get(at).is_some_and(|round| !missing(round) || able && !responses.is_empty());
    let at = if answered { at + 1 } else { at };
    let Some(round) = rounds.get(at) else {
        return Ok(Next::Done(thanks(wanted, &responses)));
    };
    let mut requests = requests(round)?;
    if able {
        keep_possible(&mut requests, meta);
    }
    let sealed = (wanted["sealed"] == json!(true)).then(|| seal(name, at));
    Ok(Next::Ask(InputRequiredResult::new(Some(requests), sealed)))
}

/// The last text, with the answers in it.
fn thanks(wanted: &Value, responses: &InputResponses) -> String {
    let said = |answer: &Value| {
        let first = answer["content"].as_object().and_then(|content| content.values().next());
        let text = answer["content"].get("text").or(first).or(answer.get("roots"));
        text.cloned().unwrap_or_default()
    };
    let with = responses.iter().map(|(key, answer)| (key.clone(), said(answer))).collect();
    fill(&wanted["then"], &with).as_str().unwrap_or_default().to_owned()
}

/// The requests of a round, from its short description.
pub(super) fn requests(round: &Value) -> Result<InputRequests, ErrorData> {
    let mut requests = Map::new();
    for (key, short) in round.as_object().into_iter().flatten() {
        let request = if let Some(message) = short.get("elicit") {
            let name = short["name"].as_str().unwrap_or("value");
            let schema = json!({"type": "object", "properties": {name: {"type": short["type"]}}, "required": [name]});
            let params = json!({"mode": "form", "message": message, "requestedSchema": schema});
            json!({"method": "elicitation/create", "params": params})
        } else if let Some(text) = short.get("sample") {
            let message = json!({"role": "user", "content": {"type": "text", "text": text}});
            json!({"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}})
        } else {
            json!({"method": "roots/list"})
        };
        requests.insert(key.clone(), request);
    }
    typed(Value::Object(requests))
}

/// Leaves only what the client says that it can do.
fn keep_possible(requests: &mut InputRequests, meta: &RequestMetaObject) {
    let able = meta.client_capabilities().unwrap_or_default();
    requests.retain(|_, request| match request {
        rmcp::model::InputRequest::CreateMessage(_) => able.sampling.is_some(),
        rmcp::model::InputRequest::Elicitation(_) => able.elicitation.is_some(),
        rmcp::model::InputRequest::ListRoots(_) => able.roots.is_some(),
        _ => false,
    });
}

fn seal(name: &str, round: usize) -> String {
    let mut hash = Sha256::new();
    hash.update(SECRET);
    hash.update(name.as_bytes());
    hash.update(round.to_be_bytes());
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{round}.{hash}")
}

fn open(name: &str, state: &str) -> Result<usize, ErrorData> {
    let round = state.split_once('.').and_then(|(round, _)| round.parse().ok());
    match round {
        Some(round) if seal(name, round) == state => Ok(round),
        Some(_) | None => {
            Err(ErrorData::invalid_params("requestState is not as this server made it", None))
        }
    }
}
