//! A connection of 2024-11-05: an event stream from the server, and an address to post to.
//!
//! The first event names that address; it must be at the server itself, so that a server cannot
//! send what is meant for it elsewhere. A message that the server does not take ends the
//! connection, and with it everything in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::session::Session;
use super::starts::Starts;
use super::{Ended, unused};
use crate::answer::unacceptable;
use crate::identity::PrincipalId;
use crate::sse::{Frame, Framer};
use crate::upstream::media_type;
use crate::upstream::notes::Said;
use crate::upstream::peer::Peer;

/// How long the server may take to name the address.
const NAMING: Duration = Duration::from_secs(30);
/// How long the name of the address may be.
const MAX_NAME: usize = 2048;

/// The server is not one of this kind, or not any more.
struct Over;

/// Carries messages until the connection ends or is no longer needed.
pub(super) async fn run(
    peer: &Arc<Peer>,
    principal: PrincipalId,
    session: &Arc<Session>,
    mut lines: mpsc::Receiver<Bytes>,
    (max_message_bytes, idle): (usize, Duration),
    starts: &Starts,
) -> Ended {
    let carrying = async {
        let (mut stream, to) = open(peer, principal, max_message_bytes).await?;
        let hearing = async {
            while let Some(frame) = stream.next().await? {
                hear(session, &frame).await;
            }
            Err(Over)
        };
        let saying = async {
            while let Some(line) = lines.recv().await {
                say(peer, principal, &to, line).await?;
            }
            Err::<(), Over>(Over)
        };
        tokio::select! { over = hearing => over, over = saying => over }
    };
    tokio::select! {
        _ = carrying => Ended::ByItself,
        () = session.stop.cancelled() => Ended::AsWished,
        () = unused(session, idle, starts) => Ended::AsWished,
    }
}

/// The server's event stream.
struct Stream {
    body: Incoming,
    framer: Framer,
}

impl Stream {
    async fn next(&mut self) -> Result<Option<Frame>, Over> {
        loop {
            if let Some(frame) = self.framer.frame().map_err(|_| Over)? {
                return Ok(Some(frame));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.map_err(|_| Over)?.into_data() {
                self.framer.push(&data);
            }
        }
    }
}

/// Gets the stream, and the address that its first event names.
async fn open(
    peer: &Peer,
    principal: PrincipalId,
    max_message_bytes: usize,
) -> Result<(Stream, Uri), Over> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    let getting = peer.send(principal, Method::GET, &peer.url, headers, Bytes::new());
    let answer = getting.await.map_err(|_| Over)?;
    let (head, body) = answer.into_parts();
    let wrong = unacceptable(head.status, &head.headers).is_some();
    if wrong || !head.status.is_success() || media_type(&head.headers) != "text/event-stream" {
        return Err(Over);
    }
    let mut stream = Stream { body, framer: Framer::new(max_message_bytes + 4096) };
    let naming = async {
        while let Some(frame) = stream.next().await? {
            if kind(&frame) == b"endpoint"
                && let Some(name) = &frame.data
            {
                return address(&peer.url, name).ok_or(Over);
            }
        }
        Err(Over)
    };
    let to = timeout(NAMING, naming).await.map_err(|_| Over)??;
    Ok((stream, to))
}

/// Posts a message.
async fn say(peer: &Peer, principal: PrincipalId, to: &Uri, line: Bytes) -> Result<(), Over> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let answer = peer.send(principal, Method::POST, to, headers, line).await.map_err(|_| Over)?;
    if answer.status().is_success() { Ok(()) } else { Err(Over) }
}

async fn hear(session: &Session, frame: &Frame) {
    let Some(data) = frame.data.clone().filter(|data| !data.is_empty()) else { return };
    match kind(frame) {
        b"message" | b"" => session.hear(data).await,
        _ => session.notes.take(Said::Garbage, data),
    }
}

/// What kind of event it is.
fn kind(frame: &Frame) -> &[u8] {
    let lines = frame.raw.split(|&b| b == b'\n' || b == b'\r');
    let mut named = lines.filter_map(|line| line.strip_prefix(b"event:"));
    named.next_back().map_or(b"", <[u8]>::trim_ascii)
}

/// The address that `name` means, if it is at the same server.
fn address(server: &Uri, name: &Bytes) -> Option<Uri> {
    let name = std::str::from_utf8(name).ok()?.trim();
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_whitespace) {
        return None;
    }
    let (scheme, authority) = (server.scheme()?, server.authority()?);
    if let Ok(whole) = name.parse::<Uri>()
        && whole.scheme().is_some()
    {
        let same = whole.scheme() == Some(scheme) && whole.authority() == Some(authority);
        return same.then_some(whole);
    }
    if name.starts_with("//") {
        return None;
    }
    let path = match name.as_bytes() {
        [b'/', ..] => name.to_owned(),
        [b'?', ..] => format!("{}{name}", server.path()),
        _ => {
            let folder = server.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{name}")
        }
    };
    let parts = Uri::builder().scheme(scheme.clone()).authority(authority.clone());
    parts.path_and_query(path).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_to_post_to_is_at_the_server_itself() {
        let server = Uri::from_static("https://ehr.example:8443/a/sse");
        let of = |name: &str| {
            address(&server, &Bytes::copy_from_slice(name.as_bytes())).map(|uri| uri.to_string())
        };
        let at = |path: &str| Some(format!("https://ehr.example:8443{path}"));
        assert_eq!(of("/messages/?session_id=1"), at("/messages/?session_id=1"));
        assert_eq!(of("messages?sessionId=1"), at("/a/messages?sessionId=1"));
        assert_eq!(of("?sessionId=1"), at("/a/sse?sessionId=1"));
        assert_eq!(of("https://ehr.example:8443/m"), at("/m"));
        for elsewhere in
            ["https://evil.example/m", "http://ehr.example:8443/m", "//evil/m", "", "a b"]
        {
            assert_eq!(of(elsewhere), None, "{elsewhere}");
        }
    }
}
