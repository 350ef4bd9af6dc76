//! Who asks: bearer tokens, of which only the SHA-256 is known here.
//!
//! A token has a name, which is what the audit records, and roles. Without any token configured
//! whoever can connect may ask, which the binary allows on loopback only.

use std::fmt;

use custody_schemas::event::{Principal, Source, Who};
use custody_schemas::words::Assurance;
use sha2::{Digest, Sha256};

use crate::error::QueryError;

/// What a token may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Any SQL.
    Sql,
    /// The reports.
    Reports,
    /// Completeness and metrics.
    Status,
    /// Approving a tool's definition.
    Approve,
}

impl Right {
    const fn name(self) -> &'static str {
        match self {
            Self::Sql => "SQL",
            Self::Reports => "reports",
            Self::Status => "status",
            Self::Approve => "approving",
        }
    }

    /// The roles that allow it.
    const fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Sql => &["auditor", "sql"],
            Self::Reports => &["auditor", "sql", "reports"],
            Self::Status => &["auditor", "sql", "reports", "status", "approver"],
            Self::Approve => &["auditor", "approver"],
        }
    }
}

/// A token that is accepted.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the audit calls whoever uses it.
    pub name: String,
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
    /// `auditor` (everything), `sql`, `reports`, `status`, `approver`; none means `auditor`.
    pub roles: Vec<String>,
}

impl Token {
    /// A token from its configured form: `sha256:HEX` or `NAME=sha256:HEX`, which may go on with
    /// `;ROLE,ROLE`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (token, roles) = text.split_once(';').unwrap_or((text, ""));
        let (name, hash) = token.split_once('=').unwrap_or(("", token));
        let hex = hash.trim().strip_prefix("sha256:").ok_or("a token is written `sha256:HEX`")?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(hex, &mut sha256)
            .map_err(|_| "sha256: takes 64 hexadecimal digits")?;
        let name = match name.trim() {
            "" => format!("token-{}", &hex[..8]),
            name => name.to_owned(),
        };
        let roles: Vec<_> =
            roles.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect();
        let known = Right::Status.roles();
        match roles.iter().find(|role| !known.contains(&role.as_str())) {
            Some(role) => Err(format!("role {role:?} is none of {}", known.join(", "))),
            None => Ok(Self { name, sha256, roles }),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?}, {:?})", self.name, self.roles)
    }
}

/// Whoever asks, as the audit records them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Name of the token, or `anonymous`.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// How that is known.
    pub assurance: Assurance,
    /// The first digits of the token's hash.
    pub token_id: Option<String>,
    /// Address of the peer.
    pub ip: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
}

impl Asker {
    /// Somebody without a token, where none is configured.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: "anonymous".to_owned(),
            roles: Vec::new(),
            assurance: Assurance::None,
            token_id: None,
            ip: None,
            user_agent: None,
        }
    }

    /// Whether the roles allow it.
    ///
    /// # Errors
    /// [`QueryError::Forbidden`].
    pub fn may(&self, right: Right) -> Result<(), QueryError> {
        let allowed = |role: &String| right.roles().contains(&role.as_str());
        if self.roles.is_empty() || self.roles.iter().any(allowed) {
            return Ok(());
        }
        Err(QueryError::Forbidden { name: self.name.clone(), right: right.name() })
    }

    pub(crate) fn who(&self) -> Who {
        Who {
            user: Some(Principal {
                issuer: None,
                name: Some(self.name.clone()),
                subject: self.name.clone(),
            }),
            assurance: self.assurance.clone(),
            roles: self.roles.clone(),
            token_id: self.token_id.clone(),
            source: self.ip.clone().map(|ip| Source {
                ip,
                port: None,
                user_agent: self.user_agent.clone(),
            }),
            ..Who::default()
        }
    }
}

/// The tokens that are accepted.
#[derive(Clone, Debug, Default)]
pub struct Access {
    tokens: Vec<Token>,
}

impl Access {
    /// Access for holders of these tokens; for everybody when there is none.
    #[must_use]
    pub const fn new(tokens: Vec<Token>) -> Self {
        Self { tokens }
    }

    /// Who sends this `Authorization` header.
    ///
    /// # Errors
    /// [`QueryError::Unauthenticated`].
    pub fn who(&self, authorization: Option<&str>) -> Result<Asker, QueryError> {
        if self.tokens.is_empty() {
            return Ok(Asker::anonymous());
        }
        let header = authorization.ok_or(QueryError::Unauthenticated("no token was sent"))?;
        let token = header
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(QueryError::Unauthenticated("the Authorization header is no bearer token"))?;
        // Hashes are compared, so the time that takes says nothing of a token.
        let hash: [u8; 32] = Sha256::digest(token).into();
        let known = self.tokens.iter().find(|known| known.sha256 == hash);
        let known = known.ok_or(QueryError::Unauthenticated("the token is unknown"))?;
        Ok(Asker {
            name: known.name.clone(),
            roles: known.roles.clone(),
            assurance: Assurance::Key,
            token_id: Some(hex::encode(&hash[..4])),
            ..Asker::anonymous()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let hash = hex::encode(Sha256::digest("s3cret"));
        Access::new(vec![
            Token::parse(&format!("ann=sha256:{hash};reports")).unwrap(),
            Token::parse(&format!("sha256:{}", hex::encode(Sha256::digest("other")))).unwrap(),
        ])
    }

    #[test]
    fn only_a_configured_token_is_somebody() {
        let ann = access().who(Some("bearer s3cret")).unwrap();
        assert_eq!((ann.name.as_str(), ann.assurance.clone()), ("ann", Assurance::Key));
        for wrong in [None, Some("s3cret"), Some("Bearer nope"), Some("Basic s3cret"), Some("")] {
            let error = access().who(wrong).unwrap_err();
            assert_eq!(error.status(), http::StatusCode::UNAUTHORIZED, "{wrong:?}");
        }
    }

    #[test]
    fn a_role_allows_what_it_names_and_no_role_allows_everything() {
        let ann = access().who(Some("Bearer s3cret")).unwrap();
        assert!(ann.may(Right::Reports).is_ok() && ann.may(Right::Status).is_ok());
        assert!(matches!(ann.may(Right::Sql), Err(QueryError::Forbidden { .. })));
        assert!(access().who(Some("Bearer other")).unwrap().may(Right::Sql).is_ok());
    }

    #[test]
    fn a_token_that_is_written_wrongly_is_an_error_that_says_how() {
        for text in ["", "abc", "sha256:12", "ann=s3cret", "sha256:zz"] {
            assert!(Token::parse(text).is_err(), "{text:?}");
        }
        let hash = "0".repeat(64);
        assert!(Token::parse(&format!("sha256:{hash};admin")).unwrap_err().contains("admin"));
    }
}
