//! Who calls: from a verified credential, or nobody.
//!
//! Keys are kept as SHA-256 only, and every known key is compared in full, so that neither our
//! memory nor our timing tells one. What a client says of itself is noted apart and never trusted.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use custody_schemas::event::{Agent, ClientClaimed, Principal, Source, Who};
use custody_schemas::words::{Assurance, PurposeSource};
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest, Sha256};

/// A static key: its hash and whom it stands for.
#[derive(Clone, Debug)]
pub struct StaticKey {
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// A name for the key itself, as records show it; never the key.
    pub id: String,
    /// The human that it stands for.
    pub user: Option<Principal>,
    /// The agent that it stands for.
    pub agent: Option<Agent>,
    /// Roles of the user or agent.
    pub roles: Vec<String>,
    /// Why data is used (HL7 ActReason, for example `TREAT`).
    pub purpose: Option<String>,
}

/// How callers are told apart.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Not at all: everybody is nobody.
    None,
    /// By static keys in `Authorization: Bearer …`.
    Keys(Vec<StaticKey>),
}

/// A principal as sessions are bound to it: a number that only [`Authority`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PrincipalId(usize);

#[cfg(test)]
impl PrincipalId {
    /// One that a test tells apart from others.
    pub(crate) const fn test(number: usize) -> Self {
        Self(number)
    }
}

/// Everybody, where callers are not told apart.
const NOBODY: PrincipalId = PrincipalId(usize::MAX);

/// A caller whose credential has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// To whom sessions are bound.
    pub(crate) principal: PrincipalId,
    /// Everything but source and claims.
    pub(crate) who: Arc<Who>,
}

/// No credential, or an unknown one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unauthenticated;

/// Checks credentials.
#[derive(Debug)]
pub(crate) struct Authority {
    nobody: Option<Arc<Who>>,
    keys: Vec<([u8; 32], Arc<Who>)>,
}

impl Authority {
    /// An authority for the configured identities.
    pub(crate) fn new(identity: &Identity) -> Self {
        match identity {
            Identity::None => Self { nobody: Some(Arc::default()), keys: Vec::new() },
            Identity::Keys(keys) => Self {
                nobody: None,
                keys: keys.iter().map(|key| (key.sha256, Arc::new(key.who()))).collect(),
            },
        }
    }

    /// Whose credential the headers carry.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<Caller, Unauthenticated> {
        if let Some(nobody) = &self.nobody {
            return Ok(Caller { principal: NOBODY, who: Arc::clone(nobody) });
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Unauthenticated);
        };
        let key = bearer(value.as_bytes()).ok_or(Unauthenticated)?;
        let presented: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        for (i, (known, _)) in self.keys.iter().enumerate() {
            if equal(known, &presented) {
                found = Some(i);
            }
        }
        let index = found.ok_or(Unauthenticated)?;
        Ok(Caller { principal: PrincipalId(index), who: Arc::clone(&self.keys[index].1) })
    }
}

impl StaticKey {
    fn who(&self) -> Who {
        Who {
            agent: self.agent.clone(),
            assurance: Assurance::Key,
            purpose: self.purpose.clone(),
            purpose_source: self.purpose.as_ref().map(|_| PurposeSource::Policy),
            roles: self.roles.clone(),
            token_id: Some(self.id.clone()),
            user: self.user.clone(),
            ..Who::default()
        }
    }
}

/// Callers as records show them, with source and claims. One connection's requests are mostly
/// alike, so the last one is kept.
#[derive(Debug)]
pub(crate) struct Seen {
    peer: SocketAddr,
    last: Mutex<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    base: Arc<Who>,
    user_agent: Option<HeaderValue>,
    claimed: Option<ClientClaimed>,
    who: Arc<Who>,
}

impl Seen {
    /// For a connection from `peer`.
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { peer, last: Mutex::new(None) }
    }

    /// Where the connection comes from.
    pub(crate) fn ip(&self) -> IpAddr {
        self.peer.ip()
    }

    /// The caller `base` as seen in a request with these headers and claims.
    pub(crate) fn who(
        &self,
        base: &Arc<Who>,
        headers: &HeaderMap,
        claimed: Option<&ClientClaimed>,
    ) -> Arc<Who> {
        let user_agent = headers.get(header::USER_AGENT);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && Arc::ptr_eq(&last.base, base)
            && last.user_agent.as_ref() == user_agent
            && last.claimed.as_ref() == claimed
        {
            return Arc::clone(&last.who);
        }
        let source = Source {
            ip: self.peer.ip().to_string(),
            port: Some(self.peer.port()),
            user_agent: user_agent.and_then(|value| value.to_str().ok()).map(str::to_owned),
        };
        let who =
            Who { client_claimed: claimed.cloned(), source: Some(source), ..Who::clone(base) };
        let who = Arc::new(who);
        *last = Some(Last {
            base: Arc::clone(base),
            user_agent: user_agent.cloned(),
            claimed: claimed.cloned(),
            who: Arc::clone(&who),
        });
        who
    }
}

/// The token after `Bearer`, in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Compares in a time that does not depend on the contents.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |sum, (x, y)| sum | (x ^ y));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Authority {
        let key = |secret: &str, id: &str| StaticKey {
            sha256: Sha256::digest(secret).into(),
            id: id.into(),
            user: Some(Principal { subject: id.into(), ..Principal::default() }),
            agent: None,
            roles: vec!["nurse".into()],
            purpose: Some("TREAT".into()),
        };
        Authority::new(&Identity::Keys(vec![key("one", "k1"), key("two", "k2")]))
    }

    fn with(values: &[&'static str]) -> Result<Caller, Unauthenticated> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        authority().check(&headers)
    }

    #[test]
    fn a_known_key_tells_who_calls_and_nothing_of_itself() {
        let caller = with(&["bearer two"]).unwrap();
        assert_eq!(caller.who.user.as_ref().unwrap().subject, "k2");
        assert_eq!(caller.who.assurance, Assurance::Key);
        assert!(!format!("{caller:?}").contains("two"));
    }

    #[test]
    fn the_last_caller_is_shown_again_only_when_nothing_differs() {
        let seen = Seen::new(([10, 1, 2, 3], 99).into());
        let ann = with(&["Bearer one"]).unwrap().who;
        let mut headers = HeaderMap::new();
        let first = seen.who(&ann, &headers, None);
        assert_eq!(first.source.as_ref().unwrap().ip, "10.1.2.3");
        assert!(Arc::ptr_eq(&first, &seen.who(&ann, &headers, None)));
        let claimed = ClientClaimed { name: "c".into(), version: None };
        assert_eq!(seen.who(&ann, &headers, Some(&claimed)).client_claimed, Some(claimed));
        assert_eq!(seen.who(&ann, &headers, None).client_claimed, None);
        headers.insert(header::USER_AGENT, HeaderValue::from_static("x/1"));
        let other = seen.who(&ann, &headers, None);
        assert_eq!(other.source.as_ref().unwrap().user_agent.as_deref(), Some("x/1"));
        let bob = with(&["Bearer two"]).unwrap().who;
        assert_eq!(seen.who(&bob, &headers, None).user.as_ref().unwrap().subject, "k2");
    }

    #[test]
    fn everything_else_is_unauthenticated() {
        let wrong: [&[&'static str]; 6] =
            [&[], &["Bearer three"], &["Bearer "], &["one"], &["Basic one"], &["Bearer one", "x"]];
        for values in wrong {
            assert!(with(values).is_err(), "{values:?}");
        }
    }
}
