//! Decides whether a call may go on.
//!
//! A [`Permit`] can be made here only, and without one nothing reaches an upstream: recording
//! takes it in ([`crate::record`]) and gives out what [`crate::upstream`] spends. Today every
//! caller that is known may call every server that is configured; rules come in here.

use std::sync::Arc;

use custody_schemas::event::Decision;
use custody_schemas::words::Effect;

use crate::errors::Failure;
use crate::identity::Caller;

/// A decision to let one call go on. Not to be copied: one permit, one call.
#[derive(Debug)]
pub(crate) struct Permit {
    decision: Arc<Decision>,
}

impl Permit {
    /// What was decided, for the record.
    pub(crate) fn decision(&self) -> &Arc<Decision> {
        &self.decision
    }
}

/// The policies in force.
#[derive(Debug)]
pub(crate) struct Policy {
    version: Option<String>,
    known_caller: Arc<Decision>,
}

impl Policy {
    /// The policies of this version.
    pub(crate) fn new(version: Option<String>) -> Self {
        let known_caller = Decision {
            effect: Effect::Allow,
            policies: vec!["known-caller".to_owned()],
            policy_version: version.clone(),
            ..Decision::default()
        };
        Self { version, known_caller: Arc::new(known_caller) }
    }

    /// Decides on a call of a caller whose credential has been checked.
    pub(crate) fn decide(&self, _caller: &Caller) -> Permit {
        Permit { decision: Arc::clone(&self.known_caller) }
    }

    /// The decision that a refusal is recorded with.
    pub(crate) fn denial(&self, failure: Failure) -> Arc<Decision> {
        Arc::new(Decision {
            effect: Effect::Deny,
            policy_version: self.version.clone(),
            reason: Some(failure.reason().to_owned()),
            ..Decision::default()
        })
    }
}
