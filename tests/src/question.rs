//! Asking a query service in SQL, as its clients do.

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Map, Value, json};

use crate::http::{Answer, send};

/// One row: its columns by name.
pub type Row = Map<String, Value>;

/// Posts a question to the service at `query`; the raw answer.
///
/// # Errors
/// When there is no answer.
pub async fn ask(query: &str, question: Value, accept: &str) -> anyhow::Result<Answer> {
    let url = format!("{query}/v1/sql");
    let headers = [("content-type", "application/json"), ("accept", accept)];
    send(Method::POST, &url, &headers, question.to_string()).await
}

/// The rows of a statement's answer.
///
/// # Errors
/// When it is refused.
pub async fn sql(query: &str, statement: &str) -> anyhow::Result<Vec<Row>> {
    rows(&ask(query, json!({"sql": statement}), "application/x-ndjson").await?)
        .with_context(|| statement.to_owned())
}

/// The rows of an answer in NDJSON.
///
/// # Errors
/// When it is no such answer.
pub fn rows(answer: &Answer) -> anyhow::Result<Vec<Row>> {
    if !answer.status.is_success() {
        bail!("{} {}", answer.status, answer.text());
    }
    let lines = answer.body.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).context("a row is no object")).collect()
}

/// The only number of the only row.
///
/// # Errors
/// When the answer is anything else.
pub async fn number(query: &str, statement: &str) -> anyhow::Result<i64> {
    let rows = sql(query, statement).await?;
    let value = rows.first().and_then(|row| row.values().next()).and_then(Value::as_i64);
    value.with_context(|| format!("{statement} gave no number: {rows:?}"))
}
