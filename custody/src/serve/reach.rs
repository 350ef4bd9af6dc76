//! How the proxy reaches a server, from what the configuration says of it.

use std::time::Duration;

use anyhow::Context;
use custody_proxy::reach::{Address, Breaker, Command, OAuth, Reach, Secret, Tls};

use crate::config::reach as config;

/// How the server `name` is reached.
pub(super) fn reach(name: &str, reach: &config::Reach) -> anyhow::Result<Reach> {
    Ok(match reach {
        config::Reach::Http(to) => Reach::Http(address(name, to)?),
        config::Reach::LegacySse(to) => Reach::LegacySse(address(name, to)?),
        config::Reach::Stdio(command) => Reach::Stdio(process(command)?),
    })
}

fn address(name: &str, address: &config::Address) -> anyhow::Result<Address> {
    let url = address.url.parse().with_context(|| format!("the url of {name}"))?;
    let usual = Breaker::default();
    let headers = address.headers.0.iter().map(|(header, value)| {
        let mut value: http::HeaderValue = value.parse()?;
        value.set_sensitive(true);
        Ok((header.parse()?, value))
    });
    let breaker = Breaker {
        failures: address.breaker_failures.map_or(Ok(usual.failures), u32::try_from)?,
        pause: address.breaker_pause_ms.map_or(usual.pause, Duration::from_millis),
    };
    Ok(Address {
        headers: headers.collect::<anyhow::Result<_>>()?,
        tls: Tls { ca: address.ca.clone(), client: address.client.clone() },
        oauth: address.oauth.as_ref().map(|oauth| tokens(name, oauth)).transpose()?,
        breaker,
        ..Address::new(url)
    })
}

fn tokens(name: &str, oauth: &config::OAuth) -> anyhow::Result<OAuth> {
    let token_url = oauth.token_url.parse();
    Ok(OAuth {
        token_url: token_url.with_context(|| format!("the token_url of {name}"))?,
        client_id: oauth.client_id.clone(),
        client_secret: Secret(oauth.client_secret.expose().to_owned()),
        scopes: oauth.scopes.clone(),
        resource: oauth.resource.clone(),
    })
}

fn process(command: &config::Command) -> anyhow::Result<Command> {
    let env = command.env.0.iter().map(|(name, value)| (name.clone(), Secret(value.clone())));
    Ok(Command {
        args: command.args.clone(),
        env: env.collect(),
        cwd: command.cwd.clone(),
        max_processes: usize::try_from(command.max_processes)?,
        idle: Duration::from_secs(command.idle_seconds),
        ..Command::new(&command.program)
    })
}
