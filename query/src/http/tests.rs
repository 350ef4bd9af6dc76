//! The edge over a real engine, by requests as they come from the wire.

use axum::body::to_bytes;
use http::Method;
use sha2::{Digest, Sha256};
use tower::ServiceExt;

use super::*;
use crate::access::Token;
use crate::testing::{Deployment, call};
use custody_schemas::words::Status;

struct Client(Router);

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    /// The bytes, or nothing when the connection broke off.
    body: Option<Bytes>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(self.body.as_ref().unwrap()).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.as_ref().unwrap().to_vec()).unwrap()
    }
}

impl Client {
    async fn of(deployment: &Deployment) -> Self {
        Self(router(deployment.engine().await, HttpOptions::default()))
    }

    async fn send(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(uri);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost:7480");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.0.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.ok();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    async fn sql(&self, sql: &str, format: &str) -> Reply {
        self.send(Method::POST, &format!("/v1/sql?format={format}"), &[], sql).await
    }

    async fn get(&self, uri: &str) -> Reply {
        self.send(Method::GET, uri, &[], "").await
    }
}

async fn deployment() -> Deployment {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1", "p2"]), Status::Ok).await;
    deployment.run(&call("bob", "notes", &[]), Status::ToolError).await;
    deployment
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_carries_the_same_rows_and_their_completeness() {
    let deployment = deployment().await;
    let client = Client::of(&deployment).await;
    let sql = "SELECT user_subject, subject_id, categories FROM accesses ORDER BY 1, 2";
    let json = client.sql(sql, "json").await;
    assert_eq!(json.status, StatusCode::OK, "{}", json.text());
    let answer = json.json();
    assert_eq!((&answer["row_count"], &answer["complete"]), (&json!(3), &json!(true)));
    let header: Value =
        serde_json::from_str(json.headers["custody-completeness"].to_str().unwrap()).unwrap();
    assert_eq!(header["phi_calls_without_patient"], 1);
    assert_eq!(answer["completeness"]["phi_calls_without_patient"], 1);
    assert!(answer["completeness_line"].as_str().unwrap().contains("calls that passed no proxy"));

    let lines = client.sql(sql, "ndjson").await.text();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(Value::from(lines), answer["rows"]);

    let csv = client.sql(sql, "csv").await.text();
    assert_eq!(csv.lines().nth(1), Some("ann,p1,Observation"));
    assert_eq!(csv.lines().nth(3), Some("bob,,"));

    let arrow = client.sql(sql, "arrow").await.body.unwrap();
    let arrow = arrow::ipc::reader::StreamReader::try_new(arrow.as_ref(), None).unwrap();
    assert!(arrow.schema().metadata().contains_key("custody.completeness"));
    assert_eq!(arrow.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);

    let parquet = client.sql(sql, "parquet").await.body.unwrap();
    let parquet =
        parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(parquet, 100).unwrap();
    assert_eq!(parquet.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one() {
    let deployment = deployment().await;
    let mut options = deployment.options();
    options.max_rows = 20_000;
    let engine = deployment.engine_with(options).await;
    let client = Client(router(engine, HttpOptions::default()));
    for format in ["json", "ndjson", "csv", "arrow", "parquet"] {
        let reply = client.sql("SELECT * FROM range(0, 100000)", format).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.body.is_none(), "{format}: the connection must break off");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_bound_by_position_and_by_name() {
    let deployment = deployment().await;
    let client = Client::of(&deployment).await;
    let json = [("content-type", "application/json")];
    for body in [
        r#"{"sql": "SELECT count(*) AS n FROM accesses WHERE subject_id = $1", "params": ["p1"]}"#,
        r#"{"sql": "SELECT count(*) AS n FROM accesses WHERE subject_id = $p", "params": {"p": "p1"}}"#,
    ] {
        let reply = client.send(Method::POST, "/v1/sql", &json, body).await;
        assert_eq!(reply.json()["rows"], json!([{ "n": 1 }]));
    }
    let unbound = r#"{"sql": "SELECT $1", "params": []}"#;
    let reply = client.send(Method::POST, "/v1/sql", &json, unbound).await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", reply.text());
    let reply = client.send(Method::POST, "/v1/sql", &json, r#"{"sq": "x"}"#).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_a_status_a_kind_and_a_hint() {
    let deployment = deployment().await;
    let client = Client::of(&deployment).await;
    for (sql, status, kind) in [
        ("SELECT nothing FROM calls", 422, "invalid"),
        ("SELEC", 422, "invalid"),
        ("", 422, "invalid"),
        ("SELECT * FROM nowhere", 422, "invalid"),
        ("SELECT 1/0", 422, "invalid"),
        ("DROP TABLE events", 403, "denied"),
        ("COPY events TO '/tmp/x'", 403, "denied"),
        ("SELECT range(0, 100000000000)", 422, "too_much"),
    ] {
        let reply = client.sql(sql, "json").await;
        assert_eq!(reply.status.as_u16(), status, "{sql}: {}", reply.text());
        let error = &reply.json()["error"];
        assert_eq!(error["kind"], kind, "{sql}: {error}");
        assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    }
    let long = format!("SELECT '{}'", "x".repeat(MAX_REQUEST_BYTES));
    assert_eq!(client.sql(&long, "json").await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_holders_of_a_token_may_ask_and_only_under_our_name() {
    let deployment = deployment().await;
    let token = |name: &str, role: &str| Token {
        name: name.to_owned(),
        sha256: Sha256::digest(name).into(),
        roles: vec![role.to_owned()],
    };
    let access = Access::new(vec![token("ann", "auditor"), token("rob", "reports")]);
    let hosts = vec!["audit.example".to_owned()];
    let options = HttpOptions { access, hosts, control: None, lake: None };
    let client = Client(router(deployment.engine().await, options));
    let ask = async |token: &str, host: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("host", host)];
        client.send(Method::POST, "/v1/sql", &headers, "SELECT 1").await.status.as_u16()
    };
    assert_eq!(ask("ann", "localhost").await, 200);
    assert_eq!(ask("ann", "[::1]:7480").await, 200);
    assert_eq!(ask("ann", "AUDIT.example:443").await, 200);
    assert_eq!(ask("ann", "evil.example").await, 421);
    let foreign = [("authorization", "Bearer ann"), ("origin", "https://evil.example")];
    let foreign = client.send(Method::POST, "/v1/sql", &foreign, "SELECT 1").await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    let own = [("authorization", "Bearer ann"), ("origin", "http://localhost:7480")];
    let own = client.send(Method::POST, "/v1/sql", &own, "SELECT 1").await;
    assert_eq!(own.status, StatusCode::OK);
    assert_eq!(ask("eve", "localhost").await, 401);
    assert_eq!(ask("rob", "localhost").await, 403);
    let refused = client.get("/v1/reports/phi-access?from=2026-01-01&to=2026-01-01").await;
    assert_eq!(refused.headers[WWW_AUTHENTICATE], "Bearer realm=\"custody\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_shows_first_what_has_no_patient_and_says_its_period() {
    let deployment = deployment().await;
    let client = Client::of(&deployment).await;
    let report = |more: &str| format!("/v1/reports/phi-access?from=2020-01-01&to=2100-12-31{more}");
    let reply = client.get(&report("")).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let answer = reply.json();
    let shown: Vec<_> = answer["rows"].as_array().unwrap().iter().collect();
    let facts =
        |row: &Value| (row["user"].clone(), row["patient_id"].clone(), row["outcome"].clone());
    assert_eq!(facts(shown[0]), (json!("bob"), Value::Null, json!("tool_error")));
    assert_eq!(facts(shown[1]), (json!("ann"), json!("p1"), json!("ok")));
    assert_eq!(answer["period"]["from_utc"], "2020-01-01T00:00:00Z");
    assert_eq!(answer["period"]["to_utc"], "2101-01-01T00:00:00Z");
    assert_eq!(reply.headers["custody-period"], "2020-01-01T00:00:00Z/2101-01-01T00:00:00Z UTC");
    for (filter, rows) in [
        ("&user=ann", 2),
        ("&user=bob&agent=triage", 1),
        ("&patient=p2", 1),
        ("&patient=fhir:Patient%7Cp2", 1),
        ("&tool=ehr/read", 2),
        ("&tool=read&patient=p3", 0),
    ] {
        let answer = client.get(&report(filter)).await.json();
        assert_eq!(answer["row_count"], rows, "{filter}");
    }
    let csv = client.get(&report("&format=csv")).await;
    assert!(csv.headers[CONTENT_DISPOSITION].to_str().unwrap().contains("phi-access_2020-01-01"));
    let wrong = client.get("/v1/reports/phi-access?from=2026-01-01").await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    let unknown = client.get(&report("&pateint=p1")).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST, "a misspelt filter must not be ignored");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_lets_nothing_else_run() {
    let deployment = Deployment::new().await;
    let client = Client::of(&deployment).await;
    for uri in ["/", "/page.css", "/page.js"] {
        let reply = client.get(uri).await;
        assert_eq!(reply.status, StatusCode::OK);
        let policy = reply.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
    }
    let page = client.get("/").await.text();
    assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("onclick"));
    assert!(!page.contains("http:") && !page.contains("https:"));
    for uri in ["/healthz", "/readyz", "/metrics", "/v1/completeness"] {
        assert_eq!(client.get(uri).await.status, StatusCode::OK, "{uri}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_somebody_without_a_token_no_body_is_awaited() {
    let deployment = Deployment::new().await;
    let token = format!("ann=sha256:{};sql", hex::encode(Sha256::digest("s3cret")));
    let access = Access::new(vec![Token::parse(&token).unwrap()]);
    let options = HttpOptions { access, ..HttpOptions::default() };
    let router = router(deployment.engine().await, options);
    let never = Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
    let request = Request::builder().method(Method::POST).uri("/v1/sql");
    let request = request.header("host", "localhost:7480").body(never).unwrap();
    let response = tokio::time::timeout(Duration::from_secs(5), router.oneshot(request)).await;
    assert_eq!(response.unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
}
