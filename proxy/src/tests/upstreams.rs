//! Servers on the network: whose connections, whose credentials, and what of them a client sees.

use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::*;
use crate::identity::{Identity, StaticKey};
use crate::reach::{Address, Breaker, OAuth, Reach, Secret, Tls};

fn keys(config: &mut Config) {
    let key = |name: &str| StaticKey {
        sha256: Sha256::digest(name).into(),
        id: name.to_owned(),
        user: None,
        agent: None,
        roles: Vec::new(),
        purpose: None,
    };
    config.identity = Identity::Keys(vec![key("alpha"), key("beta")]);
}

fn address(config: &mut Config) -> &mut Address {
    let (Reach::Http(address) | Reach::LegacySse(address)) = &mut config.servers[0].reach else {
        panic!("a bench has a server on the network")
    };
    address
}

#[tokio::test]
async fn mistake_02_two_principals_never_share_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let connections = AtomicUsize::new(0);
        while let Ok((stream, _)) = listener.accept().await {
            let number = connections.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(move |_: Request<Incoming>| async move {
                let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"of":{number}}}}}"#);
                Ok::<_, std::convert::Infallible>(json(answer))
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    let bench = Bench::start(addr, keys).await;
    let mut of = HashMap::new();
    for _ in 0..5 {
        for key in ["alpha", "beta"] {
            let headers = [("authorization", &*format!("Bearer {key}"))];
            let reply = bench.send(Method::POST, "/servers/ehr/mcp", &headers, CALL).await;
            let number = reply.json()["result"]["of"].as_u64().unwrap();
            assert_eq!(*of.entry(number).or_insert(key), key, "connection {number}");
        }
    }
}

#[tokio::test]
async fn mistake_14_a_redirect_and_the_servers_address_stay_with_the_proxy() {
    let upstream = Upstream::start(|_| async {
        Response::builder()
            .status(307)
            .header("location", "http://ehr.internal:9000/elsewhere")
            .header("www-authenticate", "Bearer resource_metadata=\"http://ehr.internal/meta\"")
            .header("set-cookie", "a=b")
            .body(Payload::Whole(None))
            .unwrap()
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let shown = |reply: &Reply| {
        let shown = format!("{reply:?}");
        let secrets = ["internal", "/secret/mcp", "location", "www-auth", "set-cookie"];
        secrets.into_iter().find(|secret| shown.contains(secret))
    };
    let reply = bench.post(CALL).await;
    assert_eq!((reply.error(), shown(&reply)), ((502, 47015), None));
    assert_eq!(upstream.seen().len(), 1, "it is not followed");
    let gone = SocketAddr::from(([127, 0, 0, 1], 1));
    let away = Bench::start(gone, |_| {}).await;
    let reply = away.post(CALL).await;
    assert_eq!((reply.error(), shown(&reply)), ((502, 47012), None));
    assert!(!format!("{reply:?}").contains("127.0.0.1"));
}

#[tokio::test]
async fn a_server_that_is_away_is_left_alone_and_each_refusal_is_on_the_record() {
    let upstream = Upstream::start(|_| async { answer(503, "text/plain", "away") }).await;
    let bench = Bench::start(upstream.addr, |config| {
        let pause = Duration::from_secs(600);
        address(config).breaker = Breaker { failures: 3, pause };
    })
    .await;
    for _ in 0..3 {
        assert_eq!(bench.post(CALL).await.status, 503);
    }
    for _ in 0..5 {
        assert_eq!(bench.post(CALL).await.error(), (502, 47012));
    }
    assert_eq!(upstream.seen().len(), 3);
    bench.shows("custody_proxy_breaker_open{server=\"ehr\"} 1").await;
    bench.shows("custody_proxy_breaker_opened_total{server=\"ehr\"} 1").await;
    let events = bench.after_endings(8).await;
    let endings = of_kind(&events, &Kind::CallEnded);
    let away = endings
        .iter()
        .filter(|event| event.outcome.as_ref().unwrap().status.as_str() == "unreachable");
    assert_eq!(away.count(), 5);
}

#[tokio::test]
async fn an_access_token_is_got_once_for_all_and_anew_when_it_is_refused() {
    let issued = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&issued);
    let tokens = Upstream::start(move |seen: Seen| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_eq!(seen.headers["authorization"], "Basic cHJveHk6cyUyRjE="); // proxy:s%2F1
            let form = "grant_type=client_credentials&scope=a%20b&resource=https%3A%2F%2Fehr";
            assert_eq!(seen.body, form);
            let token =
                format!(r#"{{"access_token":"t{number}","token_type":"Bearer","expires_in":600}}"#);
            json(token)
        }
    })
    .await;
    let upstream = Upstream::start(|seen: Seen| async move {
        match seen.headers["authorization"].to_str().unwrap() {
            "Bearer t0" if seen.body.windows(7).any(|part| part == b"\"id\":2,") => {
                answer(401, "text/plain", "")
            }
            _ => json(ANSWER.replace("\"id\":1", "\"id\":2")),
        }
    })
    .await;
    let token_url = format!("http://{}/token", tokens.addr).parse().unwrap();
    let bench = Bench::start(upstream.addr, |config| {
        address(config).oauth = Some(OAuth {
            token_url,
            client_id: "proxy".to_owned(),
            client_secret: Secret("s/1".to_owned()),
            scopes: vec!["a".to_owned(), "b".to_owned()],
            resource: Some("https://ehr".to_owned()),
        });
    })
    .await;
    let ping = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let (first, second) = tokio::join!(bench.post(ping), bench.post(ping));
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(issued.load(Ordering::Relaxed), 1);
    let reply = bench.post(CALL.replace("\"id\":1,", "\"id\":2,")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(issued.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn without_an_access_token_nothing_is_sent() {
    let tokens = Upstream::start(|_| async {
        answer(400, "application/json", r#"{"error":"invalid_client"}"#)
    })
    .await;
    let upstream = Upstream::with_json(ANSWER).await;
    let token_url = format!("http://{}/token", tokens.addr).parse().unwrap();
    let bench = Bench::start(upstream.addr, |config| {
        address(config).oauth = Some(OAuth {
            token_url,
            client_id: "proxy".to_owned(),
            client_secret: Secret("s".to_owned()),
            scopes: Vec::new(),
            resource: None,
        });
    })
    .await;
    assert_eq!(bench.post(CALL).await.error(), (502, 47012));
    assert_eq!(bench.post(CALL).await.error(), (502, 47012));
    assert_eq!((upstream.seen().len(), tokens.seen().len()), (0, 1));
}

/// A certificate authority with a server and a client, made by `openssl`.
struct Pki(tempfile::TempDir);

impl Pki {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"set -e
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
              -subj '/CN=synthetic authority' -keyout ca.key -out ca.pem
            for name in server client; do
              openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" \
                -keyout $name.key -out $name.csr
              printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >ext
              openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                -extfile ext -out $name.pem
            done"#;
        let mut shell = std::process::Command::new("sh");
        let made = shell.args(["-c", script]).current_dir(dir.path()).output().expect("sh runs");
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A server that answers only those who show a certificate of this authority.
    async fn serve(&self) -> SocketAddr {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        );
        let chain = vec![CertificateDer::from_pem_file(self.path("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let service = service_fn(|_: Request<Incoming>| async {
                    Ok::<_, std::convert::Infallible>(json(ANSWER))
                });
                let http = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                tokio::spawn(async move {
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        addr
    }
}

#[tokio::test]
async fn a_server_is_known_by_the_configured_authority_and_knows_the_proxy_by_its_certificate() {
    let pki = Pki::make();
    let addr = pki.serve().await;
    let url: http::Uri = format!("https://{addr}/mcp").parse().unwrap();
    let ca = Some(pki.path("ca.pem"));
    let client = Some((pki.path("client.pem"), pki.path("client.key")));
    let reply = |tls: Tls| {
        let url = url.clone();
        async move {
            let bench = Bench::start(addr, |config| {
                *address(config) = Address { tls, ..Address::new(url) };
            });
            bench.await.post(CALL).await.status
        }
    };
    assert_eq!(reply(Tls { ca: ca.clone(), client: client.clone() }).await, 200);
    assert_eq!(reply(Tls { ca: None, client }).await, 502, "an authority that is not trusted");
    assert_eq!(reply(Tls { ca, client: None }).await, 502, "without our certificate");
}

/// A server of 2024-11-05: one stream, and an address to post to.
async fn legacy() -> Upstream {
    let streams: Arc<Mutex<Vec<tokio::sync::mpsc::Sender<Bytes>>>> = Arc::default();
    Upstream::start(move |seen: Seen| {
        let streams = Arc::clone(&streams);
        async move {
            if seen.method == Method::GET {
                let (to, from) = tokio::sync::mpsc::channel(16);
                to.try_send("event: endpoint\ndata: /messages?session=7\n\n".into()).unwrap();
                streams.lock().unwrap().push(to);
                let pieces = futures::stream::unfold(from, |mut from| async {
                    Some((Ok(from.recv().await?), from))
                });
                return answer(200, "text/event-stream", "")
                    .map(|_| Payload::Pieces(Box::pin(pieces)));
            }
            let to = streams.lock().unwrap().last().unwrap().clone();
            let text = std::str::from_utf8(&seen.body).unwrap().to_owned();
            let reply = |body: &str| Bytes::from(format!("event: message\ndata: {body}\n\n"));
            if text.contains("\"bye\"") {
                streams.lock().unwrap().clear();
            } else if text.contains("initialize\"") {
                to.try_send(reply(
                    r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2024-11-05"}}"#,
                ))
                .unwrap();
            } else if text.contains("tools/call") {
                to.try_send(reply(
                    r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#,
                ))
                .unwrap();
                to.try_send(reply(ANSWER)).unwrap();
            }
            answer(202, "text/plain", "Accepted")
        }
    })
    .await
}

#[tokio::test]
async fn a_server_of_2024_is_reached_by_clients_of_today_and_its_end_is_noticed() {
    let upstream = legacy().await;
    let bench = Bench::start(upstream.addr, |config| {
        let address = address(config).clone();
        config.servers[0].reach = Reach::LegacySse(address);
    })
    .await;
    let initialize = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let welcome = bench.post(initialize).await;
    assert_eq!(welcome.status, 200, "{welcome:?}");
    assert!(!format!("{welcome:?}").contains("messages?session"));
    let session = welcome.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let headers = [("mcp-session-id", session.as_str())];
    let reply = bench.send(Method::POST, "/servers/ehr/mcp", &headers, CALL).await;
    let heard = std::str::from_utf8(&reply.body).unwrap();
    assert!(heard.contains("notifications/message") && heard.contains(ANSWER), "{heard}");
    let posted = upstream.seen().iter().filter(|seen| seen.body == CALL).count();
    assert_eq!(posted, 1);
    let bye = CALL.replace("\"x\"", "\"bye\"");
    assert_eq!(
        bench.send(Method::POST, "/servers/ehr/mcp", &headers, bye).await.error(),
        (502, 47014)
    );
}
