//! `custody demo`: the whole product on a synthetic record, in one process, in a minute.

mod agents;
mod ehr;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::reach::{Address, Reach};
use crate::config::{Config, Key, Recipient, Rule, Server, Tools};
use crate::serve::{until_stopped, up};
use crate::{ask, token};

/// How the demo runs.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// End after the report instead of serving until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// Keep the data in this folder instead of a temporary one.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Serve only the synthetic record, at this address, until Ctrl-C: an MCP server to put behind
    /// the proxies of a cluster.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["once", "data"])]
    record: Option<SocketAddr>,
}

/// Starts the product and the synthetic record, lets the agents call, shows the report.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    if let Some(address) = options.record {
        return record_alone(address).await;
    }
    let temporary = tempfile::tempdir().context("no folder for the demo's data")?;
    let data = options.data.clone().unwrap_or_else(|| temporary.path().to_owned());
    let stop = CancellationToken::new();
    let record = ehr::serve(SocketAddr::from(([127, 0, 0, 1], 0)), stop.clone()).await?;
    let keys: Vec<_> = agents::AGENTS.iter().map(|agent| (agent.id, token::create())).collect();
    let process = up::start(configuration(data.clone(), record, &keys)?).await?;
    let at = Addresses { proxy: process.address("proxy")?, query: process.address("query")? };
    introduce(at, &keys)?;
    let url = format!("http://{}/servers/ehr/mcp", at.proxy);
    let secrets: Vec<_> = keys.iter().map(|(id, (secret, _))| (*id, secret.clone())).collect();
    let calls = agents::run(&url, &secrets).await?;
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let report = ask::report_text(&format!("http://{}", at.query), &today, &today).await?;
    show(calls, &report)?;
    if !options.once {
        invite(at, &secrets)?;
        until_stopped().await?;
    }
    process.stop().await?;
    stop.cancel();
    Ok(ExitCode::SUCCESS)
}

/// Serves the synthetic record and nothing else.
async fn record_alone(address: SocketAddr) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let serving = ehr::serve(address, stop.clone()).await;
    let record = serving.with_context(|| format!("the record cannot be served at {address}"))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "record http://{record}/mcp")?;
    out.flush()?;
    drop(out);
    until_stopped().await?;
    stop.cancel();
    Ok(ExitCode::SUCCESS)
}

/// Where the parts listen.
#[derive(Clone, Copy)]
struct Addresses {
    proxy: SocketAddr,
    query: SocketAddr,
}

/// The address if nobody listens there, else any free port of the machine.
fn free(preferred: &str) -> anyhow::Result<SocketAddr> {
    let address: SocketAddr = preferred.parse()?;
    match TcpListener::bind(address) {
        Ok(_) => Ok(address),
        Err(_) => Ok(SocketAddr::new(address.ip(), 0)),
    }
}

fn configuration(
    data: PathBuf,
    record: SocketAddr,
    keys: &[(&'static str, (String, String))],
) -> anyhow::Result<Config> {
    let mut config = Config::parse("", std::iter::empty())
        .map_err(|mistakes| anyhow::anyhow!("the defaults have mistakes: {mistakes:?}"))?;
    config.deployment.name = "demo.custody.localhost".to_owned();
    config.lake.url = format!("file:{}", data.join("lake").display());
    config.deployment.keys = data.join("keys");
    config.deployment.data = data;
    config.proxy.listen = free("127.0.0.1:7400")?;
    config.query.listen = free("127.0.0.1:7480")?;
    config.servers = vec![server(record)];
    let agents = agents::AGENTS.iter().zip(keys);
    config.keys = agents
        .map(|(agent, (_, (_, hash)))| Key {
            sha256: hash.trim_start_matches("sha256:").to_owned(),
            agent: agent.id.to_owned(),
            agent_name: None,
            user: Some(agent.user.to_owned()),
            user_name: None,
            roles: Vec::new(),
            purpose: Some(agent.purpose.to_owned()),
        })
        .collect();
    Ok(config)
}

fn server(record: SocketAddr) -> Server {
    let rule = |tool: &str| Rule { tool: Some(tool.to_owned()), ..Rule::default() };
    Server {
        name: "ehr".to_owned(),
        reach: Reach::Http(Address { url: format!("http://{record}/mcp"), ..Address::default() }),
        timeout_ms: None,
        tools: Tools::default(),
        phi: true,
        recipient: Some(Recipient {
            name: "Synthetic EHR".to_owned(),
            address: None,
            relation: Some("internal".to_owned()),
        }),
        rules: vec![
            Rule { phi: Some(false), ..rule("formulary") },
            Rule {
                system: Some("mrn".to_owned()),
                arguments: vec!["$.patient_id".to_owned()],
                ..rule("get_note")
            },
            Rule {
                system: Some("fhir:Patient".to_owned()),
                arguments: vec!["$.patient_id".to_owned()],
                ..rule("order_lab")
            },
        ],
    }
}

fn introduce(at: Addresses, keys: &[(&'static str, (String, String))]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "custody demo · synthetic patients only\n")?;
    writeln!(out, "  a synthetic EHR with {} patients behind MCP", ehr::PATIENTS)?;
    writeln!(out, "  proxy  http://{}/servers/ehr/mcp", at.proxy)?;
    writeln!(out, "  query  http://{}\n", at.query)?;
    writeln!(out, "{} agents are calling it through the proxy …\n", keys.len())?;
    Ok(())
}

fn show(calls: usize, report: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{calls} tool calls were answered. Every PHI access today:\n")?;
    writeln!(out, "{report}")?;
    Ok(())
}

fn invite(at: Addresses, secrets: &[(&'static str, String)]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let query = at.query;
    let custody = std::env::args().next().unwrap_or_else(|| "custody".to_owned());
    writeln!(out, "Open   http://{query}   in a browser, or try in another terminal:\n")?;
    writeln!(
        out,
        "  {custody} sql --url http://{query} \"SELECT agent_id, tool, status, count(*) AS calls FROM calls GROUP BY ALL ORDER BY 1, 2\""
    )?;
    writeln!(
        out,
        "  {custody} sql --url http://{query} \"SELECT at, statement, status FROM queries\""
    )?;
    if let Some((agent, secret)) = secrets.first() {
        writeln!(out, "\nConnect an agent of your own as {agent}:")?;
        writeln!(out, "  url     http://{}/servers/ehr/mcp", at.proxy)?;
        writeln!(out, "  header  Authorization: Bearer {secret}")?;
    }
    writeln!(out, "\nCtrl-C ends the demo.")?;
    Ok(())
}
