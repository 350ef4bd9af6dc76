//! A lake in a bucket of a real object store: the contract, and what only a network can do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::minio::{self, Minio};
use super::{Site, contract, rows_in, step, stored};
use crate::faults::{Fault, FaultyStore};
use crate::{Lake, LakeError, LakeOptions, Outcome, Storage};

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_holds_in_a_folder_holds_in_a_bucket() {
    let new = Site::bucket;
    contract::a_lake_is_made_once_and_opens_again_in_the_plainest_delta_protocol(new).await;
    contract::many_processes_may_open_a_new_lake_at_once(new).await;
    contract::a_lake_of_another_deployment_or_a_newer_format_or_of_a_stranger_is_refused(new).await;
    contract::a_lake_that_a_newer_version_takes_over_while_we_run_gets_nothing_more_from_us(new)
        .await;
    contract::a_snapshot_keeps_its_files_and_positions_while_the_table_goes_on(new).await;
    contract::whatever_happens_to_the_write_of_a_commit_its_rows_are_there_once(new).await;
    contract::an_owner_whose_position_has_moved_is_fenced_and_adds_nothing(new).await;
    contract::a_commit_overtaken_by_another_owner_after_its_check_is_fenced(new).await;
    contract::a_commit_overtaken_by_another_partition_lands_behind_it(new).await;
    contract::a_store_that_never_answers_is_given_up_on_and_the_same_call_succeeds_later(new).await;
    contract::a_checkpoint_of_the_log_loses_no_position_no_statistics_and_no_tag(new).await;
    contract::positions_that_were_asked_for_are_known_at_the_next_version_and_are_right(new).await;
    contract::the_identities_of_stored_records_can_be_read_back(new).await;
}

fn options(storage: Storage) -> LakeOptions {
    LakeOptions { storage, ..LakeOptions::new("audit.example") }
}

/// Opens a lake, which must fail soon, and returns why.
async fn refusal(url: &str, storage: Storage) -> LakeError {
    let started = Instant::now();
    let error = Lake::open(url, &options(storage)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}: {error}", started.elapsed());
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_in_a_bucket_is_found_again_and_its_probe_leaves_nothing_behind() {
    let minio = minio::shared();
    let url = minio.new_url();
    let lake = Lake::open(&url, &options(minio.storage())).await.unwrap();
    let files = stored(lake.events(), 0..3).await;
    lake.events().commit(&files, &step(None, 3)).await.unwrap();
    let again = Lake::open(&url, &options(minio.storage())).await.unwrap();
    assert_eq!(rows_in(again.events()).await, 3);
    let store = minio.storage().connect(&url).unwrap();
    let folder = crate::place::Place::parse(&url).unwrap();
    let folder = Path::from_url_path(folder.root.path()).unwrap();
    let left = store.list(Some(&folder)).try_collect::<Vec<_>>().await.unwrap();
    assert!(left.iter().all(|o| !o.location.as_ref().contains("probe")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_settings_of_a_bucket_is_told_with_what_to_check() {
    let minio = minio::shared();
    let url = minio.new_url();
    let cases = [
        (url.as_str(), minio.storage_with("secret_access_key", "wrong"), "secret_access_key"),
        (url.as_str(), minio.storage_with("access_key_id", "nobody"), "access_key_id"),
        ("s3://no-such-bucket/lake", minio.storage(), "create \"no-such-bucket\""),
        (url.as_str(), minio.storage_with("allow_http", "false"), "allow_http"),
        (url.as_str(), minio.storage_with("endpoint", "http://127.0.0.1:9"), "check endpoint"),
        (url.as_str(), minio.storage_with("endpoint", "http://no.such.invalid"), "check endpoint"),
    ];
    for (url, storage, expected) in cases {
        let told = refusal(url, storage).await.to_string();
        assert!(told.contains(expected), "{expected}: {told}");
        assert!(!told.contains(&minio.options()["secret_access_key"]), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_accepts_and_never_answers_is_given_up_on_in_time() {
    let minio = Minio::start();
    let url = minio.new_url();
    let storage = minio.storage_with("timeout", "1s");
    let lake = Lake::open(&url, &options(storage.clone())).await.unwrap();
    minio.run("pause", &[]);
    let told = refusal(&url, storage).await.to_string();
    let seen = lake.events().snapshot().await.unwrap_err().to_string();
    minio.run("resume", &[]);
    for told in [told, seen] {
        assert!(
            told.starts_with("lake s3://")
                && told.contains("does not answer")
                && told.contains("127.0.0.1"),
            "{told}"
        );
    }
    lake.events().snapshot().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_goes_on_by_itself_when_a_store_that_was_down_is_back() {
    let minio = Minio::start();
    let url = minio.new_url();
    let lake = Lake::open(&url, &options(minio.storage())).await.unwrap();
    let files = stored(lake.events(), 0..4).await;
    minio.run("stop", &[]);
    let down = lake.events().snapshot().await.unwrap_err();
    assert!(matches!(down, LakeError::Unreachable { .. }), "{down}");
    let table = Arc::clone(lake.events());
    let commit = tokio::spawn(async move { table.commit(&files, &step(None, 4)).await });
    minio.run("start", &[]);
    assert_eq!(commit.await.unwrap().unwrap(), Outcome::Committed { version: 1 });
    assert_eq!(rows_in(lake.events()).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_needs_no_right_to_write() {
    let minio = minio::shared();
    let url = minio.new_url();
    let refuses_writes = FaultyStore::on(minio.storage().connect(&url).unwrap(), "");
    refuses_writes.push((0..1000).map(|_| Fault::Before));
    let reader = LakeOptions {
        read_only: true,
        store: Some(refuses_writes),
        ..LakeOptions::new("audit.example")
    };
    let absent = Lake::open(&url, &reader).await.unwrap_err();
    assert!(matches!(absent, LakeError::Absent { .. }), "{absent}");
    let writer = Lake::open(&url, &options(minio.storage())).await.unwrap();
    let files = stored(writer.events(), 0..2).await;
    writer.events().commit(&files, &step(None, 2)).await.unwrap();
    let lake = Lake::open(&url, &reader).await.unwrap();
    assert_eq!(rows_in(lake.events()).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_creates_what_is_already_there_is_refused_before_a_table_is_made() {
    let minio = minio::shared();
    let url = minio.new_url();
    let forgetful = Forgetful::start(minio, &url).await;
    let storage = minio.storage_with("endpoint", &format!("http://{forgetful}"));
    let error = refusal(&url, storage).await;
    assert!(matches!(error, LakeError::Unfit { .. }), "{error}");
    assert!(error.to_string().contains("If-None-Match") && error.is_final(), "{error}");
    let store = minio.storage().connect(&url).unwrap();
    let events = Path::from_url_path(url.split_once("custody/").unwrap().1).unwrap().join("events");
    let made = store.list(Some(&events)).try_collect::<Vec<_>>().await.unwrap();
    assert!(made.is_empty(), "{made:?}");
}

/// A door to the store that forgets the condition of a write, as some gateways do.
struct Forgetful {
    address: String,
    store: Arc<dyn ObjectStore>,
    bucket: String,
}

impl Forgetful {
    /// Opens it and returns its address.
    async fn start(minio: &Minio, url: &str) -> String {
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = door.local_addr().unwrap().to_string();
        let this = Arc::new(Self {
            address: minio.address().to_owned(),
            store: minio.storage().connect(url).unwrap(),
            bucket: crate::place::Place::parse(url).unwrap().bucket,
        });
        tokio::spawn(async move {
            while let Ok((client, _)) = door.accept().await {
                tokio::spawn(Arc::clone(&this).serve(client));
            }
        });
        address
    }

    /// One request; the connection ends with its answer.
    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match client.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let text = String::from_utf8(head).unwrap();
        let length = text.lines().find_map(|l| l.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |n| n.parse().unwrap())];
        client.read_exact(&mut body).await.unwrap();
        let answer = if text.contains("if-none-match: *") {
            let target = text.split(' ').nth(1).unwrap();
            let key = target.strip_prefix(&format!("/{}/", self.bucket)).unwrap();
            self.store.put(&Path::from_url_path(key).unwrap(), body.into()).await.unwrap();
            b"HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                .to_vec()
        } else {
            self.forward(&text, &body).await
        };
        client.write_all(&answer).await.unwrap();
    }

    async fn forward(&self, head: &str, body: &[u8]) -> Vec<u8> {
        let mut store = TcpStream::connect(&self.address).await.unwrap();
        let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        store.write_all(head.as_bytes()).await.unwrap();
        store.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        store.read_to_end(&mut answer).await.unwrap();
        answer
    }
}
