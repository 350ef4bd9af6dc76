//! Whether what several events share is short enough that nothing of it can be over a limit.
//!
//! Most of it is, and then it need not be copied to be cut. `true` is certain: no string is longer
//! than the shortest limit, no list longer than the shortest list. `false` says nothing.

use super::{LIST, WORD, encoded_len};
use crate::event::{Agent, ClientClaimed, Decision, Principal, Recipient, Source, What, Who};

/// Whether a text is within every limit.
pub(super) fn text(text: &str) -> bool {
    text.len() * 6 <= WORD || (text.len() <= WORD && encoded_len(text) <= WORD)
}

fn option(value: Option<&String>) -> bool {
    value.is_none_or(|value| text(value))
}

fn list(items: &[String]) -> bool {
    items.len() <= LIST / 2 && items.iter().all(|item| text(item))
}

fn principal(principal: &Principal) -> bool {
    let Principal { issuer, name, subject } = principal;
    option(issuer.as_ref()) && option(name.as_ref()) && text(subject)
}

fn agent(agent: &Agent) -> bool {
    let Agent { id, instance, name, version } = agent;
    text(id) && [instance, name, version].into_iter().all(|value| option(value.as_ref()))
}

fn claimed(claimed: &ClientClaimed) -> bool {
    let ClientClaimed { name, version } = claimed;
    text(name) && option(version.as_ref())
}

fn source(source: &Source) -> bool {
    let Source { ip, port: _, user_agent } = source;
    text(ip) && option(user_agent.as_ref())
}

fn recipient(recipient: &Recipient) -> bool {
    let Recipient { address, name, relation: _ } = recipient;
    option(address.as_ref()) && text(name)
}

/// Whether all of it is within every limit.
pub(super) fn who(who: &Who) -> bool {
    let Who {
        agent: by,
        assurance: _,
        client_claimed,
        delegation,
        purpose,
        purpose_source: _,
        roles,
        source: from,
        token_id,
        user,
    } = who;
    by.as_ref().is_none_or(agent)
        && client_claimed.as_ref().is_none_or(claimed)
        && delegation.len() <= LIST / 2
        && delegation.iter().all(principal)
        && option(purpose.as_ref())
        && list(roles)
        && from.as_ref().is_none_or(source)
        && option(token_id.as_ref())
        && user.as_ref().is_none_or(principal)
}

/// Whether all of it is within every limit.
pub(super) fn what(what: &What) -> bool {
    let What {
        activity: _,
        method,
        prompt,
        protocol,
        recipient: to,
        resource,
        rpc_id,
        server,
        session: _,
        tool,
        tool_definition: _,
        trace,
        transport,
    } = what;
    to.as_ref().is_none_or(recipient)
        && [method, prompt, protocol, resource, rpc_id, server, tool, trace, transport]
            .into_iter()
            .all(|value| option(value.as_ref()))
}

/// Whether all of it is within every limit.
pub(super) fn decision(decision: &Decision) -> bool {
    let Decision { approval, effect: _, policies, policy_version, reason } = decision;
    list(policies)
        && [approval, policy_version, reason].into_iter().all(|value| option(value.as_ref()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bounds::Cutter;
    use crate::id::Bytes;

    /// Lengths around every limit, of one-byte and of six-byte characters.
    fn texts() -> impl Iterator<Item = String> {
        let lengths = [0, 1, 10, 11, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1024, 1025];
        lengths.into_iter().flat_map(|len| ["x".repeat(len), "\u{1}".repeat(len)])
    }

    fn cut(with: impl Fn(&mut Cutter)) -> bool {
        let mut cutter = Cutter { salt: Bytes([7; 16]), truncated: Vec::new() };
        with(&mut cutter);
        !cutter.truncated.is_empty()
    }

    #[test]
    fn what_is_called_short_is_never_cut() {
        for text in texts() {
            let some = || Some(text.clone());
            let named =
                |subject: &str| Principal { subject: subject.into(), ..Principal::default() };
            let people = [
                Who { purpose: some(), ..Who::default() },
                Who { token_id: some(), ..Who::default() },
                Who { user: Some(named(&text)), ..Who::default() },
                Who { delegation: vec![named(&text)], ..Who::default() },
                Who { roles: vec![text.clone()], ..Who::default() },
                Who { roles: vec!["r".into(); text.len()], ..Who::default() },
                Who { delegation: vec![named("d"); text.len()], ..Who::default() },
                Who {
                    source: Some(Source { user_agent: some(), ..Source::default() }),
                    ..Who::default()
                },
                Who {
                    agent: Some(Agent { version: some(), ..Agent::default() }),
                    ..Who::default()
                },
            ];
            for who in people {
                assert!(!self::who(&who) || !cut(|cutter| cutter.who(&mut who.clone())), "{who:?}");
            }
            let called = [
                What { tool: some(), ..What::default() },
                What { transport: some(), ..What::default() },
                What { resource: some(), ..What::default() },
            ];
            for what in called {
                let is_cut = cut(|cutter| cutter.what(&mut what.clone()));
                assert!(!self::what(&what) || !is_cut, "{what:?}");
            }
            let decision = Decision { reason: some(), ..Decision::default() };
            let is_cut = cut(|cutter| cutter.decision(&mut decision.clone()));
            assert!(!self::decision(&decision) || !is_cut, "{decision:?}");
        }
    }

    #[test]
    fn a_shared_part_that_is_short_is_not_copied() {
        let who = Arc::new(Who { token_id: Some("key-1".into()), ..Who::default() });
        let mut draft = crate::event::Draft::new(crate::kind::Kind::CallDenied);
        draft.who = Some(Arc::clone(&who));
        let place = crate::record::Place {
            stream: "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap(),
            seq: 0,
            at: crate::id::Uint::new(1),
            salt: Bytes([0; 16]),
        };
        let record = draft.seal(place).unwrap();
        assert!(Arc::ptr_eq(record.event.who.as_ref().unwrap(), &who));
    }
}
