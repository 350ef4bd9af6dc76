//! Spans against a small collector of our own.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::TcpListener;
use tracing::info_span;
use tracing::subscriber::DefaultGuard;

use super::*;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that answers as it is told and keeps what it takes.
struct Receiver {
    url: String,
    taken: Arc<Mutex<Vec<Json>>>,
}

impl Receiver {
    /// Gives these answers one after the other, the last one for ever.
    async fn answering(statuses: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let taken: Arc<Mutex<Vec<Json>>> = Arc::default();
        let left = Arc::new(Mutex::new(statuses.iter().rev().copied().collect::<Vec<_>>()));
        let log = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, left) = (Arc::clone(&log), Arc::clone(&left));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (log, left) = (Arc::clone(&log), Arc::clone(&left));
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        assert_eq!(request.headers()["content-type"], "application/json");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let status = {
                            let mut left = left.lock().unwrap();
                            if left.len() > 1 { left.pop().unwrap() } else { left[0] }
                        };
                        if status == 200 {
                            log.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                        }
                        let mut response = Response::new(Full::new(bytes::Bytes::from("{}")));
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, Infallible>(response)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, taken }
    }

    /// All spans that were taken.
    fn spans(&self) -> Vec<Json> {
        let taken = self.taken.lock().unwrap();
        let spans = |request: &Json| {
            let resource = &request["resourceSpans"][0];
            assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "custody");
            resource["scopeSpans"][0]["spans"].as_array().unwrap().clone()
        };
        taken.iter().flat_map(spans).collect()
    }

    /// What sends this thread's spans here, with a queue of `queue`.
    fn exporting(&self, queue: usize) -> (Exporting, Counts, DefaultGuard) {
        let counts = Counts::default();
        let about = vec![("service.name", "custody".to_owned())];
        let collector = Collector { endpoint: self.url.clone(), about };
        let (finished, waiting) = mpsc::channel(queue);
        let exporter = Exporter::new(&collector, waiting, counts.clone()).unwrap();
        let spans = Spans::new(finished, counts.dropped.clone());
        let only = Targets::new().with_target(SPANS, LevelFilter::TRACE);
        let subscriber = tracing_subscriber::registry().with(spans.with_filter(only));
        let guard = tracing::subscriber::set_default(subscriber);
        let telemetry = Telemetry { exporter: Some(exporter), counts: counts.clone() };
        (telemetry.export(&mut Registry::default()), counts, guard)
    }
}

#[tokio::test]
async fn a_call_joins_its_callers_trace_and_its_steps_lie_in_it() {
    let receiver = Receiver::answering(&[200]).await;
    let (exporting, counts, _guard) = receiver.exporting(64);
    let call = info_span!(
        target: SPANS,
        "call",
        otel.kind = "server",
        otel.failed = tracing::field::Empty,
        traceparent = TRACEPARENT,
        custody.server = "ehr",
    );
    let step = info_span!(target: SPANS, parent: &call, "ask server", otel.kind = "client");
    drop(info_span!(target: "custody::other", parent: &call, "not of a trace"));
    drop(step);
    call.record("otel.failed", true);
    call.record("http.response.status_code", 200);
    drop(call);
    drop(info_span!(target: SPANS, "call without a caller"));
    exporting.finish().await;
    let spans = receiver.spans();
    let [step, call, alone] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((&call["name"], &step["name"]), (&"call".into(), &"ask server".into()));
    assert_eq!(call["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(call["parentSpanId"], "b7ad6b7169203331");
    assert_eq!((&step["traceId"], &step["parentSpanId"]), (&call["traceId"], &call["spanId"]));
    assert_eq!((&call["kind"], &step["kind"]), (&2.into(), &3.into()));
    assert_eq!((&call["status"]["code"], &step["status"]["code"]), (&2.into(), &0.into()));
    assert!(alone["parentSpanId"].is_null() && alone["traceId"] != call["traceId"]);
    let text = call["attributes"].to_string();
    assert!(text.contains(r#""key":"custody.server""#), "{text}");
    let nanos = |key: &str| call[key].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanos("startTimeUnixNano") <= nanos("endTimeUnixNano"));
    assert_eq!((counts.exported.get(), counts.dropped.get()), (3, 0));
}

#[tokio::test]
async fn what_a_caller_does_not_sample_is_not_sent() {
    let receiver = Receiver::answering(&[200]).await;
    let (exporting, _counts, _guard) = receiver.exporting(64);
    let unsampled = TRACEPARENT.replace("-01", "-00");
    let call = info_span!(target: SPANS, "call", traceparent = unsampled.as_str());
    drop(info_span!(target: SPANS, parent: &call, "step"));
    drop(call);
    drop(info_span!(target: SPANS, "sampled"));
    exporting.finish().await;
    let names: Vec<_> = receiver.spans().iter().map(|span| span["name"].clone()).collect();
    assert_eq!(names, ["sampled"]);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again_and_nothing_is_sent_twice() {
    let receiver = Receiver::answering(&[503, 200]).await;
    let (exporting, counts, _guard) = receiver.exporting(1024);
    for _ in 0..512 {
        drop(info_span!(target: SPANS, "call")); // a whole batch goes at once
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while receiver.spans().is_empty() && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    exporting.finish().await;
    assert_eq!(receiver.spans().len(), 512);
    assert_eq!((counts.exported.get(), counts.dropped.get()), (512, 0));
}

#[tokio::test]
async fn what_is_refused_or_has_no_room_is_dropped_and_counted() {
    let receiver = Receiver::answering(&[400]).await;
    let (exporting, counts, _guard) = receiver.exporting(2);
    for _ in 0..5 {
        drop(info_span!(target: SPANS, "call"));
    }
    assert_eq!(counts.dropped.get(), 3);
    exporting.finish().await;
    assert_eq!((counts.exported.get(), counts.dropped.get()), (0, 5));
}
