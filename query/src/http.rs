//! The HTTP edge: who may ask, what a request looks like, which status an error has.
//!
//! `POST /v1/sql`, `GET /v1/reports/phi-access`, `GET /v1/evidence`, `GET /v1/completeness`,
//! `GET /v1/tools`, `POST /v1/tools/approve`, `GET /healthz`, `/readyz`, `/metrics`, and the page at
//! `/`. Every answer carries the headers `custody-completeness` and
//! `custody-cut`; the latter, as the parameter `cut`, asks for the same rows again, from any node.
//! Errors are `{"error": {"kind", "message", "hint"}}`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use custody_journal::control::Control;
use custody_lake::{Lake, LakeOptions};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    ORIGIN, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Asker, Right};
use crate::encode::{Format, encode, error_object};
use crate::engine::{Engine, Question};
use crate::error::QueryError;
use crate::evidence::{self, EvidenceOf};
use crate::refused::Refusals;
use crate::reports::PhiAccess;
use crate::statement::Params;
use crate::web;

mod serve;
mod tools;

/// The longest request.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// How long a request's body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
const COMPLETENESS: HeaderName = HeaderName::from_static("custody-completeness");
const CUT: HeaderName = HeaderName::from_static("custody-cut");
const QUERY: HeaderName = HeaderName::from_static("custody-query");
const PERIOD: HeaderName = HeaderName::from_static("custody-period");

/// How the edge works.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// Who may ask.
    pub access: Access,
    /// Names in `Host` that are accepted beside `localhost` and loopback addresses.
    pub hosts: Vec<String>,
    /// What the deployment's processes share, where it can be seen from here.
    pub control: Option<Control>,
    /// The address of the lake that evidence is made from, and how it is opened; only to read.
    pub lake: Option<(String, LakeOptions)>,
}

/// The edge and what it counts.
struct Edge {
    engine: Arc<Engine>,
    options: HttpOptions,
    refusals: Refusals,
    /// One evidence package is made at a time.
    packages: Semaphore,
}

/// Serves until `shutdown`; then running questions are cancelled, and their askers told.
///
/// # Errors
/// None so far: a connection that cannot be accepted is logged, and the next one awaited.
pub async fn run(
    listener: TcpListener,
    engine: Arc<Engine>,
    options: HttpOptions,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let limits = serve::Limits::default();
    let router = router(Arc::clone(&engine), options);
    let closed = async {
        shutdown.cancelled().await;
        engine.close();
    };
    tokio::join!(closed, serve::serve(listener, router, limits, shutdown.clone()));
    Ok(())
}

/// Every route.
pub fn router(engine: Arc<Engine>, options: HttpOptions) -> Router {
    let edge = Arc::new(Edge {
        refusals: Refusals::new(&engine),
        packages: Semaphore::new(1),
        engine,
        options,
    });
    Router::new()
        .route("/v1/sql", post(sql))
        .route("/v1/reports/phi-access", get(phi_access))
        .route("/v1/evidence", get(evidence_of))
        .route("/v1/completeness", get(completeness))
        .route("/v1/tools", get(tools::list))
        .route("/v1/tools/approve", post(tools::approve))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(web::routes())
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&edge), known_host))
        .with_state(edge)
}

/// Refuses requests for names that are not ours and from pages that are not ours: another site's
/// page must not reach us, neither directly nor through a name that it has pointed here.
async fn known_host(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    let origin = request.headers().get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let origin = origin.map(|origin| origin.split_once("://").map_or("", |(_, host)| host));
    if origin.is_some_and(|host| !edge.options.knows(host)) {
        let text = "this page's origin is not configured; see [query] allowed_hosts";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    if host.is_some_and(|host| edge.options.knows(host)) {
        return next.run(request).await;
    }
    let text = "this host name is not configured; see [query] allowed_hosts";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

impl HttpOptions {
    fn knows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let loopback = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name) || known == host)
    }
}

/// An error on its way out.
struct Refusal(QueryError);

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": error_object(&self.0) }));
        let mut response = (self.0.status(), body).into_response();
        if self.0.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"custody\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

type Peer = Option<Extension<ConnectInfo<SocketAddr>>>;

impl Edge {
    /// Who asks, if they may.
    fn admit(&self, headers: &HeaderMap, peer: &Peer, right: Right) -> Result<Asker, QueryError> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let count = |error: &QueryError| {
            self.engine.metrics().turned_away(error);
            let peer = peer.as_ref().map(|peer| peer.0.0.ip().to_string());
            self.refusals.count(peer.as_deref().unwrap_or("unknown"), error);
        };
        let asker = self.options.access.who(text(AUTHORIZATION)).inspect_err(count)?;
        asker.may(right).inspect_err(count)?;
        let user_agent = text(USER_AGENT).map(|text| text.chars().take(200).collect());
        let ip = peer.as_ref().map(|peer| peer.0.0.ip().to_string());
        Ok(Asker { ip, user_agent, ..asker })
    }

    /// The lake that evidence is made from, and where.
    async fn lake(&self) -> Result<(Lake, PathBuf), QueryError> {
        let missing = || QueryError::Unavailable("no lake is at hand".to_owned());
        let (url, options) = self.options.lake.as_ref().ok_or_else(missing)?;
        let options = LakeOptions { read_only: true, ..options.clone() };
        let lake = Lake::open(url, &options).await;
        let lake = lake.map_err(|error| QueryError::Unavailable(error.to_string()))?;
        Ok((lake, self.engine.options.spill_dir.clone()))
    }

    /// Asks, waits for the first rows, and streams the answer.
    async fn answer(
        &self,
        asker: &Asker,
        question: Question,
        format: Format,
        about: Map<String, Value>,
    ) -> Result<Response, Refusal> {
        let mut answer = self.engine.ask(asker, question).await?;
        answer.first().await?;
        let completeness = answer.completeness.header();
        let cut = answer.completeness.cut.clone();
        let call = answer.call.to_string();
        let mut response = Body::from_stream(encode(answer, format, about)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
        for (name, value) in [(COMPLETENESS, completeness), (CUT, cut), (QUERY, call)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        Ok(response)
    }
}

/// What `POST /v1/sql` takes beside its body.
#[derive(Deserialize)]
struct SqlOptions {
    format: Option<String>,
    cut: Option<String>,
}

/// What `GET /v1/completeness` takes.
#[derive(Deserialize)]
struct AtCut {
    cut: Option<String>,
}

/// What `POST /v1/sql` takes as JSON; any other body is the statement itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    sql: String,
    #[serde(default)]
    params: Option<Params>,
    #[serde(default)]
    format: Option<String>,
    #[serde(default)]
    cut: Option<String>,
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn sql(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    Query(query): Query<SqlOptions>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    // Of somebody who may not ask nothing more is read.
    let asker = edge.admit(&headers, &peer, Right::Sql)?;
    let body = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, &())).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return Ok(rejection.into_response()),
        Err(_) => return Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
    };
    let is_json =
        header(&headers, &CONTENT_TYPE).is_some_and(|t| t.starts_with("application/json"));
    let request = if is_json {
        serde_json::from_slice(&body).map_err(|error| {
            let form =
                r#"{"sql": "SELECT …", "params": [..] or {..}, "format": "..", "cut": ".."}"#;
            QueryError::BadRequest(format!("the body is not of the form {form}: {error}"))
        })?
    } else {
        let sql = String::from_utf8(body.to_vec());
        let sql =
            sql.map_err(|_| QueryError::BadRequest("the statement is not UTF-8".to_owned()))?;
        SqlRequest { sql, params: None, format: None, cut: None }
    };
    let name = query.format.or(request.format);
    let format = Format::choose(name.as_deref(), header(&headers, &ACCEPT))?;
    let cut = query.cut.or(request.cut);
    let question =
        Question { cut, ..Question::sql(request.sql, request.params.unwrap_or_default()) };
    edge.answer(&asker, question, format, Map::new()).await
}

async fn phi_access(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    report: Result<Query<PhiAccess>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asker = edge.admit(&headers, &peer, Right::Reports)?;
    let Query(report) = report.map_err(|e| QueryError::BadRequest(e.body_text()))?;
    let format = Format::choose(report.format.as_deref(), header(&headers, &ACCEPT))?;
    let period = report.period(edge.engine.time_zone())?;
    let about = json!({
        "report": "phi-access",
        "period": period,
        "filters": report.given(),
    });
    let about = about.as_object().cloned().unwrap_or_default();
    let mut response = edge.answer(&asker, report.question(&period), format, about).await?;
    let interval = format!("{}/{} {}", period.from_utc, period.to_utc, period.time_zone);
    let day = |text: &Option<String>| -> String {
        let kept = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
        text.iter().flat_map(|text| text.chars()).filter(kept).collect()
    };
    let file = format!(
        "attachment; filename=\"phi-access_{}_{}.{}\"",
        day(&report.from),
        day(&report.to),
        format.name()
    );
    let headers = response.headers_mut();
    if let Ok(interval) = HeaderValue::from_str(&interval) {
        headers.insert(PERIOD, interval);
    }
    if let (Ok(file), false) = (HeaderValue::from_str(&file), format == Format::Json) {
        headers.insert(CONTENT_DISPOSITION, file);
    }
    Ok(response)
}

async fn evidence_of(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    of: Result<Query<EvidenceOf>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asker = edge.admit(&headers, &peer, Right::Reports)?;
    let Query(of) = of.map_err(|e| QueryError::BadRequest(e.body_text()))?;
    let _one = edge.packages.try_acquire().map_err(|_| QueryError::Busy { limit: 1 })?;
    let (from, to) = (of.from.clone(), of.to.clone());
    let period = PhiAccess { from, to, ..PhiAccess::default() }.period(edge.engine.time_zone())?;
    of.filter()?;
    of.challenge()?;
    let question = Question {
        method: "evidence/export".to_owned(),
        ..Question::sql(String::new(), Params::Map(of.params(&period)))
    };
    let mut asked = edge.engine.record(&asker, &question).await?;
    let made = async {
        let (lake, scratch) = edge.lake().await?;
        let writer = edge.engine.writer();
        evidence::make(lake, scratch, &writer, &asker, &asked, (&of, &period)).await
    };
    match made.await {
        Ok(package) => {
            asked.count(usize::try_from(package.judged.opened).unwrap_or(usize::MAX));
            asked.end(None);
            let bytes = ReaderStream::new(tokio::fs::File::from_std(package.file));
            let headers = [
                (CONTENT_TYPE, "application/zip".to_owned()),
                (CONTENT_LENGTH, package.bytes.to_string()),
            ];
            Ok((headers, Body::from_stream(bytes)).into_response())
        }
        Err(error) => {
            asked.end(Some(&error));
            Err(error.into())
        }
    }
}

async fn completeness(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    Query(at): Query<AtCut>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    edge.admit(&headers, &peer, Right::Status)?;
    let completeness = match at.cut {
        None => edge.engine.completeness().await?,
        Some(cut) => edge.engine.completeness_at(&cut).await?,
    };
    let mut value = serde_json::to_value(&completeness).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.insert("complete".to_owned(), completeness.is_complete().into());
        map.insert("line".to_owned(), completeness.line().into());
    }
    let mut response = Json(value).into_response();
    if let Ok(header) = HeaderValue::from_str(&completeness.header()) {
        response.headers_mut().insert(COMPLETENESS, header);
    }
    Ok(response)
}

async fn ready(State(edge): State<Arc<Edge>>) -> Response {
    match edge.engine.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem + "\n").into_response(),
    }
}

async fn metrics(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    edge.admit(&headers, &peer, Right::Status)?;
    let (media, page) = crate::metrics::text(&edge.engine.options.page);
    Ok(([(CONTENT_TYPE, media)], page).into_response())
}

#[cfg(test)]
mod tests;
