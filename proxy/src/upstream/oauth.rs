//! Access tokens for a server, by OAuth 2.0 client credentials.
//!
//! One is asked for when it is first needed, by one caller for all, and used until shortly before
//! it ends. It is kept in memory only. Neither the secret nor a token is ever printed, nor what an
//! authorization server says beyond the word for its error.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::peer::Connections;
use super::reach::OAuth;

/// How long before its end a token is no longer used.
const MARGIN: Duration = Duration::from_secs(30);
/// How long a token is used whose end is not told.
const UNTOLD: u64 = 300;
/// How long after a failure the authorization server is left alone.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest answer of an authorization server.
const MAX_ANSWER: usize = 64 << 10;

/// Where tokens come from, and the one in use.
#[derive(Debug)]
pub(super) struct Tokens {
    server: String,
    oauth: OAuth,
    connections: Connections,
    wait: Duration,
    current: Mutex<Current>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Current {
    token: Option<(HeaderValue, Instant)>,
    failed_at: Option<Instant>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    token_type: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

impl Tokens {
    /// Tokens for the server `server`.
    pub(super) fn new(
        server: &str,
        oauth: OAuth,
        connections: Connections,
        wait: Duration,
    ) -> Self {
        Self {
            server: server.to_owned(),
            oauth,
            connections,
            wait,
            current: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The value of `Authorization`.
    pub(super) async fn get(&self) -> Option<HeaderValue> {
        if let Some(token) = self.current() {
            return Some(token);
        }
        let _turn = self.asking.lock().await;
        if let Some(token) = self.current() {
            return Some(token);
        }
        let failed_at = self.lock().failed_at;
        if failed_at.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        match timeout(self.wait, self.ask()).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok((token, until)) => {
                *self.lock() = Current { token: Some((token.clone(), until)), failed_at: None };
                Some(token)
            }
            Err(why) => {
                tracing::warn!(server = %self.server, why, "no access token for a server");
                self.lock().failed_at = Some(Instant::now());
                None
            }
        }
    }

    /// No longer uses a token that was refused.
    pub(super) fn forget(&self, refused: &HeaderValue) {
        let mut current = self.lock();
        if current.token.as_ref().is_some_and(|(token, _)| token == refused) {
            current.token = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<HeaderValue> {
        let current = self.lock();
        let (token, until) = current.token.as_ref()?;
        (Instant::now() < *until).then(|| token.clone())
    }

    async fn ask(&self) -> Result<(HeaderValue, Instant), String> {
        let asked_at = Instant::now();
        let answer = self.connections.request(self.request()?).await;
        let (head, body) = answer.map_err(|_| "it cannot be reached".to_owned())?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let bytes = body.map_err(|_| "its answer broke off or is too long".to_owned())?.to_bytes();
        if !head.status.is_success() {
            let word = serde_json::from_slice::<Refused>(&bytes).map(|refused| refused.error);
            let word = word.ok().filter(|word| is_word(word)).unwrap_or_default();
            return Err(format!("status {} {word}", head.status.as_u16()));
        }
        let granted: Granted =
            serde_json::from_slice(&bytes).map_err(|_| "its answer holds no token".to_owned())?;
        if !granted.token_type.eq_ignore_ascii_case("bearer") {
            return Err("its token is no bearer token".to_owned());
        }
        let value = HeaderValue::from_str(&format!("Bearer {}", granted.access_token));
        let mut value = value.map_err(|_| "its token cannot stand in a header".to_owned())?;
        value.set_sensitive(true);
        let lasts = Duration::from_secs(granted.expires_in.unwrap_or(UNTOLD).min(86_400));
        // a token that lasts less than the margin is used for half of its time
        let used = lasts.saturating_sub(MARGIN).max(lasts / 2);
        Ok((value, asked_at + used))
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let mut form = "grant_type=client_credentials".to_owned();
        if !self.oauth.scopes.is_empty() {
            form.push_str(&format!("&scope={}", encoded(&self.oauth.scopes.join(" "))));
        }
        if let Some(resource) = &self.oauth.resource {
            form.push_str(&format!("&resource={}", encoded(resource)));
        }
        let (id, secret) = (&self.oauth.client_id, &self.oauth.client_secret.0);
        let basic = STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret)));
        Request::post(self.oauth.token_url.clone())
            .header(header::AUTHORIZATION, format!("Basic {basic}"))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(form.into()))
            .map_err(|error| error.to_string())
    }
}

/// The word for an error, as RFC 6749 allows it, and short.
fn is_word(word: &str) -> bool {
    word.len() <= 40 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Text as it stands in a form.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_a_form_is_encoded() {
        assert_eq!(encoded("a b/ü:~"), "a%20b%2F%C3%BC%3A~");
    }
}
