//! Which calls a filter cites: all records of a call are in the package, or none.

use std::collections::HashMap;

use custody_schemas::event::{Event, Subject};
use custody_schemas::id::CallId;
use serde::{Deserialize, Serialize};

/// What a call has to fit, as in the PHI-access report. What is not given fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Subject or name of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Id or name of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Id of a patient, or `system|id`, or an alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient: Option<String>,
    /// Name of a tool, or `server/tool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
}

/// What of a filter fits, a bit for each part.
type Fit = u8;
const ALL: Fit = 0b1111;

impl Filter {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let parts = [
            ("user", &self.user),
            ("agent", &self.agent),
            ("patient", &self.patient),
            ("tool", &self.tool),
        ];
        let given = parts.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        given.map(|(name, value)| format!("{name} {value:?}")).collect::<Vec<_>>().join(", ")
    }

    /// The parts that ask for nothing, which also what nobody can read fits.
    pub(super) fn nothing(&self) -> Fit {
        let free = [&self.user, &self.agent, &self.patient, &self.tool];
        free.iter().enumerate().fold(0, |all, (bit, part)| all | Fit::from(part.is_none()) << bit)
    }

    /// The parts that this record fits.
    pub(super) fn fit(&self, event: &Event) -> Fit {
        let (who, what) = (event.who.as_deref(), event.what.as_deref());
        let user = who.and_then(|who| who.user.as_ref());
        let users = user.map(|user| [Some(user.subject.as_str()), user.name.as_deref()]);
        let agent = who.and_then(|who| who.agent.as_ref());
        let agents = agent.map(|agent| [Some(agent.id.as_str()), agent.name.as_deref()]);
        let tool = what.and_then(|what| what.tool.as_deref());
        let server = what.and_then(|what| what.server.as_deref());
        let long = tool.zip(server).map(|(tool, server)| format!("{server}/{tool}"));
        let one_of = |wanted: &Option<String>, names: &[Option<&str>]| {
            wanted.as_deref().is_none_or(|wanted| names.contains(&Some(wanted)))
        };
        let patient = |wanted: &str| event.data.subjects.iter().any(|s| is(s, wanted));
        let fits = [
            one_of(&self.user, &users.unwrap_or_default()),
            one_of(&self.agent, &agents.unwrap_or_default()),
            self.patient.as_deref().is_none_or(patient),
            one_of(&self.tool, &[tool, long.as_deref()]),
        ];
        fits.iter().enumerate().fold(0, |all, (bit, fits)| all | Fit::from(*fits) << bit)
    }
}

fn is(subject: &Subject, wanted: &str) -> bool {
    let long = wanted.split_once('|');
    subject.id == wanted
        || long.is_some_and(|(system, id)| subject.system == system && subject.id == id)
        || subject.aliases.iter().any(|alias| alias == wanted)
}

/// What the records of each call fit together.
#[derive(Debug, Default)]
pub(super) struct Cited {
    calls: HashMap<CallId, Fit>,
}

impl Cited {
    pub(super) fn note(&mut self, call: Option<CallId>, fit: Fit) {
        if let Some(call) = call {
            *self.calls.entry(call).or_default() |= fit;
        }
    }

    /// Whether a record that fits so is cited, alone or with its call.
    pub(super) fn cites(&self, call: Option<CallId>, fit: Fit) -> bool {
        let with_call = call.and_then(|call| self.calls.get(&call)).copied().unwrap_or_default();
        fit | with_call == ALL
    }
}

#[cfg(test)]
mod tests {
    use custody_schemas::event::{Data, Draft, What, Who};
    use custody_schemas::id::{Bytes, Uint};
    use custody_schemas::kind::Kind;
    use custody_schemas::record::Place;

    use super::*;

    fn event(kind: Kind, user: Option<&str>, patients: &[&str]) -> Event {
        let mut draft = Draft::new(kind);
        draft.call = Some(CallId::from_uuid(uuid::Uuid::from_bytes([7; 16])));
        let principal = |subject: &str| custody_schemas::event::Principal {
            subject: subject.to_owned(),
            ..Default::default()
        };
        draft.who = Some(Who { user: user.map(principal), ..Who::default() }.into());
        let (tool, server) = (Some("read".to_owned()), Some("ehr".to_owned()));
        draft.what = Some(What { tool, server, ..What::default() }.into());
        let subject = |id: &&str| Subject {
            id: (*id).to_owned(),
            system: "fhir:Patient".to_owned(),
            ..Subject::default()
        };
        draft.data = Data { subjects: patients.iter().map(subject).collect(), ..Data::default() };
        let stream = "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap();
        draft.seal(Place { stream, seq: 1, at: Uint::new(1), salt: Bytes([1; 16]) }).unwrap().event
    }

    #[test]
    fn a_call_is_cited_when_its_records_together_fit_every_part() {
        let filter = Filter {
            user: Some("ann".into()),
            patient: Some("fhir:Patient|synthetic-7".into()),
            tool: Some("ehr/read".into()),
            ..Filter::default()
        };
        // The patient stands in the list apart, the user in the ending.
        let listed = event(Kind::SubjectsListed, None, &["synthetic-6", "synthetic-7"]);
        let ended = event(Kind::CallEnded, Some("ann"), &["synthetic-1"]);
        let mut cited = Cited::default();
        cited.note(listed.call, filter.fit(&listed));
        assert!(!cited.cites(listed.call, filter.fit(&listed)));
        cited.note(ended.call, filter.fit(&ended));
        assert!(cited.cites(listed.call, filter.fit(&listed)));
        let other = event(Kind::CallEnded, Some("bob"), &["synthetic-7"]);
        assert!(!Cited::default().cites(None, filter.fit(&other)));
        assert_eq!(
            filter.words(),
            r#"user "ann", patient "fhir:Patient|synthetic-7", tool "ehr/read""#
        );
    }
}
