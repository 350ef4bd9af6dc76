//! The proxy: its settings, and the role that runs it alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use custody_proxy::Watched;
use custody_proxy::config::{Limits, OnAuditFailure, Server};
use custody_proxy::identity::{Identity, StaticKey};
use custody_proxy::inspect::{Rule as PathRule, Rules, ToolRule};
use custody_proxy::tools::{Pattern, Pin, ToolSettings};
use custody_schemas::event::{Agent, Principal, Recipient};
use custody_schemas::id::Hash;
use custody_schemas::words::{Activity, Relation};

use super::journal::{EDGE, Recording};
use super::process::{Part, Process, listen};
use super::reach::reach;
use crate::config::{self, Config, Kafka};

/// The issuer of identities that stand in the configuration itself.
const ISSUER: &str = "custody.toml";

/// `custody proxy`: what it records goes to Kafka.
pub async fn start(config: Config, _: Kafka) -> anyhow::Result<Process> {
    let mut process = Process::default();
    let recording = Recording::open(&config, EDGE).await?;
    let proxying = serve(&mut process, &config, &recording).await?;
    process.then(proxying);
    recording.end_with(&mut process);
    Ok(process)
}

/// Serves agents; what they do is recorded.
pub async fn serve(
    process: &mut Process,
    config: &Config,
    recording: &Recording,
) -> anyhow::Result<Part> {
    let settings = settings(config, recording)?;
    let listener = listen(config.proxy.listen, "proxy.listen").await?;
    process.listens("proxy", listener.local_addr()?);
    let watched = Watched::new(Arc::clone(&process.page), recording.ready());
    let writer = recording.writer.clone();
    Ok(Part::start("proxy", |stop| async move {
        Ok(custody_proxy::run(listener, settings, writer, watched, stop).await?)
    }))
}

/// The settings of the proxy.
fn settings(config: &Config, recording: &Recording) -> anyhow::Result<custody_proxy::Config> {
    let servers = config.servers.iter().map(server).collect::<anyhow::Result<_>>()?;
    Ok(custody_proxy::Config {
        identity: identity(&config.keys)?,
        servers,
        audit_wait: Duration::from_millis(config.proxy.audit_wait_ms),
        max_message_bytes: usize::try_from(config.proxy.max_message_bytes)?,
        allowed_hosts: config.proxy.allowed_hosts.clone(),
        allowed_origins: config.proxy.allowed_origins.clone(),
        control: Some(recording.control.clone()),
        limits: Limits {
            response: Duration::from_millis(config.proxy.upstream_timeout_ms),
            sessions: usize::try_from(config.proxy.max_sessions)?,
            session_idle: Duration::from_secs(config.proxy.session_idle_seconds),
            ..Limits::default()
        },
        ..custody_proxy::Config::default()
    })
}

fn identity(keys: &[config::Key]) -> anyhow::Result<Identity> {
    if keys.is_empty() {
        return Ok(Identity::None);
    }
    let keys = keys.iter().map(key).collect::<anyhow::Result<_>>()?;
    Ok(Identity::Keys(keys))
}

fn key(key: &config::Key) -> anyhow::Result<StaticKey> {
    let sha256: Hash = key.sha256.parse()?;
    let human = |subject: &String| Principal {
        issuer: Some(ISSUER.to_owned()),
        name: key.user_name.clone(),
        subject: subject.clone(),
    };
    let agent = Agent { id: key.agent.clone(), name: key.agent_name.clone(), ..Agent::default() };
    Ok(StaticKey {
        sha256: sha256.0,
        id: format!("sha256:{}", &key.sha256[..12]),
        user: key.user.as_ref().map(human),
        agent: Some(agent),
        roles: key.roles.clone(),
        purpose: key.purpose.clone(),
    })
}

fn server(server: &config::Server) -> anyhow::Result<Server> {
    let mut rules = Rules::default();
    for rule in &server.rules {
        add(&mut rules, rule)?;
    }
    Ok(Server {
        phi: server.phi,
        recipient: server.recipient.as_ref().map(recipient),
        on_audit_failure: OnAuditFailure::Deny,
        rules,
        tools: tools(&server.tools),
        response: server.timeout_ms.map(Duration::from_millis),
        ..Server::reached(&server.name, reach(&server.name, &server.reach)?)
    })
}

fn tools(tools: &config::Tools) -> ToolSettings {
    let patterns = |names: &[String]| names.iter().map(Pattern::new).collect();
    let pin = match tools.pin {
        config::Pin::Off => Pin::Off,
        config::Pin::Observe => Pin::Observe,
        config::Pin::Enforce => Pin::Enforce,
    };
    ToolSettings { allow: patterns(&tools.allow), deny: patterns(&tools.deny), pin }
}

fn recipient(recipient: &config::Recipient) -> Recipient {
    let relation = recipient.relation.as_deref().map(|word| match word {
        "internal" => Relation::Internal,
        "business_associate" => Relation::BusinessAssociate,
        "external" => Relation::External,
        other => Relation::Other(other.to_owned()),
    });
    Recipient { address: recipient.address.clone(), name: recipient.name.clone(), relation }
}

fn add(rules: &mut Rules, rule: &config::Rule) -> anyhow::Result<()> {
    let place = match &rule.tool {
        None => &mut rules.every,
        Some(tool) => rule_of(&mut rules.tools, tool),
    };
    let system = rule.system.as_deref().unwrap_or("patient");
    let paths = |texts: &[String]| {
        texts.iter().map(|text| PathRule::new(text, system)).collect::<Result<Vec<_>, _>>()
    };
    place.arguments.extend(paths(&rule.arguments)?);
    place.result.extend(paths(&rule.result)?);
    place.phi = rule.phi.or(place.phi);
    let activity = rule.activity.as_deref().map(|letter| match letter {
        "C" => Activity::C,
        "R" => Activity::R,
        "U" => Activity::U,
        "D" => Activity::D,
        _ => Activity::E,
    });
    place.activity = activity.or(place.activity.take());
    Ok(())
}

fn rule_of<'r>(tools: &'r mut HashMap<String, ToolRule>, tool: &str) -> &'r mut ToolRule {
    tools.entry(tool.to_owned()).or_default()
}
