//! `GET /v1/tools` and `POST /v1/tools/approve`: the tools of all servers as control state knows
//! them, and the approval of a changed definition.
//!
//! Both are recorded like a question before anything is told or done. An approval is moreover
//! `control.changed`, durable before it is in force.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Query, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use custody_journal::control::{Change, Control};
use custody_schemas::event::Draft;
use custody_schemas::id::Hash;
use custody_schemas::kind::Kind;
use custody_schemas::tools::{self, Pinned, Standing, Tool, Tools};
use custody_schemas::words::Activity;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{BODY_WITHIN, Edge, Peer, Refusal};
use crate::access::{Asker, Right};
use crate::audit::{self, Asked};
use crate::engine::now;
use crate::error::QueryError;

/// What `GET /v1/tools` takes.
#[derive(Deserialize)]
pub(super) struct Which {
    server: Option<String>,
}

/// What `POST /v1/tools/approve` takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Approval {
    server: String,
    /// The tools; every changed one of the server when it is empty.
    #[serde(default)]
    tools: Vec<String>,
    /// The definition that was looked at: another one is not approved.
    #[serde(default)]
    definition: Option<Hash>,
}

/// An approval that is to be made.
struct Approved {
    tool: String,
    was: Option<Hash>,
    now: Hash,
}

impl Edge {
    fn control(&self) -> Result<&Control, QueryError> {
        let none = || QueryError::Unavailable("control state cannot be seen from here".to_owned());
        self.options.control.as_ref().ok_or_else(none)
    }

    async fn asked(
        &self,
        asker: &Asker,
        method: &str,
        activity: Activity,
        body: Value,
    ) -> Result<Asked, QueryError> {
        let (writer, metrics) = (self.engine.writer(), self.engine.metrics());
        let what = (method.to_owned(), activity);
        audit::open(&writer, metrics, asker, what, body.to_string().into_bytes()).await
    }
}

/// Lists tools.
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    Query(which): Query<Which>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asker = edge.admit(&headers, &peer, Right::Sql)?;
    let control = edge.control()?;
    let body = json!({ "server": which.server });
    let mut asked = edge.asked(&asker, "tools/list", Activity::R, body).await?;
    let rows = rows(control, which.server.as_deref());
    asked.count(rows.len());
    asked.end(None);
    Ok(Json(json!({ "tools": rows })).into_response())
}

fn rows(control: &Control, only: Option<&str>) -> Vec<Value> {
    let state = control.state();
    let entries = state.entries(tools::PREFIX);
    let servers: Vec<(&str, Tools)> = entries
        .filter_map(|(key, entry)| {
            Some((key.strip_prefix(tools::PREFIX)?, tools::read(Some(entry))))
        })
        .collect();
    let mut rows = Vec::new();
    for (server, tools) in servers.iter().filter(|(name, _)| only.is_none_or(|only| only == *name))
    {
        for (name, tool) in tools {
            let others = servers
                .iter()
                .filter(|(other, theirs)| other != server && theirs.contains_key(name));
            let also_on: Vec<&str> = others.map(|(other, _)| *other).collect();
            rows.push(row(server, name, tool, &also_on));
        }
    }
    rows
}

fn row(server: &str, name: &str, tool: &Tool, also_on: &[&str]) -> Value {
    let pinned = tool.pinned.as_ref();
    json!({
        "server": server,
        "tool": name,
        "standing": tool.standing().as_str(),
        "seen": tool.seen.to_string(),
        "seen_at": tool.seen_at.get(),
        "pinned": pinned.map(|pinned| pinned.hash.to_string()),
        "pinned_at": pinned.map(|pinned| pinned.at.get()),
        "pinned_by": pinned.and_then(|pinned| pinned.by.clone()),
        "also_on": also_on,
    })
}

/// Approves definitions.
pub(super) async fn approve(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    let asker = edge.admit(&headers, &peer, Right::Approve)?;
    let control = edge.control()?.clone();
    let body = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, &())).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return Ok(rejection.into_response()),
        Err(_) => return Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
    };
    let approval: Approval = serde_json::from_slice(&body).map_err(|error| {
        let form = r#"{"server": "…", "tools": ["…"], "definition": "…"}"#;
        QueryError::BadRequest(format!("the body is not of the form {form}: {error}"))
    })?;
    let said = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut asked = edge.asked(&asker, "tools/approve", Activity::U, said).await?;
    match edge.approve(&asked, &asker, control, &approval).await {
        Ok(approved) => {
            asked.count(approved.len());
            asked.end(None);
            let row = |one: &Approved| {
                let was = one.was.map(|hash| hash.to_string());
                json!({ "tool": one.tool, "was": was, "now": one.now.to_string() })
            };
            let rows: Vec<_> = approved.iter().map(row).collect();
            Ok(Json(json!({ "server": approval.server, "approved": rows })).into_response())
        }
        Err(error) => {
            asked.end(Some(&error));
            Err(error.into())
        }
    }
}

impl Edge {
    async fn approve(
        &self,
        asked: &Asked,
        asker: &Asker,
        control: Control,
        approval: &Approval,
    ) -> Result<Vec<Approved>, QueryError> {
        let key = tools::key(&approval.server);
        let chosen = choose(&tools::read(control.get(&key).as_ref()), approval)?;
        for one in &chosen {
            let mut draft = Draft::new(Kind::ControlChanged)
                .with("key", key.as_str())
                .with("tool", one.tool.as_str())
                .with("now", one.now.to_string());
            if let Some(was) = one.was {
                draft = draft.with("was", was.to_string());
            }
            draft.call = Some(asked.call());
            draft.who = Some(asked.who());
            let recorded = self.engine.writer().append(draft, Vec::new()).await;
            recorded.map_err(|error| QueryError::Audit(error.to_string()))?;
        }
        let by = asker.name.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut missed = None;
            control.update(&key, |entry| {
                let mut tools = tools::read(entry);
                missed = pin(&mut tools, &chosen, &by);
                if missed.is_none() { Change::Set(tools::write(&tools)) } else { Change::Keep }
            })?;
            Ok::<_, custody_journal::control::ControlError>((missed, chosen))
        });
        let done = work.await.map_err(|error| QueryError::Internal(error.to_string()))?;
        match done {
            Ok((None, chosen)) => Ok(chosen),
            Ok((Some(tool), _)) => Err(changed_again(&tool)),
            Err(error) => Err(QueryError::Unavailable(error.to_string())),
        }
    }
}

/// Pins what was chosen, if it is still what was seen last; else the tool that is not.
fn pin(tools: &mut Tools, chosen: &[Approved], by: &str) -> Option<String> {
    for one in chosen {
        match tools.get_mut(&one.tool) {
            Some(tool) if tool.seen == one.now => {
                let by = Some(by.chars().take(64).collect());
                tool.pinned = Some(Pinned { hash: one.now, at: now(), by });
            }
            _ => return Some(one.tool.clone()),
        }
    }
    None
}

fn changed_again(tool: &str) -> QueryError {
    QueryError::BadRequest(format!(
        "{tool} has changed again meanwhile, and nothing is approved; look at it with `custody tools \
         diff`"
    ))
}

/// What an approval means now.
fn choose(known: &Tools, approval: &Approval) -> Result<Vec<Approved>, QueryError> {
    let wrong = QueryError::BadRequest;
    let approved = |(name, tool): (&String, &Tool)| Approved {
        tool: name.clone(),
        was: tool.pinned.as_ref().map(|pinned| pinned.hash),
        now: tool.seen,
    };
    if known.is_empty() {
        return Err(wrong(format!("no tool of {:?} was ever listed", approval.server)));
    }
    if approval.tools.is_empty() {
        let changed = known.iter().filter(|(_, tool)| tool.standing() == Standing::Changed);
        return Ok(changed.map(approved).collect());
    }
    let find = |name: &String| {
        let stored = tools::name(name);
        let missing = || wrong(format!("{:?} has no tool {name:?}", approval.server));
        known.get_key_value(&stored).ok_or_else(missing)
    };
    let found = approval.tools.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let other = found.iter().find(|(_, tool)| approval.definition.is_some_and(|d| d != tool.seen));
    match other {
        Some((name, _)) => Err(changed_again(name)),
        None => Ok(found.into_iter().map(approved).collect()),
    }
}

#[cfg(test)]
mod tests {
    use custody_schemas::id::{Bytes, Uint};

    use super::*;

    fn known() -> Tools {
        let tool = |seen, pinned: Option<u8>| Tool {
            seen: Bytes([seen; 32]),
            seen_at: Uint::new(1),
            pinned: pinned.map(|hash| Pinned {
                hash: Bytes([hash; 32]),
                at: Uint::new(1),
                by: None,
            }),
        };
        Tools::from([
            ("same".to_owned(), tool(1, Some(1))),
            ("changed".to_owned(), tool(2, Some(1))),
            ("new".to_owned(), tool(3, None)),
        ])
    }

    fn approval(tools: &[&str], definition: Option<u8>) -> Approval {
        let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
        let definition = definition.map(|hash| Bytes([hash; 32]));
        Approval { server: "ehr".to_owned(), tools, definition }
    }

    fn chosen(approval: &Approval) -> Vec<String> {
        choose(&known(), approval).unwrap().into_iter().map(|one| one.tool).collect()
    }

    #[test]
    fn what_has_changed_is_approved_unless_tools_are_named() {
        assert_eq!(chosen(&approval(&[], None)), ["changed"]);
        assert_eq!(chosen(&approval(&["new", "same"], None)), ["new", "same"]);
        assert!(choose(&known(), &approval(&["other"], None)).is_err());
        assert!(choose(&Tools::new(), &approval(&[], None)).is_err());
    }

    #[test]
    fn a_definition_that_nobody_has_looked_at_is_not_approved() {
        assert_eq!(chosen(&approval(&["changed"], Some(2))), ["changed"]);
        assert!(choose(&known(), &approval(&["changed"], Some(9))).is_err());
        let mut tools = known();
        let chosen = choose(&tools, &approval(&["changed"], None)).unwrap();
        tools.get_mut("changed").unwrap().seen = Bytes([9; 32]);
        assert_eq!(pin(&mut tools, &chosen, "ann").as_deref(), Some("changed"));
        tools = known();
        assert_eq!(pin(&mut tools, &chosen, "ann"), None);
        assert_eq!(tools["changed"].standing(), Standing::Pinned);
    }
}
