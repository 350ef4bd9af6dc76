//! `custody tools`: what the servers offer, what has changed, and who approves it. A client of the
//! query service, so that looking and approving are on the record.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, presets};
use http::Method;
use serde_json::{Value, json};

use crate::ask::{Service, encoded, short};

/// The longest definitions that are compared line by line.
const MAX_LINES: usize = 3000;
/// How many digits of a hash are shown in a table.
const DIGITS: usize = 12;

/// `custody tools`
#[derive(clap::Args, Debug)]
pub struct Tools {
    #[command(subcommand)]
    command: ToolsCommand,
    #[command(flatten)]
    service: Service,
}

#[derive(Subcommand, Debug)]
enum ToolsCommand {
    /// Lists the tools that were ever listed to a client, and how they stand.
    ///
    /// `pinned`: as approved, or as first seen. `changed`: not as approved. `also on`: another
    /// server has a tool of the same name.
    List {
        /// Only this server's.
        #[arg(long)]
        server: Option<String>,
        /// Only those that have changed since they were approved.
        #[arg(long)]
        changed: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows how a tool differs from what is approved; without a change, the definition itself.
    Diff {
        /// The server.
        server: String,
        /// The tool.
        tool: String,
    },
    /// Approves tools as they were last seen.
    Approve {
        /// The server.
        server: String,
        /// The tools; all that have changed when none is named.
        tools: Vec<String>,
        /// The definition that you have looked at, as `list --json` and `diff` show it; if the tool
        /// has another one by now nothing is approved.
        #[arg(long, value_name = "HASH")]
        definition: Option<String>,
    },
}

/// Runs the command.
pub async fn run(tools: Tools) -> anyhow::Result<ExitCode> {
    let service = &tools.service;
    let text = match &tools.command {
        ToolsCommand::List { server, changed, json } => {
            let mut rows = listed(service, server.as_deref()).await?;
            rows.retain(|row| !changed || row["standing"] == "changed");
            if *json { format!("{:#}\n", json!({ "tools": rows })) } else { table(&rows) }
        }
        ToolsCommand::Diff { server, tool } => diff(service, server, tool).await?,
        ToolsCommand::Approve { server, tools, definition } => {
            approve(service, server, tools, definition.as_deref()).await?
        }
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn listed(service: &Service, server: Option<&str>) -> anyhow::Result<Vec<Value>> {
    let path = match server {
        Some(server) => format!("/v1/tools?server={}", encoded(server)),
        None => "/v1/tools".to_owned(),
    };
    let answer = service.send(Method::GET, &path, "application/json", String::new()).await?;
    let mut answer: Value =
        serde_json::from_slice(&answer.body).context("the answer is no JSON")?;
    let Value::Array(rows) = answer["tools"].take() else { bail!("the answer lists no tools") };
    Ok(rows)
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap_or_default()
}

fn table(rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["server", "tool", "standing", "seen", "approved", "by", "also on"]);
    let digits = |row: &Value, key: &str| short(text(row, key).get(..DIGITS).unwrap_or_default());
    for row in rows {
        let by = if row["pinned"].is_null() { "" } else { "(first seen)" };
        let by = row["pinned_by"].as_str().unwrap_or(by);
        let others = row["also_on"].as_array().into_iter().flatten();
        let others: Vec<&str> = others.filter_map(Value::as_str).collect();
        table.add_row([
            short(text(row, "server")),
            short(text(row, "tool")),
            text(row, "standing").to_owned(),
            digits(row, "seen"),
            digits(row, "pinned"),
            short(by),
            short(&others.join(", ")),
        ]);
    }
    let plural = if rows.len() == 1 { "tool" } else { "tools" };
    format!("{table}\n{} {plural}\n", rows.len())
}

async fn diff(service: &Service, server: &str, tool: &str) -> anyhow::Result<String> {
    let rows = listed(service, Some(server)).await?;
    let row = rows.iter().find(|row| text(row, "tool") == tool);
    let row =
        row.with_context(|| format!("{server} has no tool {tool:?}; see `custody tools list`"))?;
    let (seen, pinned) = (text(row, "seen"), text(row, "pinned"));
    let now = definition(service, server, tool, seen).await?;
    if pinned.is_empty() || pinned == seen {
        let standing = text(row, "standing");
        return Ok(format!("{server} {tool} is {standing}, definition {seen}\n{}\n", clean(&now)));
    }
    let before = definition(service, server, tool, pinned).await?;
    let lines = compare(&before, &now);
    Ok(format!(
        "--- {server} {tool} {pinned} (approved)\n+++ {server} {tool} {seen} (seen)\n{lines}"
    ))
}

/// A definition, laid out in lines.
async fn definition(
    service: &Service,
    server: &str,
    tool: &str,
    hash: &str,
) -> anyhow::Result<String> {
    let sql = "SELECT definition FROM tool_changes WHERE server = $1 AND tool = $2 \
               AND tool_definition = $3 AND definition IS NOT NULL LIMIT 1";
    let body = json!({ "sql": sql, "params": [server, tool, hash] }).to_string();
    let answer = service.send(Method::POST, "/v1/sql", "application/x-ndjson", body).await?;
    let line = answer.body.split(|b| *b == b'\n').next().unwrap_or_default();
    let row: Value = serde_json::from_slice(line).unwrap_or(Value::Null);
    let Some(definition) = row["definition"].as_str() else {
        return Ok(format!("(the definition {hash} is not stored, or not yet)"));
    };
    let value: Value = serde_json::from_str(definition).context("a definition is no JSON")?;
    Ok(format!("{value:#}"))
}

/// Without anything that moves the cursor.
fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// The lines of both, those of one only with a sign before them.
fn compare(before: &str, now: &str) -> String {
    let (before, now) = (clean(before), clean(now));
    let old: Vec<&str> = before.lines().collect();
    let new: Vec<&str> = now.lines().collect();
    if old.len().max(new.len()) > MAX_LINES {
        return "(too long to be compared here; `custody sql` shows both: the table is tool_changes)\n"
            .to_owned();
    }
    // length of the longest common subsequence of the rests from (i, j) on
    let mut common = vec![vec![0u16; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        let same = i < old.len() && j < new.len() && old[i] == new[j];
        let gone = j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]);
        let (sign, line) = match (same, gone) {
            (true, _) => (' ', old[i]),
            (false, true) => ('-', old[i]),
            (false, false) => ('+', new[j]),
        };
        i += usize::from(sign != '+');
        j += usize::from(sign != '-');
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    }
    text
}

async fn approve(
    service: &Service,
    server: &str,
    tools: &[String],
    definition: Option<&str>,
) -> anyhow::Result<String> {
    let mut body = json!({ "server": server, "tools": tools });
    if let Some(definition) = definition {
        body["definition"] = definition.into();
    }
    let path = "/v1/tools/approve";
    let answer = service.send(Method::POST, path, "application/json", body.to_string()).await?;
    let answer: Value = serde_json::from_slice(&answer.body).context("the answer is no JSON")?;
    let approved = answer["approved"].as_array().into_iter().flatten();
    let lines = approved.map(|row| {
        format!("approved {server} {} {}\n", short(text(row, "tool")), text(row, "now"))
    });
    let lines: String = lines.collect();
    Ok(if lines.is_empty() {
        "nothing to approve: no tool has changed\n".to_owned()
    } else {
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_what_is_gone_is_shown_in_its_place() {
        assert_eq!(compare("a\nb\nc\n", "a\nx\nc\nd\n"), " a\n-b\n+x\n c\n+d\n");
        assert_eq!(compare("", "a"), "+a\n");
        assert_eq!(compare("a\u{1b}[2J", "a"), "-a\u{fffd}[2J\n+a\n");
        let long = "x\n".repeat(MAX_LINES + 1);
        assert!(compare(&long, "").starts_with("(too long"));
    }

    #[test]
    fn a_table_shows_who_approved_a_tool_and_who_else_has_one_of_its_name() {
        let hash = "9f2c".repeat(16);
        let row = json!({"server": "ehr", "tool": "search", "standing": "pinned", "seen": hash,
            "pinned": hash, "pinned_by": null, "also_on": ["lab"]});
        let table = table(&[row]);
        for part in ["9f2c9f2c9f2c ", "(first seen)", "lab", "1 tool\n"] {
            assert!(table.contains(part), "{table}");
        }
    }
}
