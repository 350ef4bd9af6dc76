//! Events as they come from a proxy in front of a record system: FHIR reads, an opening and an
//! ending each, twenty people, six agents, eight tools, 2,000 patients, every fourth answer a search
//! with several of them, and a signed checkpoint with the leaves of every 2,000 events.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use custody_journal::{EntryKind, NewEntry};
use custody_schemas::event::{
    Agent, Bodies, BodyRef, ClientClaimed, Data, Decision, Draft, Outcome, Principal, Recipient,
    Source, Subject, What, Who,
};
use custody_schemas::id::{Bytes, CallId, StreamId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::Place;
use custody_schemas::seal::checkpoint::{Checkpoint, Message, origin};
use custody_schemas::seal::key::Signer;
use custody_schemas::seal::{Leaf, Tree};
use custody_schemas::words::{
    Activity, Assurance, Direction, Effect, PurposeSource, Relation, Status, SubjectStatus,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Failure;

/// Events between two checkpoints.
pub const CHECKPOINT_EVERY: u64 = 2_000;

/// A writer of one stream, as far as ingest can tell.
pub struct World {
    random: StdRng,
    stream: StreamId,
    at: u64,
    leaves: Vec<Leaf>,
    tree: Tree,
    signer: Signer,
    who: Vec<Arc<Who>>,
    what: Vec<Arc<What>>,
    decision: Arc<Decision>,
}

impl World {
    /// The writer with this number.
    pub fn new(writer: u64) -> Result<Self, Failure> {
        let mut random = StdRng::seed_from_u64(41 + writer);
        let who = (0..120).map(|i| Arc::new(who(i, &mut random))).collect();
        let what = (0..8).map(|i| Arc::new(what(i, &mut random))).collect();
        let decision = Decision {
            effect: Effect::Allow,
            policies: vec!["clinical-read".into()],
            policy_version: Some("2026-11-01.3".into()),
            ..Decision::default()
        };
        Ok(Self {
            random,
            stream: format!("edge-{writer}/0190c8a0-7b1e-7000-8000-{writer:012}").parse()?,
            at: u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
            leaves: Vec::new(),
            tree: Tree::new(),
            signer: signer(writer)?,
            who,
            what,
            decision: Arc::new(decision),
        })
    }

    fn hash<const N: usize>(&mut self) -> Bytes<N> {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes[..]);
        Bytes(bytes)
    }

    fn body(&mut self, bytes: u64) -> BodyRef {
        let (body, commitment) = (self.hash(), self.hash());
        BodyRef { body, bytes: Uint::new(bytes), chunks: Uint::new(1), commitment }
    }

    /// An opening and an ending, as entries.
    pub fn call(&mut self, entries: &mut Vec<NewEntry>) -> Result<(), Failure> {
        let id = uuid::Builder::from_unix_timestamp_millis(self.at / 1000, &self.hash::<10>().0);
        let call = CallId::from_uuid(id.into_uuid());
        let (who, what) = (self.random.random_range(0..120), self.random.random_range(0..8));
        let mut what = (*self.what[what]).clone();
        what.rpc_id = Some(self.random.random_range(1..400).to_string());
        let mut draft = Draft::new(Kind::CallRequested);
        draft.call = Some(call);
        draft.who = Some(Arc::clone(&self.who[who]));
        draft.what = Some(Arc::new(what));
        draft.decision = Some(Arc::clone(&self.decision));
        let length = self.random.random_range(180..420);
        draft.bodies = Bodies { request: Some(self.body(length)), ..Bodies::default() };
        draft.data.labels = vec!["phi".into()];
        let mut ending = draft.clone();
        self.append(draft, entries)?;
        ending.kind = Kind::CallEnded;
        ending.outcome = Some(Outcome {
            duration_us: Some(Uint::new(self.random.random_range(4_000..90_000))),
            http_status: Some(200),
            status: Status::Ok,
            ..Outcome::default()
        });
        let length = self.random.random_range(900..9_000);
        ending.bodies.response = Some(self.body(length));
        ending.data = self.data();
        self.append(ending, entries)
    }

    fn data(&mut self) -> Data {
        let patients = if self.random.random_range(0..4) == 0 { 5 } else { 1 };
        let subjects: Vec<_> = (0..patients).map(|_| self.subject()).collect();
        Data {
            detector: Some("fhir@1".into()),
            identifiers: vec!["names".into(), "dates".into()],
            labels: vec!["phi".into()],
            subject_count: Some(Uint::new(subjects.len() as u64)),
            subject_status: Some(SubjectStatus::Recognised),
            subjects,
            ..Data::default()
        }
    }

    fn subject(&mut self) -> Subject {
        Subject {
            categories: vec!["Observation".into()],
            direction: Direction::Received,
            id: format!("pat-{:05}", self.random.random_range(0..2_000)),
            records: Some(Uint::new(self.random.random_range(1..9))),
            system: "fhir:Patient".into(),
            ..Subject::default()
        }
    }

    fn append(&mut self, draft: Draft, entries: &mut Vec<NewEntry>) -> Result<(), Failure> {
        self.at += self.random.random_range(20..700);
        let (seq, salt) = (self.tree.size(), self.hash());
        let place = Place { stream: self.stream.clone(), seq, at: Uint::new(self.at), salt };
        let record = draft.seal(place)?;
        self.tree.push(&record.leaf);
        self.leaves.push(record.leaf);
        entries.push(entry(EntryKind::Event, record.bytes));
        if self.leaves.len() as u64 == CHECKPOINT_EVERY {
            let origin = origin("audit.st-elsewhere.example", &self.stream);
            let note = Checkpoint::of(origin, &self.tree).sign(&self.signer)?;
            let leaves = std::mem::take(&mut self.leaves);
            let message = Message { note, first: self.tree.size() - CHECKPOINT_EVERY, leaves };
            entries.push(entry(EntryKind::Checkpoint, message.encode()));
        }
        Ok(())
    }
}

fn signer(writer: u64) -> Result<Signer, Failure> {
    let name = format!("audit.st-elsewhere.example/edge-{writer}");
    Ok(Signer::from_seed(&name, &[3; 32])?.0)
}

fn entry(kind: EntryKind, value: Vec<u8>) -> NewEntry {
    NewEntry { kind, header: bytes::Bytes::new(), value: value.into() }
}

fn who(i: usize, random: &mut StdRng) -> Who {
    let (user, agent) = (i % 20, i / 20);
    Who {
        agent: Some(Agent {
            id: format!("agent-{agent}@apps.st-elsewhere.example"),
            instance: None,
            name: Some(
                ["Discharge", "Scheduling", "Coding", "Triage", "Refill", "Intake"][agent].into(),
            ),
            version: Some("1.4.2".into()),
        }),
        assurance: Assurance::Token,
        client_claimed: Some(ClientClaimed { name: "mcp".into(), version: Some("1.9.0".into()) }),
        purpose: Some("TREAT".into()),
        purpose_source: Some(PurposeSource::Token),
        roles: vec!["clinician".into()],
        source: Some(Source {
            ip: format!("10.20.{agent}.{user}"),
            port: Some(random.random_range(40_000..60_000)),
            user_agent: Some("python-httpx/0.28.1".into()),
        }),
        token_id: Some(format!("{:032x}", random.random::<u128>())),
        user: Some(Principal {
            issuer: Some("https://login.st-elsewhere.example".into()),
            name: Some(format!("Person Number {user}")),
            subject: format!("user-{user:04}@st-elsewhere.example"),
        }),
        ..Who::default()
    }
}

fn what(i: usize, random: &mut StdRng) -> What {
    let mut hash = [0; 32];
    random.fill(&mut hash[..]);
    What {
        activity: Some(Activity::R),
        method: Some("tools/call".into()),
        protocol: Some("2025-11-25".into()),
        recipient: Some(Recipient {
            address: None,
            name: "Acme EHR".into(),
            relation: Some(Relation::BusinessAssociate),
        }),
        server: Some("ehr".into()),
        session: Some(Bytes(hash)),
        tool: Some(format!("fhir_read_{i}")),
        tool_definition: Some(Bytes(hash)),
        transport: Some("streamable-http".into()),
        ..What::default()
    }
}
