//! Our own log holds nothing of what passes.

use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use super::*;

/// Keeps every word that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

struct Words<'l>(&'l mut String);

impl Visit for Words<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        writeln!(self.0, "{field}={value:?}").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        attributes.record(&mut Words(&mut self.0.lock().unwrap()));
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Words(&mut self.0.lock().unwrap()));
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut log = self.0.lock().unwrap();
        // libraries log what they like at levels that are off; ours is what counts
        if event.metadata().target().starts_with("custody") {
            event.record(&mut Words(&mut log));
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn nothing_of_a_message_reaches_our_log_whatever_happens_to_it() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let spool: Arc<Mutex<PathBuf>> = Arc::default();
    let target = Arc::clone(&spool);
    let upstream = Upstream::start(move |seen: Seen| {
        let spool = target.lock().unwrap().clone();
        async move {
            if memchr::memmem::find(&seen.body, b"last").is_some() {
                std::fs::remove_dir_all(&spool).unwrap();
                std::fs::write(&spool, "in the way").unwrap();
            }
            answer(200, "text/html", "MARY-ANSWER")
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    *spool.lock().unwrap() = bench.spool();
    for body in [
        r#"{"id":"MARY-1","method":"tools/call","params":{"name":"MARY-TOOL","arguments":{}}}"#,
        r#"{"id":"MARY-2","method":"MARY","params":{"MARY-KEY":1,"MARY-KEY":2}}"#,
        r#"MARY-GARBAGE"#,
        r#"{"id":"MARY-3","method":"tools/call","params":{"name":"last","arguments":"MARY"}}"#,
        r#"{"id":"MARY-4","method":"tools/call","params":{"name":"after","arguments":"MARY"}}"#,
    ] {
        let headers = [("user-agent", "MARY"), ("mcp-name", "")];
        bench.send(Method::POST, "/servers/ehr/mcp", &headers[..1], body).await;
    }
    let log = log.0.lock().unwrap().clone();
    assert!(log.contains("withheld") && log.contains("refused"), "the log works: {log}");
    assert!(!log.contains("MARY"), "{log}");
}
