//! An event stream of the server, read event by event, and got again where it broke off.

use std::time::Duration;

use bytes::Bytes;
use custody_proxy::sse::{Frame, Framer};
use http::HeaderValue;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

/// How long a stream may be silent. A proxy sends comments much more often.
const SILENCE: Duration = Duration::from_secs(600);
/// The longest wait that a server may ask for before a stream is got again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What is left of a stream that has ended.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    /// The id of its last event.
    pub last: Option<HeaderValue>,
    /// How long to wait before it is got again.
    pub retry: Option<Duration>,
}

/// A stream.
pub struct Stream {
    body: Incoming,
    framer: Framer,
    /// Where it stands.
    pub mark: Mark,
}

/// What came.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Bytes),
    /// The end.
    End,
    /// Not the end, but nothing more comes.
    Broken,
}

impl Stream {
    /// The stream in `body`, which goes on after `mark`.
    pub fn new(body: Incoming, max_message_bytes: usize, mark: Mark) -> Self {
        Self { body, framer: Framer::new(max_message_bytes + 4096), mark }
    }

    /// Waits for the next message.
    pub async fn next(&mut self) -> Heard {
        loop {
            match self.framer.frame() {
                Ok(Some(frame)) => {
                    self.note(&frame);
                    if let Some(data) = frame.data.filter(|data| !data.is_empty()) {
                        return Heard::Message(data);
                    }
                    continue;
                }
                Ok(None) => {}
                Err(_) => return Heard::Broken,
            }
            match timeout(SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.framer.push(&data);
                    }
                }
                Ok(None) => return Heard::End,
                Ok(Some(Err(_))) | Err(_) => return Heard::Broken,
            }
        }
    }

    fn note(&mut self, frame: &Frame) {
        for line in frame.raw.split(|&b| b == b'\n' || b == b'\r') {
            if let Some(id) = line.strip_prefix(b"id:") {
                self.mark.last = HeaderValue::from_bytes(id.trim_ascii()).ok();
            }
            let retry = line.strip_prefix(b"retry:").and_then(|ms| std::str::from_utf8(ms).ok());
            if let Some(ms) = retry.and_then(|ms| ms.trim().parse().ok()) {
                self.mark.retry = Some(Duration::from_millis(ms).min(LONGEST_RETRY));
            }
        }
    }
}
