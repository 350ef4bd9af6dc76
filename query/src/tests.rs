//! The engine over a real journal and a real lake.

mod kafka;

use std::sync::Arc;
use std::time::Duration;

use custody_journal::Topic;
use custody_lake::LakeOptions;
use custody_lake::faults::FaultyStore;
use custody_lake::store::DurableFileSystem;
use custody_schemas::words::Status;
use serde_json::{Value, json};

use crate::access::Asker;
use crate::testing::{Deployment, answer, ask, call, lines};
use crate::{Engine, Params, QueryError, Question};

/// Some of everything.
async fn history(deployment: &Deployment) {
    let many: Vec<String> = (0..400).map(|i| format!("p{i:04}")).collect();
    let many = crate::testing::Call { patients: many, ..call("ann", "search", &[]) };
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    deployment.run(&call("bob", "read", &["p1", "p2"]), Status::Ok).await;
    deployment.run(&call("bob", "notes", &[]), Status::ToolError).await;
    deployment.run(&many, Status::Ok).await;
    deployment.deny(&call("eve", "read", &[])).await;
    let plain = crate::testing::Call { phi: false, ..call("ann", "time", &[]) };
    deployment.run(&plain, Status::Ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_message_with_phi_is_an_access_with_or_without_a_patient() {
    let deployment = Deployment::new().await;
    deployment.relay(&call("ann", "push", &["p9"])).await;
    deployment.relay(&call("ann", "push", &[])).await;
    let engine = deployment.engine().await;
    let sql = "SELECT user_subject AS u, subject_id AS s, direction AS d, status \
        FROM phi_access ORDER BY at, subject_id";
    let expected = [
        json!({ "u": "ann", "s": "p9", "d": "received", "status": "relayed" }),
        json!({ "u": "ann", "s": null, "d": null, "status": "relayed" }),
    ];
    assert_eq!(lines(&engine, sql).await, expected);
    deployment.carry_and_tell(&engine, Topic::Events, deployment.end_offset()).await;
    assert_eq!(lines(&engine, sql).await, expected);
    for engine in [&engine, &deployment.engine().await] {
        let judged = engine.completeness().await.unwrap();
        assert_eq!((judged.phi_calls, judged.phi_calls_without_patient), (2, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_nobody_has_read_yet_takes_two_requests() {
    let store = FaultyStore::new(Arc::new(DurableFileSystem::new()));
    let mut lake = LakeOptions::new("audit.test");
    lake.store = Some(store.clone());
    let deployment = Deployment::over(lake).await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let engine = deployment.engine().await;
    deployment.carry_and_tell(&engine, Topic::Events, deployment.end_offset()).await;
    let before = store.reads();
    let sql = "SELECT count(DISTINCT tool) AS n FROM events";
    assert_eq!(lines(&engine, sql).await, [json!({ "n": 1 })]);
    assert_eq!(store.reads() - before, 2, "its footer with the indexes, and the column");
}

const QUESTIONS: [&str; 11] = [
    "SELECT min(at) AS first, min(seq) AS seq, min(journaled_at) AS taken FROM events",
    "SELECT count(*) AS n FROM events WHERE kind NOT LIKE 'query.%' AND entry = 'event'",
    "SELECT user_subject, tool, status, phi FROM calls ORDER BY at, call",
    "SELECT user_subject, subject_id, direction, status FROM accesses ORDER BY call, subject_id",
    "SELECT count(*) AS n, count(subject_id) AS known FROM phi_access",
    "SELECT user_subject, reason FROM denied",
    "SELECT * EXCLUDE (first_at, last_at) FROM agents",
    "SELECT * EXCLUDE (first_at, last_at) FROM tools ORDER BY tool",
    "SELECT writer, gaps, closed FROM streams",
    "SELECT part, bytes, body_status FROM call_bodies ORDER BY at, call, part",
    "SELECT count(DISTINCT journal_offset) = count(*) AS once FROM events",
];

async fn answers(engine: &Arc<Engine>) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for question in QUESTIONS {
        all.push(lines(engine, question).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_give_the_same_answers_wherever_the_lake_ends() {
    let deployment = Deployment::new().await;
    history(&deployment).await;
    let (open, _draft) = deployment.open(&call("cy", "slow", &[])).await;
    let end = deployment.end_offset();
    let engine = deployment.engine().await;
    let expected = answers(&engine).await;
    for up_to in 1..=end {
        if up_to % 3 == 0 {
            deployment.carry(Topic::Bodies, up_to).await;
        }
        deployment.carry_and_tell(&engine, Topic::Events, up_to).await;
        let accesses = lines(&engine, QUESTIONS[3]).await;
        assert_eq!(accesses, expected[3], "with {up_to} of {end} entries in the lake");
        if up_to == end / 2 || up_to == end {
            assert_eq!(answers(&engine).await, expected, "with {up_to} of {end} entries");
            let fresh = deployment.engine().await;
            assert_eq!(answers(&fresh).await, expected, "after a restart at {up_to} of {end}");
            let (old, new) = (engine.completeness().await, fresh.completeness().await);
            let facts = |c: crate::completeness::Completeness| {
                (c.gaps, c.open_calls, c.unknown_outcomes, c.phi_calls, c.phi_calls_without_patient)
            };
            assert_eq!(facts(old.unwrap()), facts(new.unwrap()));
        }
    }
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_one_row_and_no_phi_call_is_without_an_access() {
    let deployment = Deployment::new().await;
    history(&deployment).await;
    let (open, _draft) = deployment.open(&call("cy", "slow", &[])).await;
    let engine = deployment.engine().await;
    let calls =
        lines(&engine, "SELECT user_subject AS u, status AS s FROM calls ORDER BY at").await;
    let expected = [
        ("ann", "ok"),
        ("bob", "ok"),
        ("bob", "tool_error"),
        ("ann", "ok"),
        ("eve", "denied"),
        ("ann", "ok"),
        ("cy", "in_flight"),
    ];
    let expected: Vec<_> = expected.iter().map(|(u, s)| json!({ "u": u, "s": s })).collect();
    assert_eq!(calls, expected);
    let sql = "SELECT tool, count(*) AS n, count(subject_id) AS known, count(DISTINCT subject_id) \
        AS patients FROM phi_access GROUP BY tool ORDER BY tool";
    let accesses = lines(&engine, sql).await;
    let expected =
        [("notes", 1, 0, 0), ("read", 3, 3, 2), ("search", 400, 400, 400), ("slow", 1, 0, 0)];
    let expected: Vec<_> = expected
        .iter()
        .map(|(t, n, k, p)| json!({ "tool": t, "n": n, "known": k, "patients": p }))
        .collect();
    assert_eq!(accesses, expected);
    let who =
        lines(&engine, "SELECT DISTINCT user_subject AS u FROM accesses WHERE tool = 'search'")
            .await;
    assert_eq!(who, [json!({ "u": "ann" })], "listed subjects carry who asked");
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_opening_is_missing_is_shown_all_the_same() {
    let deployment = Deployment::new().await;
    let one = call("ann", "read", &["p1"]);
    let (slot, draft) = deployment.open(&one).await;
    let opening = deployment.end_offset();
    deployment.end(slot, draft, &one, Status::Ok).await;
    // A lake that stands beyond the opening without holding it.
    let app_id = "file/custody.events@1/edge-1".to_owned();
    let step = custody_lake::TxnStep { app_id, start: None, end: opening };
    deployment.lake.events().commit(&[], &[step]).await.unwrap();
    let engine = deployment.engine().await;
    let sql = "SELECT status, phi, subject_id FROM accesses";
    let row = json!({ "status": "ok", "phi": true, "subject_id": "p1" });
    assert_eq!(lines(&engine, sql).await, [row]);
    assert!(engine.completeness().await.unwrap().gaps > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_writes_or_reads_files_is_refused_and_recorded() {
    let deployment = Deployment::new().await;
    let engine = deployment.engine().await;
    let file = deployment.dir.path().join("out.csv");
    for sql in [
        "INSERT INTO events SELECT * FROM events".to_owned(),
        format!("COPY (SELECT 1) TO '{}'", file.display()),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".to_owned(),
        "SET datafusion.execution.target_partitions = 100".to_owned(),
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "SELECT * FROM read_parquet('/etc/passwd')".to_owned(),
        "SELECT * FROM read_csv('/etc/passwd')".to_owned(),
        "SELECT * FROM parquet_metadata('/etc/passwd')".to_owned(),
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "DROP TABLE events".to_owned(),
    ] {
        let error = answer(&engine, &sql).await.expect_err(&sql);
        assert!(matches!(error.kind(), "denied" | "invalid"), "{sql}: {error:?}");
    }
    assert!(!file.exists());
    let ended =
        lines(&engine, "SELECT count(*) AS n FROM queries WHERE status = 'rpc_error'").await;
    assert_eq!(ended, [json!({ "n": 10 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_end_is_stopped_by_its_deadline() {
    let deployment = Deployment::new().await;
    let mut options = deployment.options();
    options.deadline = Duration::from_secs(3);
    let engine = deployment.engine_with(options).await;
    for sql in [
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
        "SELECT count(*) FROM range(0, 10000000000) a, range(0, 10000000000) b",
        "SELECT sum(a.value * b.value) FROM range(0, 1000000) a CROSS JOIN range(0, 1000000) b",
    ] {
        let since = std::time::Instant::now();
        let error = answer(&engine, sql).await.expect_err(sql);
        assert!(matches!(error, QueryError::TimedOut(_)), "{sql}: {error:?}");
        assert!(since.elapsed() < Duration::from_secs(10), "{sql} took {:?}", since.elapsed());
        // The work has stopped too, and left the threads to others.
        let one = answer(&engine, "SELECT 1 AS one").await;
        assert!(one.is_ok(), "after {sql}: {one:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_needs_a_hundred_gigabytes_is_an_error() {
    let deployment = Deployment::new().await;
    let engine = deployment.engine().await;
    for sql in [
        "SELECT length(repeat('x', 2000000000)) AS n",
        "SELECT range(0, 100000000000) AS n",
        "SELECT array_repeat(1, 100000000000) AS n",
        "SELECT length(lpad('x', 2000000000, 'y')) AS n",
        "SELECT length(repeat(repeat('x', 1000000), value)) FROM range(0, 100000)",
        "SELECT array_agg(repeat('x', 1000) || value) FROM range(0, 1000000)",
        "SELECT a.value, array_agg(b.value) FROM range(0, 30000000) a \
         JOIN range(0, 30000000) b ON a.value = b.value GROUP BY a.value",
    ] {
        let error = answer(&engine, sql).await.expect_err(sql);
        assert!(matches!(error, QueryError::TooMuchMemory(_)), "{sql}: {error:?}");
    }
    assert_eq!(lines(&engine, "SELECT length(repeat('x', 10)) AS n").await, [json!({ "n": 10 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_rows_than_allowed_are_an_error_and_never_a_short_answer() {
    let deployment = Deployment::new().await;
    let mut options = deployment.options();
    options.max_rows = 100;
    let engine = deployment.engine_with(options).await;
    let sql = "SELECT * FROM range(0, 101)";
    assert!(matches!(answer(&engine, sql).await, Err(QueryError::TooManyRows { limit: 100 })));
    assert_eq!(lines(&engine, "SELECT * FROM range(0, 100)").await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_asker_leaves_the_work_stops_and_its_place_is_free() {
    let deployment = Deployment::new().await;
    let mut options = deployment.options();
    options.concurrency = 1;
    let engine = deployment.engine_with(options).await;
    let sql = "SELECT value FROM range(0, 1000000000000)";
    let endless = Question::sql(sql, Params::None);
    let mut leaving = engine.ask(&Asker::anonymous(), endless).await.unwrap();
    assert!(leaving.next().await.unwrap().is_ok());
    drop(leaving);
    let sql = "SELECT count(*) AS n FROM queries WHERE status = 'abandoned'";
    assert_eq!(lines(&engine, sql).await, [json!({ "n": 1 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_recorded_with_its_parameters_before_its_first_row() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let engine = deployment.engine().await;
    let params = Params::named([("patient", json!("p1"))]);
    let sql = "SELECT user_subject FROM accesses WHERE subject_id = $patient";
    assert_eq!(ask(&engine, Question::sql(sql, params)).await.unwrap().num_rows(), 1);
    // The question that reads the queries sees itself: it was durable before its first row.
    let sql = "SELECT status, request, statement FROM queries ORDER BY at";
    let queries = lines(&engine, sql).await;
    assert_eq!(queries.len(), 2);
    assert_eq!(queries[0]["status"], "ok");
    assert!(queries[0]["statement"].as_str().unwrap().starts_with("SELECT user_subject"));
    let request: Value = serde_json::from_str(queries[0]["request"].as_str().unwrap()).unwrap();
    assert_eq!(request["params"], json!({ "patient": "p1" }));
    assert_eq!(queries[1]["status"], "in_flight");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_that_records_it_a_question_is_not_answered() {
    let deployment = Deployment::new().await;
    let engine = deployment.engine().await;
    deployment.writer.close().await.unwrap();
    let error = answer(&engine, "SELECT 1").await.expect_err("an unrecorded question");
    assert!(matches!(error, QueryError::Audit(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_column_of_every_table_and_view_has_a_meaning() {
    let deployment = Deployment::new().await;
    let engine = deployment.engine().await;
    let sql = "SELECT c.table_name AS t, c.column_name AS c FROM information_schema.columns c \
        LEFT JOIN columns m ON m.\"table\" = c.table_name AND m.\"column\" = c.column_name \
        WHERE c.table_schema = 'public' AND (m.meaning IS NULL OR m.meaning = '')";
    assert_eq!(lines(&engine, sql).await, Vec::<Value>::new());
    let sql = "SELECT count(DISTINCT \"table\") AS n FROM columns";
    assert_eq!(lines(&engine, sql).await, [json!({ "n": 16 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_is_full_says_how_far_behind_it_is_and_goes_on_when_the_lake_catches_up() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let mut options = deployment.options();
    options.tail_bytes = 1;
    let engine = deployment.engine_with(options).await;
    // The first read fills one byte of memory; what comes after stays outside.
    assert!(!lines(&engine, "SELECT call FROM calls").await.is_empty());
    for _ in 0..5 {
        deployment.run(&call("bob", "read", &["p2"]), Status::Ok).await;
    }
    let behind = engine.completeness().await.unwrap();
    assert!(behind.behind > 0, "{}", behind.line());
    assert!(behind.line().contains("behind the journal"));
    deployment.carry(Topic::Events, deployment.end_offset()).await;
    deployment.carry(Topic::Bodies, deployment.end_offset()).await;
    let bobs = "SELECT count(*) AS n FROM calls WHERE user_subject = 'bob'";
    assert_eq!(lines(&engine, bobs).await, [json!({ "n": 5 })], "the lake holds them");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_a_filter_excludes_are_not_opened() {
    let deployment = Deployment::new().await;
    for user in ["ann", "bob"] {
        deployment.run(&call(user, "read", &["p1"]), Status::Ok).await;
        deployment.carry(Topic::Events, deployment.end_offset()).await;
    }
    let engine = deployment.engine().await;
    let sql = "EXPLAIN ANALYZE SELECT count(*) FROM events WHERE user_subject = 'bob'";
    let plan = format!("{:?}", lines(&engine, sql).await);
    assert!(plan.contains("files_ranges_pruned_statistics=2 total → 1 matched"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_opens_no_file_of_openings_outside_its_period() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    deployment.carry(Topic::Events, deployment.end_offset()).await;
    let engine = deployment.engine().await;
    let report = crate::reports::PhiAccess {
        from: Some("2020-01-01".to_owned()),
        to: Some("2020-01-31".to_owned()),
        ..Default::default()
    };
    let mut question = report.question(&report.period(&jiff::tz::TimeZone::UTC).unwrap());
    question.sql = format!("EXPLAIN ANALYZE {}", question.sql);
    let plan = format!("{:?}", crate::testing::json(&ask(&engine, question).await.unwrap()));
    assert!(plan.contains("files_ranges_pruned_statistics=1 total → 0 matched"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_as_deep_as_allowed_is_answered_and_a_deeper_one_is_an_error() {
    let deployment = Deployment::new().await;
    let engine = deployment.engine().await;
    let shapes: [(&str, &str, &str); 14] = [
        ("SELECT 1", "+1", ""),
        ("SELECT 1=1", " OR value=2", " FROM range(0, 2)"),
        ("SELECT 1=1", " AND value=2", " FROM range(0, 2)"),
        ("SELECT 1", " UNION ALL SELECT 1", ""),
        ("SELECT 1", " EXCEPT SELECT 2", ""),
        ("SELECT 1", "::int", ""),
        ("SELECT value", "::int", " FROM range(0, 2)"),
        ("SELECT [1]", "[1]", ""),
        ("SELECT 1", " IS NULL", ""),
        ("SELECT 'a'", "||'a'", ""),
        ("SELECT value", "||'a'", " FROM range(0, 2)"),
        ("SELECT ", "NOT ", "true"),
        ("SELECT ", "- ", "1"),
        ("SELECT 1 FROM range(0, 1)", ", range(0, 1)", ""),
    ];
    for (head, part, tail) in shapes {
        // Each EXCEPT is a join: hundreds of them are planned until the deadline, which says nothing
        // of depth.
        let allowed = if part.contains("EXCEPT") { [20, 60] } else { [450, 900] };
        for times in allowed.into_iter().chain([2_000, 100_000]) {
            let sql = format!("{head}{}{tail}", part.repeat(times));
            let answer = answer(&engine, &sql).await;
            let refused = matches!(answer, Err(QueryError::TooComplex { .. }));
            assert!(refused || times <= 900, "{part} {times} times: {answer:?}");
        }
    }
    let one = lines(&engine, "SELECT 1 AS one").await;
    assert_eq!(one, [json!({ "one": 1 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn patients_that_are_not_listed_are_counted_by_the_tail_and_from_the_lake() {
    let deployment = Deployment::new().await;
    let many: Vec<String> = (0..400).map(|i| format!("p{i:04}")).collect();
    let many = crate::testing::Call { patients: many, ..call("ann", "search", &[]) };
    deployment.run(&many, Status::Ok).await;
    let (slot, mut draft) = deployment.open(&many).await;
    draft.kind = custody_schemas::kind::Kind::CallEnded;
    draft.data.subject_count = Some(custody_schemas::id::Uint::new(100));
    slot.end(draft, Vec::new()).await.unwrap();
    let engine = deployment.engine().await;
    let listed = "SELECT calls_partly_listed AS n, complete FROM completeness";
    let expected = [json!({ "n": 1, "complete": false })];
    assert_eq!(lines(&engine, listed).await, expected);
    let cut = engine.completeness().await.unwrap().cut;
    deployment.carry(Topic::Events, deployment.end_offset()).await;
    let fresh = deployment.engine().await;
    assert_eq!(lines(&fresh, listed).await, expected);
    assert_eq!(fresh.completeness_at(&cut).await.unwrap().calls_partly_listed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_only_the_ending_knows_is_the_call_s() {
    let deployment = Deployment::new().await;
    let first = call("ann", "read", &["p1"]);
    let (slot, mut draft) = deployment.open(&first).await;
    let mut what = custody_schemas::event::What::clone(draft.what.as_ref().unwrap());
    what.session = Some(custody_schemas::id::Bytes([1; 32]));
    draft.what = Some(Arc::new(what));
    deployment.end(slot, draft, &first, Status::Ok).await;
    let engine = deployment.engine().await;
    let sql = "SELECT count(*) AS n FROM calls WHERE session IS NOT NULL";
    assert_eq!(lines(&engine, sql).await, [json!({ "n": 1 })]);
    let sql = "SELECT count(*) AS n FROM phi_access WHERE session IS NOT NULL";
    assert_eq!(lines(&engine, sql).await, [json!({ "n": 1 })]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_answer_never_claims_to_reach_further_than_its_rows() {
    let deployment = Arc::new(Deployment::new().await);
    let engine = deployment.engine().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (busy, done) = (Arc::clone(&deployment), Arc::clone(&stop));
    let appending = tokio::spawn(async move {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let calls = (0..16).map(|_| call("ann", "read", &["p1"])).collect::<Vec<_>>();
            let runs = calls.iter().map(|call| busy.run(call, Status::Ok));
            futures::future::join_all(runs).await;
        }
    });
    for _ in 0..60 {
        let sql = "SELECT max(at) AS at FROM events WHERE entry = 'event'";
        let question = Question::sql(sql, Params::None);
        let mut answer = engine.ask(&Asker::anonymous(), question).await.unwrap();
        let rows = answer.next().await.unwrap().unwrap();
        let last =
            arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(
                rows.column(0).as_ref(),
            )
            .value(0);
        let through: jiff::Timestamp =
            answer.completeness.complete_through.as_deref().unwrap().parse().unwrap();
        assert!(through.as_microsecond() <= last, "{through} is later than the rows' {last}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    appending.await.unwrap();
}
