//! Cuts over several nodes: engines that stand at different places of the same lake and journal.

use std::sync::Arc;

use custody_journal::Topic;
use custody_schemas::words::Status;
use serde_json::Value;

use crate::access::Asker;
use crate::testing::{Call, Deployment, call, json};
use crate::{Engine, Params, QueryError, Question};

const QUESTIONS: [&str; 7] = [
    "SELECT * EXCLUDE (stored_at) FROM events ORDER BY journal_offset",
    "SELECT body, index, bytes, journal_offset FROM bodies ORDER BY journal_partition, journal_offset",
    "SELECT user_subject, tool, status, phi FROM calls ORDER BY at, call",
    "SELECT user_subject, subject_id, direction, status FROM accesses ORDER BY call, subject_id",
    "SELECT part, bytes, body_status FROM call_bodies ORDER BY at, call, part",
    "SELECT * FROM completeness",
    "SELECT count(*) AS n FROM events WHERE kind = 'call.ended' AND user_subject = 'ann'",
];

/// The rows, and the cut they were read at.
async fn at(engine: &Arc<Engine>, sql: &str, cut: Option<&str>) -> (Vec<Value>, String) {
    let question = Question { cut: cut.map(str::to_owned), ..Question::sql(sql, Params::None) };
    let mut answer = engine.ask(&Asker::anonymous(), question).await.unwrap();
    let mut rows = Vec::new();
    while let Some(batch) = answer.next().await {
        rows.extend(json(&batch.unwrap()));
    }
    (rows, answer.completeness.cut)
}

async fn all_at(engine: &Arc<Engine>, cut: &str) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for question in QUESTIONS {
        let (rows, same) = at(engine, question, Some(cut)).await;
        assert_eq!(same, cut);
        all.push(rows);
    }
    all
}

async fn some_calls(deployment: &Deployment) {
    let many: Vec<String> = (0..300).map(|i| format!("p{i:04}")).collect();
    let many = Call { patients: many, ..call("ann", "search", &[]) };
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    deployment.run(&many, Status::Ok).await;
    deployment.deny(&call("eve", "read", &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_gives_the_same_answer_at_the_same_cut_wherever_the_lake_ends() {
    let deployment = Deployment::new().await;
    some_calls(&deployment).await;
    let first = deployment.engine().await;
    let (open, draft) = deployment.open(&call("cy", "slow", &[])).await;
    let (now, cut) = at(&first, QUESTIONS[2], None).await;
    let below = deployment.end_offset();
    // What comes later is in no answer at the cut: not the ending, not other calls.
    deployment.end(open, draft, &call("cy", "slow", &[]), Status::Ok).await;
    some_calls(&deployment).await;
    let expected = all_at(&first, &cut).await;
    assert_eq!(expected[2], now, "asked at once and asked again at its cut");
    assert!(expected[2].iter().any(|row| row["status"] == "in_flight"));
    assert_eq!(expected[6][0]["n"], 2);
    let end = deployment.end_offset();
    for (i, up_to) in [below - 1, below + 2, end].into_iter().enumerate() {
        deployment.tagged.store(i % 2 == 0, std::sync::atomic::Ordering::Relaxed);
        deployment.carry(Topic::Bodies, up_to).await;
        deployment.carry_and_tell(&first, Topic::Events, up_to).await;
        let fresh = deployment.engine().await;
        for (name, engine) in [("the old node", &first), ("a new node", &fresh)] {
            let found = all_at(engine, &cut).await;
            for ((found, expected), question) in found.iter().zip(&expected).zip(QUESTIONS) {
                assert_eq!(found, expected, "{name}, lake up to {up_to} of {end}: {question}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn completeness_at_a_cut_claims_nothing_of_what_came_later() {
    let deployment = Deployment::new().await;
    some_calls(&deployment).await;
    let mut engine = deployment.engine().await;
    let then = engine.completeness().await.unwrap();
    some_calls(&deployment).await;
    for carried in [false, true] {
        if carried {
            deployment.carry(Topic::Events, deployment.end_offset()).await;
            // Another node, which has not judged this cut before.
            engine = deployment.engine().await;
        }
        let again = engine.completeness_at(&then.cut).await.unwrap();
        assert_eq!(again.line(), then.line());
        assert_eq!(again.complete_through, then.complete_through);
        let events = |c: &crate::completeness::Completeness| c.writers[0].events;
        assert_eq!(events(&again), events(&then));
        let now = engine.completeness().await.unwrap();
        assert!(now.complete_through > then.complete_through && events(&now) > events(&then));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_a_node_has_not_reached_is_an_error_and_so_is_one_of_another_journal() {
    let deployment = Deployment::new().await;
    some_calls(&deployment).await;
    let engine = deployment.engine().await;
    let cut = engine.completeness().await.unwrap().cut;
    let (_, offset) = cut.split_once("events/edge-1:").unwrap();
    let offset = offset.split(',').next().unwrap();
    let ahead = cut.replace(&format!("events/edge-1:{offset}"), "events/edge-1:1000000");
    let error = engine.completeness_at(&ahead).await.expect_err("nobody has come that far");
    assert!(matches!(error, QueryError::NotYet(_)), "{error}");
    assert!(error.to_string().contains("of 1000000"), "{error}");
    let mut options = deployment.options();
    options.epoch = 2;
    let other = deployment.engine_with(options).await;
    let error = other.completeness_at(&cut).await.expect_err("another epoch");
    assert!(matches!(error, QueryError::BadRequest(_)), "{error}");
}
