//! The demo's agents: a fixed script of calls through the proxy, in both protocol eras.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};

use super::ehr::{mrn, patient_id};
use crate::http::Http;

/// An agent of the demo, and the person whom it serves.
pub struct Agent {
    /// The agent's id.
    pub id: &'static str,
    /// The human's id.
    pub user: &'static str,
    /// Why the data is used (HL7 ActReason).
    pub purpose: &'static str,
    /// Whether it speaks 2026-07-28; otherwise 2025-11-25.
    pub modern: bool,
    script: fn() -> Vec<(&'static str, Value)>,
}

/// Everyone who calls.
pub const AGENTS: [Agent; 3] = [
    Agent {
        id: "triage-assistant",
        user: "clinician-17",
        purpose: "TREAT",
        modern: false,
        script: || {
            vec![
                ("get_patient", json!({"patient_id": patient_id(0)})),
                ("list_observations", json!({"patient_id": patient_id(0)})),
                ("get_note", json!({"patient_id": mrn(3)})),
                ("order_lab", json!({"patient_id": patient_id(0), "test": "HbA1c"})),
                ("risk_score", json!({"patient_id": patient_id(4)})),
            ]
        },
    },
    Agent {
        id: "outreach-bot",
        user: "coordinator-4",
        purpose: "HOPERAT",
        modern: true,
        script: || {
            vec![
                ("search_patients", json!({"city": "Eastbrook"})),
                ("formulary", json!({"name": "metformin"})),
                ("get_patient", json!({"patient_id": "synthetic-999"})),
            ]
        },
    },
    Agent {
        id: "billing-agent",
        user: "billing-2",
        purpose: "HPAYMT",
        modern: true,
        script: || {
            vec![
                ("get_patient", json!({"patient_id": patient_id(7)})),
                ("get_patient", json!({"patient_id": patient_id(8)})),
            ]
        },
    },
];

/// Lets every agent go through its script once; how many calls were answered.
pub async fn run(url: &str, keys: &[(&'static str, String)]) -> anyhow::Result<usize> {
    let http = Http::new(Duration::from_secs(30));
    let url: Arc<str> = Arc::from(url);
    let mut running = Vec::new();
    for (agent, (_, key)) in AGENTS.iter().zip(keys) {
        let mut session = Session {
            http: http.clone(),
            url: url.clone(),
            key: key.clone(),
            agent,
            id: None,
            next: 1,
        };
        running.push(tokio::spawn(async move { session.play().await }));
    }
    let mut calls = 0;
    for agent in running {
        calls += agent.await.context("an agent of the demo stopped")??;
    }
    Ok(calls)
}

struct Session {
    http: Http,
    url: Arc<str>,
    key: String,
    agent: &'static Agent,
    id: Option<String>,
    next: u64,
}

impl Session {
    async fn play(&mut self) -> anyhow::Result<usize> {
        if !self.agent.modern {
            self.initialize().await?;
        }
        let script = (self.agent.script)();
        let calls = script.len();
        for (tool, arguments) in script {
            self.request("tools/call", json!({"name": tool, "arguments": arguments})).await?;
        }
        Ok(calls)
    }

    async fn initialize(&mut self) -> anyhow::Result<()> {
        let client = json!({"name": self.agent.id, "version": "1.0"});
        let params =
            json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        self.request("initialize", params).await?;
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        self.post(initialized, "notifications/initialized", None).await?;
        Ok(())
    }

    async fn request(&mut self, method: &str, mut params: Value) -> anyhow::Result<Value> {
        if self.agent.modern {
            params["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": self.agent.id, "version": "1.0"},
                "io.modelcontextprotocol/clientCapabilities": {}
            });
        }
        let name = params["name"].as_str().map(str::to_owned);
        let message =
            json!({"jsonrpc": "2.0", "id": self.next, "method": method, "params": params});
        self.next += 1;
        let answer = self.post(message, method, name).await?;
        serde_json::from_slice(message_of(&answer)).context("the answer is no JSON")
    }

    async fn post(
        &mut self,
        message: Value,
        method: &str,
        name: Option<String>,
    ) -> anyhow::Result<bytes::Bytes> {
        let mut headers = vec![
            ("authorization", format!("Bearer {}", self.key)),
            ("content-type", "application/json".to_owned()),
            ("accept", "application/json, text/event-stream".to_owned()),
        ];
        if self.agent.modern {
            headers.push(("mcp-protocol-version", "2026-07-28".to_owned()));
            headers.push(("mcp-method", method.to_owned()));
            headers.extend(name.map(|name| ("mcp-name", name)));
        } else if method != "initialize" {
            headers.push(("mcp-protocol-version", "2025-11-25".to_owned()));
        }
        headers.extend(self.id.clone().map(|id| ("mcp-session-id", id)));
        let answer = self.http.send(Method::POST, &self.url, &headers, message.to_string()).await?;
        if !answer.status.is_success() {
            let text = String::from_utf8_lossy(&answer.body);
            bail!("{} was answered with {}: {text}", self.agent.id, answer.status);
        }
        let session = answer.headers.get("mcp-session-id").and_then(|v| v.to_str().ok());
        self.id = session.map(str::to_owned).or(self.id.take());
        Ok(answer.body)
    }
}

/// The JSON-RPC message of a JSON answer, or of the last `data:` line of a stream.
fn message_of(answer: &[u8]) -> &[u8] {
    let lines = answer.split(|b| *b == b'\n').rev();
    lines.filter_map(|line| line.strip_prefix(b"data:")).next().unwrap_or(answer)
}
