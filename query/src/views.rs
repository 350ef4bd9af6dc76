//! The views for people, as SQL over `events` and `bodies`, each column with its meaning.
//!
//! Promises: a call is one row whether it is in flight, ended or denied; a call that touched
//! protected health information has at least one row in `accesses`, with a NULL subject when
//! nobody was recognised, and so has a relayed message; an ending whose opening is missing is a call
//! all the same.

use std::fmt::Write;
use std::sync::LazyLock;

/// A view.
#[derive(Debug)]
pub struct View {
    /// Its name in SQL.
    pub name: &'static str,
    /// What its rows are.
    pub meaning: &'static str,
    /// Its definition.
    pub sql: String,
}

/// Every view.
pub static VIEWS: LazyLock<Vec<View>> = LazyLock::new(|| {
    let view = |name, meaning, sql| View { name, meaning, sql };
    vec![
        view("calls", "one row per call, in flight, ended or denied", calls()),
        view(
            "accesses",
            "one row per call or relayed message, data subject and direction",
            accesses(),
        ),
        view(
            "phi_access",
            "the accesses to protected health information",
            "SELECT * FROM accesses WHERE phi".to_owned(),
        ),
        view(
            "denied",
            "the calls that were refused",
            "SELECT * FROM calls WHERE status = 'denied'".to_owned(),
        ),
        view("agents", "one row per agent, with what it did", AGENTS.to_owned()),
        view("tools", "one row per tool, with how it was used", TOOLS.to_owned()),
        view(
            "tool_changes",
            "tool definitions as they were first seen or changed",
            TOOL_CHANGES.to_owned(),
        ),
        view("streams", "one row per run of a writer", STREAMS.to_owned()),
        view("quarantine", "what could not be understood, and conflicts", QUARANTINE.to_owned()),
        view("checkpoints", "the signed tree heads", CHECKPOINTS.to_owned()),
        view("queries", "one row per question that was asked, with its statement", queries()),
        view(
            "call_bodies",
            "the bodies of calls and whether they are stored",
            CALL_BODIES.to_owned(),
        ),
    ]
});

/// The view called `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static View> {
    VIEWS.iter().find(|view| view.name == name)
}

/// Who, what and the decision: the ending repeats them, so they are taken from the opening.
const OPENING: &str = "tenant prev_call user_issuer user_subject user_name agent_id agent_name \
    agent_instance agent_version client_name client_version delegation assurance token_id roles \
    purpose purpose_source source_ip user_agent method server recipient recipient_relation tool \
    tool_definition resource prompt activity protocol transport rpc_id trace effect reason \
    policies policy_version approval edits_body edit_count";

/// What only an ending knows.
const ENDING: &str = "http_status code duration_us result_type response_body response_bytes";

/// What the ending knows better, and the opening says for as long as there is none.
const BOTH: &str = "session request_body request_bytes labels identifiers \
    sensitivity disclosure detector subject_status subject_count subjects";

/// What was changed in an answer: an opening's edits are of its request, an ending's of its answer.
const ANSWERS_EDITS: &str =
    ", e.edits_body AS response_edits_body, e.edit_count AS response_edit_count";

fn words(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_whitespace()
}

/// Openings with their endings, and endings whose opening is missing.
fn pairs(opened: &str, refused: &str, ended: &str) -> String {
    let mut sql = String::from("SELECT o.call, o.at, e.at AS ended_at, ");
    let status = format!(
        "CASE WHEN o.kind = '{refused}' THEN 'denied' WHEN e.call IS NULL THEN 'in_flight' \
         ELSE coalesce(e.status, 'unknown') END AS status, \
         coalesce(o.phi, false) OR coalesce(e.phi, false) AS phi"
    );
    sql.push_str(&status);
    let add = |sql: &mut String, text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        sql.write_fmt(text).unwrap_or_default();
    };
    for column in words(OPENING) {
        add(&mut sql, format_args!(", o.{column}"));
    }
    for column in words(ENDING) {
        add(&mut sql, format_args!(", e.{column}"));
    }
    for column in words(BOTH) {
        add(&mut sql, format_args!(", coalesce(e.{column}, o.{column}) AS {column}"));
    }
    sql.push_str(ANSWERS_EDITS);
    add(
        &mut sql,
        format_args!(
            ", o.stream, o.seq, e.stream AS ended_stream, e.seq AS ended_seq \
         FROM (SELECT * FROM events WHERE entry = 'event' AND kind IN ('{opened}', '{refused}')) o \
         LEFT JOIN (SELECT * FROM events WHERE entry = 'event' AND kind = '{ended}') e \
         ON o.call = e.call \
         UNION ALL SELECT e.call, e.at, e.at AS ended_at, coalesce(e.status, 'unknown') AS status, \
         coalesce(e.phi, false) AS phi"
        ),
    );
    for column in words(OPENING).chain(words(ENDING)).chain(words(BOTH)) {
        match column {
            "edits_body" => sql.push_str(", CAST(NULL AS VARCHAR) AS edits_body"),
            "edit_count" => sql.push_str(", CAST(NULL AS BIGINT) AS edit_count"),
            column => add(&mut sql, format_args!(", e.{column}")),
        }
    }
    sql.push_str(ANSWERS_EDITS);
    add(
        &mut sql,
        format_args!(
            ", CAST(NULL AS VARCHAR) AS stream, CAST(NULL AS BIGINT) AS seq, \
         e.stream AS ended_stream, e.seq AS ended_seq \
         FROM (SELECT * FROM events WHERE entry = 'event' AND kind = '{ended}') e \
         LEFT ANTI JOIN (SELECT * FROM events WHERE entry = 'event' AND kind = '{opened}') o \
         ON e.call = o.call"
        ),
    );
    sql
}

fn calls() -> String {
    pairs("call.requested", "call.denied", "call.ended")
}

/// What an access shows of its call.
const ACCESS: &str = "at ended_at status phi tenant user_issuer user_subject user_name agent_id \
    agent_name agent_instance agent_version delegation assurance token_id roles purpose \
    purpose_source source_ip method server recipient recipient_relation tool resource prompt \
    activity session trace effect policies http_status code duration_us labels identifiers \
    sensitivity disclosure detector subject_status subject_count request_body response_body \
    stream seq ended_stream ended_seq";

/// What `subjects.listed` says itself, should its call be missing.
const LISTED: &str = "at tenant user_issuer user_subject user_name agent_id agent_name method \
    server recipient recipient_relation tool resource purpose";

fn accesses() -> String {
    let subject = "s['system'] AS subject_system, s['id'] AS subject_id, \
        s['direction'] AS direction, s['categories'] AS categories, s['records'] AS records, \
        s['aliases'] AS aliases";
    let own = words(ACCESS).collect::<Vec<_>>().join(", ");
    let from_call = |column| {
        if words(LISTED).any(|c| c == column) {
            return format!("coalesce(c.{column}, l.{column}) AS {column}");
        }
        match column {
            "status" => "coalesce(c.status, CASE WHEN l.call IS NULL THEN 'relayed' \
                ELSE 'in_flight' END) AS status"
                .to_owned(),
            "phi" => "coalesce(c.phi, true) AS phi".to_owned(),
            other => format!("c.{other}"),
        }
    };
    let joined = words(ACCESS).map(from_call).collect::<Vec<_>>().join(", ");
    let listed = words(LISTED).collect::<Vec<_>>().join(", ");
    let relayed = words(ACCESS).map(|column| match column {
        "ended_at" => "CAST(NULL AS TIMESTAMP) AS ended_at".to_owned(),
        "status" => "'relayed' AS status".to_owned(),
        "ended_stream" => "CAST(NULL AS VARCHAR) AS ended_stream".to_owned(),
        "ended_seq" => "CAST(NULL AS BIGINT) AS ended_seq".to_owned(),
        other => other.to_owned(),
    });
    let relayed = relayed.collect::<Vec<_>>().join(", ");
    let stored = words(ACCESS).filter(|c| *c != "status" && !c.starts_with("ended_"));
    let stored = stored.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT call, {own}, {subject} FROM (SELECT call, {own}, \
           unnest(at_least_one(subjects)) AS s FROM calls \
           WHERE status <> 'denied' AND (phi OR subjects IS NOT NULL)) \
         UNION ALL SELECT l.call, {joined}, {subject} FROM (SELECT call, {listed}, \
           unnest(subjects) AS s FROM events WHERE entry = 'event' AND kind = 'subjects.listed') l \
         LEFT JOIN calls c ON l.call = c.call \
         UNION ALL SELECT call, {relayed}, {subject} FROM (SELECT call, {stored}, \
           unnest(at_least_one(subjects)) AS s FROM events \
           WHERE entry = 'event' AND kind = 'message.relayed' AND (phi OR subjects IS NOT NULL))"
    )
}

fn queries() -> String {
    format!(
        "SELECT call, at, ended_at, status, user_subject, user_name, agent_id, roles, source_ip, \
         method, json_text(request, 'sql') AS statement, json_text(request, 'params') AS params, \
         duration_us, request_body, request, stream, seq FROM (SELECT q.call, q.at, q.ended_at, q.status, q.user_subject, q.user_name, q.agent_id, \
         q.roles, q.source_ip, q.method, q.duration_us, q.request_body, \
         TRY_CAST(b.bytes AS VARCHAR) AS request, q.stream, q.seq \
         FROM ({}) q LEFT JOIN (SELECT body, bytes FROM bodies \
           WHERE count = 1 AND encoding = 'identity' AND cipher = 'none') b \
         ON q.request_body = b.body)",
        pairs("query.requested", "query.denied", "query.ended")
    )
}

const AGENTS: &str = "SELECT agent_id, max(agent_name) AS agent_name, min(at) AS first_at, \
    max(at) AS last_at, count(*) AS calls, count(*) FILTER (WHERE phi) AS phi_calls, \
    count(*) FILTER (WHERE status = 'denied') AS denied, \
    count(*) FILTER (WHERE status NOT IN ('ok', 'denied', 'in_flight')) AS failed, \
    count(DISTINCT user_subject) AS users, count(DISTINCT server) AS servers \
    FROM calls GROUP BY agent_id";

const TOOLS: &str = "SELECT server, tool, min(at) AS first_at, max(at) AS last_at, \
    count(*) AS calls, count(*) FILTER (WHERE phi) AS phi_calls, \
    count(*) FILTER (WHERE status = 'denied') AS denied, \
    count(*) FILTER (WHERE status NOT IN ('ok', 'denied', 'in_flight')) AS failed, \
    count(DISTINCT agent_id) AS agents, \
    CAST(avg(duration_us) AS BIGINT) AS mean_duration_us \
    FROM calls WHERE tool IS NOT NULL GROUP BY server, tool";

const TOOL_CHANGES: &str = "SELECT t.at, t.server, t.tool, t.tool_definition, \
    json_text(t.detail, 'previous') AS previous_definition, json_text(t.detail, 'change') AS change, \
    TRY_CAST(b.bytes AS VARCHAR) AS definition, t.call, t.detail, t.stream, t.seq \
    FROM (SELECT * FROM events WHERE entry = 'event' AND kind = 'tools.observed') t \
    LEFT JOIN (SELECT body, bytes FROM bodies \
        WHERE count = 1 AND encoding = 'identity' AND cipher = 'none') b \
    ON t.request_body = b.body";

const STREAMS: &str = "SELECT s.stream, s.writer, s.first_at, s.last_at, s.events, s.gaps, s.closed, \
    coalesce(f.found, 0) AS integrity_failures \
    FROM (SELECT stream, split_part(stream, '/', 1) AS writer, \
        min(at) AS first_at, max(at) AS last_at, count(DISTINCT seq) AS events, \
        max(seq) + 1 - count(DISTINCT seq) AS gaps, \
        bool_or(kind = 'stream.closed') AS closed \
        FROM events WHERE entry = 'event' AND stream IS NOT NULL GROUP BY stream) s \
    LEFT JOIN (SELECT json_text(detail, 'stream') AS stream, count(*) AS found FROM events \
        WHERE entry = 'event' AND kind = 'integrity.failed' GROUP BY json_text(detail, 'stream')) f \
    ON s.stream = f.stream";

const QUARANTINE: &str = "SELECT journaled_at, entry, problem, stream, seq, record, raw, \
    journal_partition, journal_offset \
    FROM events WHERE entry IN ('undecodable', 'conflict') OR problem IS NOT NULL";

const CHECKPOINTS: &str = "SELECT journaled_at, stream, detail, raw, journal_partition, \
    journal_offset FROM events WHERE entry = 'checkpoint'";

const CALL_BODIES: &str = "SELECT r.call, r.at, r.part, r.body, r.bytes, \
    coalesce(b.chunks, 0) AS chunks_stored, b.count AS chunks, \
    CASE WHEN b.body IS NULL THEN 'pending' WHEN b.chunks < b.count THEN 'partial' \
      ELSE 'stored' END AS body_status \
    FROM (SELECT call, at, 'request' AS part, request_body AS body, request_bytes AS bytes \
        FROM calls WHERE request_body IS NOT NULL \
      UNION ALL SELECT call, at, 'response', response_body, response_bytes \
        FROM calls WHERE response_body IS NOT NULL \
      UNION ALL SELECT call, at, 'edits', edits_body, CAST(NULL AS BIGINT) \
        FROM calls WHERE edits_body IS NOT NULL \
      UNION ALL SELECT call, at, 'response_edits', response_edits_body, CAST(NULL AS BIGINT) \
        FROM calls WHERE response_edits_body IS NOT NULL) r \
    LEFT JOIN (SELECT body, max(\"count\") AS \"count\", count(DISTINCT \"index\") AS chunks \
        FROM bodies WHERE problem IS NULL GROUP BY body) b \
    ON r.body = b.body";

/// What the columns mean that only views have.
pub const MEANINGS: &[(&str, &str)] = &[
    ("ended_at", "when the ending was recorded; NULL while in flight"),
    ("ended_stream", "the run that recorded the ending"),
    ("ended_seq", "the ending's index in that stream"),
    ("subject_system", "the system of the data subject's identifier"),
    ("subject_id", "the data subject (patient); NULL when nobody was recognised"),
    ("direction", "`sent` by the agent or `received`"),
    ("categories", "kinds of data, for example FHIR resource types"),
    ("records", "how many records of this person passed"),
    ("aliases", "other identifiers of the same person, `system|value`"),
    ("first_at", "the first time"),
    ("last_at", "the last time"),
    ("calls", "how many calls"),
    ("phi_calls", "how many of them touched protected health information"),
    ("denied", "how many were refused"),
    ("failed", "how many ended otherwise than `ok`"),
    ("users", "how many different users"),
    ("servers", "how many different servers"),
    ("agents", "how many different agents"),
    ("mean_duration_us", "mean of the calls' durations, in microseconds"),
    ("writer", "the writer whose run it is"),
    ("events", "how many different events are stored"),
    ("gaps", "how many events below the last are missing"),
    ("closed", "whether its last event is there"),
    ("integrity_failures", "how often something stored of it was found not to be what was signed"),
    ("part", "`request`, `response`, `edits` (of the request) or `response_edits`"),
    ("response_edits_body", "id of the body that says what the proxy changed in the answer"),
    ("response_edit_count", "how many edits the proxy made in the answer"),
    ("bytes", "length in bytes"),
    ("chunks", "how many chunks it has; NULL while none is visible"),
    ("chunks_stored", "how many of its chunks are visible"),
    ("body_status", "`stored`, `partial`, or `pending` while none is visible"),
    ("definition", "the tool as its server described it; NULL while its body is not visible"),
    ("previous_definition", "hash of the definition before it; NULL when there was none"),
    ("change", "`first` or `changed`"),
    ("statement", "the statement in SQL; NULL while its body is not visible"),
    ("params", "its parameters, as JSON"),
    ("request", "statement and parameters as they were sent"),
];
