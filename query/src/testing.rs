//! A deployment in a temporary folder for the tests of this crate: a real journal, a real lake, and
//! the smallest possible ingest, which carries as many entries to the lake as a test says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use custody_journal::{
    EntryKind, Journal, OutBody, Part, Partition, Slot, Topic, Writer, WriterOptions,
};
use custody_lake::batch::Rows;
use custody_lake::files::FileSet;
use custody_lake::rows::{Arrival, Standing};
use custody_lake::{Lake, LakeOptions, Outcome as Committed, TxnStep, columns};
use custody_schemas::event::{
    Agent, Data, Decision, Draft, Outcome, Principal, Subject, What, Who,
};
use custody_schemas::id::{CallId, StreamId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::{self, Identity};
use custody_schemas::seal::key::Signer;
use custody_schemas::words::{Direction, Effect, Status, SubjectStatus};
use tempfile::TempDir;

use crate::access::Asker;
use crate::{Engine, EngineOptions, Params, QueryError, Question};

pub(crate) struct Deployment {
    pub(crate) dir: TempDir,
    pub(crate) lake: Lake,
    pub(crate) writer: Writer,
    /// Whether files that are carried say what they hold.
    pub(crate) tagged: AtomicBool,
}

/// What a test call is.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) user: &'static str,
    pub(crate) agent: &'static str,
    pub(crate) tool: &'static str,
    pub(crate) phi: bool,
    pub(crate) patients: Vec<String>,
}

pub(crate) fn call(user: &'static str, tool: &'static str, patients: &[&str]) -> Call {
    let patients = patients.iter().map(|p| (*p).to_owned()).collect();
    Call { user, agent: "triage", tool, phi: true, patients }
}

impl Deployment {
    pub(crate) async fn new() -> Self {
        Self::over(LakeOptions::new("audit.test")).await
    }

    /// With a lake that is opened with these options.
    pub(crate) async fn over(lake: LakeOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file:{}", dir.path().join("lake").display());
        let lake = Lake::open(&url, &lake).await.unwrap();
        let mut options = WriterOptions::new(dir.path().join("journal"), "edge-1");
        options.segment_bytes = 1 << 20;
        let signer = Signer::from_seed("audit.test/edge-1", &[7; 32]).unwrap().0;
        std::fs::create_dir_all(dir.path().join("journal")).unwrap();
        let (writer, _) = Writer::open(options, signer).unwrap();
        Self { dir, lake, writer, tagged: AtomicBool::new(false) }
    }

    pub(crate) fn journal(&self) -> Arc<dyn Journal> {
        self.writer.journal()
    }

    pub(crate) fn options(&self) -> EngineOptions {
        let mut options = EngineOptions::new(self.dir.path().join("spill"));
        options.threads = 2;
        options.memory_bytes = 64 << 20;
        options.spill_bytes = 64 << 20;
        options
    }

    pub(crate) async fn engine(&self) -> Arc<Engine> {
        self.engine_with(self.options()).await
    }

    pub(crate) async fn engine_with(&self, options: EngineOptions) -> Arc<Engine> {
        self.engine_over(self.journal(), options).await
    }

    pub(crate) async fn engine_over(
        &self,
        journal: Arc<dyn Journal>,
        options: EngineOptions,
    ) -> Arc<Engine> {
        let engine = Engine::open(self.lake.clone(), journal, self.writer.clone(), options).await;
        let engine = engine.unwrap();
        while let Err(stage) = engine.sources().await {
            tracing::info!(%stage, "still starting");
        }
        engine
    }

    /// Opens a call.
    pub(crate) async fn open(&self, call: &Call) -> (Slot, Draft) {
        let mut slot = self.writer.slot(1 << 20).unwrap();
        let draft = draft(call);
        let request = Bytes::from(format!("{{\"tool\":\"{}\"}}", call.tool));
        let body = OutBody { part: Part::Request, bytes: request };
        slot.open(draft.clone(), vec![body]).await.unwrap();
        (slot, draft)
    }

    /// Opens a call and ends it.
    pub(crate) async fn run(&self, call: &Call, status: Status) {
        let (slot, draft) = self.open(call).await;
        self.end(slot, draft, call, status).await;
    }

    pub(crate) async fn end(&self, slot: Slot, mut draft: Draft, call: &Call, status: Status) {
        let subjects = subjects(call);
        let (own, parts) = custody_schemas::split_subjects(subjects.clone());
        for part in parts {
            let mut listed = Draft::new(Kind::SubjectsListed);
            listed.call = draft.call;
            listed.who = draft.who.clone();
            listed.what = draft.what.clone();
            listed.data = Data { labels: labels(call), subjects: part, ..Data::default() };
            self.writer.append(listed, Vec::new()).await.unwrap();
        }
        draft.kind = Kind::CallEnded;
        draft.outcome =
            Some(Outcome { status, duration_us: Some(Uint::new(1500)), ..Outcome::default() });
        draft.data = Data {
            labels: labels(call),
            subject_count: Some(Uint::new(subjects.len() as u64)),
            subject_status: Some(match subjects.is_empty() {
                true => SubjectStatus::Unrecognised,
                false => SubjectStatus::Recognised,
            }),
            subjects: own,
            ..Data::default()
        };
        let bytes = Bytes::from_static(b"{\"result\":{}}");
        slot.end(draft, vec![OutBody { part: Part::Response, bytes }]).await.unwrap();
    }

    /// Relays a message beside calls.
    pub(crate) async fn relay(&self, call: &Call) {
        let mut draft = draft(call);
        (draft.kind, draft.call) = (Kind::MessageRelayed, None);
        let subjects = subjects(call);
        draft.data.subject_status = Some(match subjects.is_empty() {
            true => SubjectStatus::Unrecognised,
            false => SubjectStatus::Recognised,
        });
        draft.data.subjects = subjects;
        self.writer.append(draft, Vec::new()).await.unwrap();
    }

    pub(crate) async fn deny(&self, call: &Call) {
        let mut draft = draft(call);
        draft.kind = Kind::CallDenied;
        draft.decision = Some(Arc::new(Decision {
            effect: Effect::Deny,
            reason: Some("unauthenticated".to_owned()),
            ..Decision::default()
        }));
        self.writer.append(draft, Vec::new()).await.unwrap();
    }

    /// The offset after the last durable entry of events.
    pub(crate) fn end_offset(&self) -> u64 {
        let partition = Partition { topic: Topic::Events, name: "edge-1".to_owned() };
        self.journal().reader(&partition, 0).unwrap().end().unwrap()
    }

    /// Carries to the lake what the partitions of `topic` hold below `up_to`, and `engine` sees it.
    pub(crate) async fn carry_and_tell(&self, engine: &Engine, topic: Topic, up_to: u64) {
        self.carry(topic, up_to).await;
        engine.sources().await.unwrap().renew().await.unwrap();
    }

    /// The same, and nobody is told yet.
    pub(crate) async fn carry(&self, topic: Topic, up_to: u64) {
        let partition = Partition { topic, name: "edge-1".to_owned() };
        self.carry_from(self.journal().as_ref(), "file", &partition, up_to).await;
    }

    /// The same from a partition of another journal.
    pub(crate) async fn carry_from(
        &self,
        journal: &dyn Journal,
        cluster: &str,
        partition: &Partition,
        up_to: u64,
    ) {
        let topic = partition.topic;
        let table = match topic {
            Topic::Events => self.lake.events(),
            Topic::Bodies | Topic::Control => self.lake.bodies(),
        };
        let app_id = format!("{cluster}/{}@1/{}", topic.name(), partition.name);
        let start = table.snapshot().await.unwrap().txn(&app_id).await.unwrap();
        if start.unwrap_or(0) >= up_to {
            return;
        }
        let mut reader = journal.reader(partition, start.unwrap_or(0)).unwrap();
        let (mut rows, list) = match topic {
            Topic::Events => (Rows::events(), columns::EVENTS),
            Topic::Bodies | Topic::Control => (Rows::bodies(), columns::BODIES),
        };
        let mut entries = Vec::new();
        while reader.position() < up_to {
            entries.extend(reader.read(100_000, 1 << 30, Duration::from_secs(1)).unwrap());
        }
        let mut held: BTreeMap<StreamId, Vec<(u64, u64)>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.offset < up_to) {
            let arrival = Arrival {
                partition: &partition.name,
                offset: entry.offset,
                journaled_at: entry.journaled_at,
                stored_at: Some(entry.journaled_at),
            };
            match entry.kind {
                EntryKind::Event => {
                    let decoded = record::decode(&entry.value);
                    if let record::Decoded::Event(event) = &decoded {
                        let Identity { stream, seq, .. } = event.identity();
                        held.entry(stream).or_default().push((seq.get(), seq.get() + 1));
                    }
                    rows.record(&entry.value, &decoded, Standing::Event, &arrival);
                }
                EntryKind::Checkpoint => assert!(rows.checkpoint(&entry.value, &arrival)),
                EntryKind::Chunk => assert!(rows.chunk(&entry.header, &entry.value, &arrival)),
                EntryKind::Control => {}
            }
        }
        let mut files = FileSet::new(list);
        files.append(&rows.finish().unwrap()).unwrap();
        let streams = held.iter().map(|(stream, spans)| (stream, spans.as_slice()));
        let tags = match self.tagged.load(Ordering::Relaxed) {
            true => custody_lake::tags::write(&app_id, streams),
            false => BTreeMap::default(),
        };
        let encoded = files.finish("test", &tags).unwrap();
        let files = table.store(&encoded).await.unwrap();
        let step = TxnStep { app_id, start, end: up_to };
        let done = table.commit(&files, &[step]).await.unwrap();
        assert!(matches!(done, Committed::Committed { .. }), "{done:?}");
    }
}

fn labels(call: &Call) -> Vec<String> {
    if call.phi { vec!["phi".to_owned()] } else { Vec::new() }
}

fn subjects(call: &Call) -> Vec<Subject> {
    let subject = |id: &String| Subject {
        id: id.clone(),
        system: "fhir:Patient".to_owned(),
        direction: Direction::Received,
        categories: vec!["Observation".to_owned()],
        records: Some(Uint::new(2)),
        aliases: Vec::new(),
    };
    call.patients.iter().map(subject).collect()
}

fn draft(call: &Call) -> Draft {
    let mut draft = Draft::new(Kind::CallRequested);
    draft.call = Some(CallId::from_uuid(uuid::Uuid::now_v7()));
    draft.who = Some(Arc::new(Who {
        user: Some(Principal { subject: call.user.to_owned(), ..Principal::default() }),
        agent: Some(Agent { id: call.agent.to_owned(), ..Agent::default() }),
        purpose: Some("TREAT".to_owned()),
        ..Who::default()
    }));
    draft.what = Some(Arc::new(What {
        method: Some("tools/call".to_owned()),
        server: Some("ehr".to_owned()),
        tool: Some(call.tool.to_owned()),
        ..What::default()
    }));
    draft.decision = Some(Arc::new(Decision { effect: Effect::Allow, ..Decision::default() }));
    draft.data = Data { labels: labels(call), ..Data::default() };
    draft
}

/// The whole answer as one batch.
pub(crate) async fn answer(engine: &Arc<Engine>, sql: &str) -> Result<RecordBatch, QueryError> {
    ask(engine, Question::sql(sql, Params::None)).await
}

pub(crate) async fn ask(
    engine: &Arc<Engine>,
    question: Question,
) -> Result<RecordBatch, QueryError> {
    let mut answer = engine.ask(&Asker::anonymous(), question).await?;
    let mut batches = Vec::new();
    while let Some(batch) = answer.next().await {
        batches.push(batch?);
    }
    Ok(arrow::compute::concat_batches(&answer.schema, &batches).unwrap())
}

/// The whole answer as lines of JSON.
pub(crate) async fn lines(engine: &Arc<Engine>, sql: &str) -> Vec<serde_json::Value> {
    let batch = answer(engine, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    json(&batch)
}

pub(crate) fn json(batch: &RecordBatch) -> Vec<serde_json::Value> {
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(Vec::new());
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    let text = String::from_utf8(writer.into_inner()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
