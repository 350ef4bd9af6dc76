//! What every store of a lake must give, as functions of a new place: each runs in a folder and in a
//! bucket.

use custody_schemas::record::hash;
use object_store::ObjectStoreExt;

use super::{APP, DAY_US, STREAM, Site, record, rows_in, step, stored};
use crate::faults::Fault;
use crate::{Bound, LakeError, Outcome, TxnStep};

type NewSite = fn() -> Site;

pub(super) async fn a_lake_is_made_once_and_opens_again_in_the_plainest_delta_protocol(
    new: NewSite,
) {
    let place = new();
    place.open().await.unwrap();
    let lake = place.open().await.unwrap();
    assert_eq!(lake.events().snapshot().await.unwrap().version(), 0);
    let log = place.read(&place.log(0)).await.unwrap();
    assert!(log.contains("\"minReaderVersion\":1,\"minWriterVersion\":2"), "{log}");
    assert!(log.contains("\"delta.appendOnly\":\"true\""), "{log}");
    assert!(log.contains("\"partitionColumns\":[\"event_date\"]"), "{log}");
}

pub(super) async fn many_processes_may_open_a_new_lake_at_once(new: NewSite) {
    let place = new();
    let (a, b, c) = tokio::join!(place.open(), place.open(), place.open());
    for lake in [a, b, c] {
        assert_eq!(lake.unwrap().bodies().snapshot().await.unwrap().version(), 0);
    }
}

pub(super) async fn a_lake_of_another_deployment_or_a_newer_format_or_of_a_stranger_is_refused(
    new: NewSite,
) {
    let place = new();
    place.open().await.unwrap();
    let foreign = place.open_as("other.example").await.unwrap_err();
    assert!(foreign.to_string().contains("belongs to deployment \"audit.example\""), "{foreign}");
    let ours = place.read(&place.log(0)).await.unwrap();
    let newer = ours.replace("\"custody.format\":\"1\"", "\"custody.format\":\"2\"");
    place.write(&place.log(0), newer).await;
    let newer = place.open().await.unwrap_err();
    assert!(newer.to_string().contains("upgrade custody"), "{newer}");
    let stranger = ours.replace("custody.format", "something.else");
    place.write(&place.log(0), stranger).await;
    assert!(matches!(place.open().await, Err(LakeError::Unusable { .. })));
    let fewer = ours.replace("\\\"name\\\":\\\"tool\\\"", "\\\"name\\\":\\\"tol\\\"");
    assert_ne!(fewer, ours);
    place.write(&place.log(0), fewer).await;
    let fewer = place.open().await.unwrap_err();
    assert!(fewer.to_string().contains("has no column tool"), "{fewer}");
}

pub(super) async fn a_lake_that_a_newer_version_takes_over_while_we_run_gets_nothing_more_from_us(
    new: NewSite,
) {
    let place = new();
    let lake = place.open().await.unwrap();
    let files = stored(lake.events(), 0..3).await;
    let first = place.read(&place.log(0)).await.unwrap();
    let metadata = first.lines().find(|line| line.contains("\"metaData\"")).unwrap();
    let newer = metadata.replace("\"custody.format\":\"1\"", "\"custody.format\":\"2\"");
    place.write(&place.log(1), newer).await;
    let refused = lake.events().commit(&files, &step(None, 3)).await.unwrap_err();
    assert!(matches!(refused, crate::CommitError::Refused(LakeError::Newer { .. })), "{refused}");
    assert_eq!(place.read(&place.log(2)).await, None);
}

pub(super) async fn a_snapshot_keeps_its_files_and_positions_while_the_table_goes_on(new: NewSite) {
    let place = new();
    let lake = place.open().await.unwrap();
    let table = lake.events();
    let files = stored(table, 0..3).await;
    let outcome = table.commit(&files, &step(None, 3)).await.unwrap();
    assert_eq!(outcome, Outcome::Committed { version: 1 });
    let pinned = table.snapshot().await.unwrap();
    let more = stored(table, 3..5).await;
    table.commit(&more, &step(Some(3), 5)).await.unwrap();
    assert_eq!(pinned.txn(APP).await.unwrap(), Some(3));
    assert_eq!(pinned.txn("file/custody.events@1/other").await.unwrap(), None);
    assert_eq!(pinned.files().len(), 1);
    let now = table.snapshot().await.unwrap();
    assert_eq!((now.txn(APP).await.unwrap(), now.files().len()), (Some(5), 2));
    let file = &pinned.files()[0];
    assert_eq!((file.rows, file.event_date), (Some(3), Some(20_000)));
    assert_eq!(file.ranges["seq"], (Bound::Int(0), Bound::Int(2)));
    let day = i64::try_from(20_000 * DAY_US).unwrap();
    assert_eq!(file.ranges["at"], (Bound::Moment(day), Bound::Moment(day + 1000)));
    assert_eq!((file.partition(), file.nulls["user_subject"]), (Some(APP), 3));
}

pub(super) async fn whatever_happens_to_the_write_of_a_commit_its_rows_are_there_once(
    new: NewSite,
) {
    let cases: [(&str, Vec<Fault>, Outcome); 5] = [
        ("lost response", vec![Fault::After], Outcome::AlreadyDone),
        ("error before", vec![Fault::Before, Fault::Before], Outcome::Committed { version: 1 }),
        ("said to exist", vec![Fault::Conflict], Outcome::Committed { version: 1 }),
        ("both", vec![Fault::Before, Fault::After], Outcome::AlreadyDone),
        ("none", vec![], Outcome::Committed { version: 1 }),
    ];
    for (name, faults, expected) in cases {
        let place = new();
        let lake = place.open().await.unwrap();
        let files = stored(lake.events(), 0..4).await;
        place.store.push(faults);
        let outcome = lake.events().commit(&files, &step(None, 4)).await.unwrap();
        assert_eq!(outcome, expected, "{name}");
        let again = lake.events().commit(&files, &step(None, 4)).await.unwrap();
        assert_eq!(again, Outcome::AlreadyDone, "{name}");
        assert_eq!(rows_in(lake.events()).await, 4, "{name}");
    }
}

pub(super) async fn an_owner_whose_position_has_moved_is_fenced_and_adds_nothing(new: NewSite) {
    let place = new();
    let (one, two) = (place.open().await.unwrap(), place.open().await.unwrap());
    let files = stored(one.events(), 0..4).await;
    one.events().commit(&files, &step(None, 4)).await.unwrap();
    for start in [None, Some(2)] {
        let late = stored(two.events(), 0..3).await;
        let outcome = two.events().commit(&late, &step(start, 3)).await.unwrap();
        assert_eq!(outcome, Outcome::Fenced { app_id: APP.to_owned(), found: Some(4) });
    }
    assert_eq!(rows_in(two.events()).await, 4);
}

/// Between the check and the write of the second owner, the first one commits.
async fn overtaken(new: NewSite, other: &'static str) -> (Outcome, u64) {
    let place = new();
    let (one, two) = (place.open().await.unwrap(), place.open().await.unwrap());
    let first = stored(one.events(), 0..4).await;
    let second = stored(two.events(), 0..3).await;
    let overtaking = Box::pin(async move {
        let step = [TxnStep { app_id: other.to_owned(), start: None, end: 4 }];
        one.events().commit(&first, &step).await.unwrap();
    });
    place.store.push([Fault::First(overtaking)]);
    let outcome = two.events().commit(&second, &step(None, 3)).await.unwrap();
    (outcome, rows_in(two.events()).await)
}

pub(super) async fn a_commit_overtaken_by_another_owner_after_its_check_is_fenced(new: NewSite) {
    let (outcome, rows) = overtaken(new, APP).await;
    assert_eq!(outcome, Outcome::Fenced { app_id: APP.to_owned(), found: Some(4) });
    assert_eq!(rows, 4);
}

pub(super) async fn a_commit_overtaken_by_another_partition_lands_behind_it(new: NewSite) {
    let (outcome, rows) = overtaken(new, "file/custody.events@1/edge-2").await;
    assert_eq!(outcome, Outcome::Committed { version: 2 });
    assert_eq!(rows, 7);
}

pub(super) async fn a_store_that_never_answers_is_given_up_on_and_the_same_call_succeeds_later(
    new: NewSite,
) {
    let place = new();
    let lake = place.open().await.unwrap();
    let files = stored(lake.events(), 0..2).await;
    place.store.push((0..8).map(|_| Fault::Before));
    let error = lake.events().commit(&files, &step(None, 2)).await.unwrap_err();
    assert!(error.to_string().contains("after 8 attempts"), "{error}");
    lake.events().commit(&files, &step(None, 2)).await.unwrap();
    assert_eq!(rows_in(lake.events()).await, 2);
}

pub(super) async fn a_checkpoint_of_the_log_loses_no_position_no_statistics_and_no_tag(
    new: NewSite,
) {
    let place = new();
    let lake = place.open().await.unwrap();
    let table = lake.events();
    assert_eq!(table.maintain_every(1).await.unwrap().checkpoint, None);
    for seq in 0..3u64 {
        let files = stored(table, seq..seq + 1).await;
        table.commit(&files, &step(seq.checked_sub(1).map(|s| s + 1), seq + 1)).await.unwrap();
    }
    assert_eq!(table.maintain_every(1).await.unwrap().checkpoint, Some(3));
    assert_eq!(table.maintain_every(1).await.unwrap().checkpoint, None);
    for version in 0..3 {
        place.store.delete(&place.log(version)).await.unwrap();
    }
    let fresh = place.open().await.unwrap();
    let after = fresh.events().snapshot().await.unwrap();
    assert_eq!(after.txn(APP).await.unwrap(), Some(3));
    assert_eq!(after.files(), table.snapshot().await.unwrap().files());
    let mut spans: Vec<_> = after.files().iter().flat_map(|f| f.streams().unwrap()).collect();
    spans.sort();
    assert_eq!(spans[2], (STREAM.parse().unwrap(), vec![(2, 3)]));
}

pub(super) async fn positions_that_were_asked_for_are_known_at_the_next_version_and_are_right(
    new: NewSite,
) {
    let place = new();
    let (writer, reader) = (place.open().await.unwrap(), place.open().await.unwrap());
    let other = "file/custody.events@1/edge-2";
    let mut seen = reader.events().snapshot().await.unwrap();
    for (round, app) in [APP, other, APP, APP, other].into_iter().enumerate() {
        let start = seen.txn(app).await.unwrap();
        let end = start.unwrap_or(0) + round as u64 + 1;
        let step = [TxnStep { app_id: app.to_owned(), start, end }];
        writer.events().commit(&[], &step).await.unwrap();
        seen = reader.events().snapshot().await.unwrap();
        assert_eq!(seen.known_positions().await[app], Some(end), "round {round}");
        let fresh = place.open().await.unwrap().events().snapshot().await.unwrap();
        assert!(fresh.known_positions().await.is_empty());
        for app in [APP, other] {
            assert_eq!(seen.txn(app).await.unwrap(), fresh.txn(app).await.unwrap());
        }
    }
}

pub(super) async fn the_identities_of_stored_records_can_be_read_back(new: NewSite) {
    let place = new();
    let lake = place.open().await.unwrap();
    let files = stored(lake.events(), 5..8).await;
    lake.events().commit(&files, &step(None, 8)).await.unwrap();
    let snapshot = lake.events().snapshot().await.unwrap();
    let found = snapshot.identities(&snapshot.files()[0]).await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[&(STREAM.parse().unwrap(), 6)], hash(&record(6)));
}

mod in_a_folder {
    use super::super::Site;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lake_is_made_once_and_opens_again_in_the_plainest_delta_protocol() {
        super::a_lake_is_made_once_and_opens_again_in_the_plainest_delta_protocol(Site::folder)
            .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_processes_may_open_a_new_lake_at_once() {
        super::many_processes_may_open_a_new_lake_at_once(Site::folder).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lake_of_another_deployment_or_a_newer_format_or_of_a_stranger_is_refused() {
        super::a_lake_of_another_deployment_or_a_newer_format_or_of_a_stranger_is_refused(
            Site::folder,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lake_that_a_newer_version_takes_over_while_we_run_gets_nothing_more_from_us() {
        super::a_lake_that_a_newer_version_takes_over_while_we_run_gets_nothing_more_from_us(
            Site::folder,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_keeps_its_files_and_positions_while_the_table_goes_on() {
        super::a_snapshot_keeps_its_files_and_positions_while_the_table_goes_on(Site::folder).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whatever_happens_to_the_write_of_a_commit_its_rows_are_there_once() {
        super::whatever_happens_to_the_write_of_a_commit_its_rows_are_there_once(Site::folder)
            .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_owner_whose_position_has_moved_is_fenced_and_adds_nothing() {
        super::an_owner_whose_position_has_moved_is_fenced_and_adds_nothing(Site::folder).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_overtaken_by_another_owner_after_its_check_is_fenced() {
        super::a_commit_overtaken_by_another_owner_after_its_check_is_fenced(Site::folder).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_overtaken_by_another_partition_lands_behind_it() {
        super::a_commit_overtaken_by_another_partition_lands_behind_it(Site::folder).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_never_answers_is_given_up_on_and_the_same_call_succeeds_later() {
        super::a_store_that_never_answers_is_given_up_on_and_the_same_call_succeeds_later(
            Site::folder,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_of_the_log_loses_no_position_no_statistics_and_no_tag() {
        super::a_checkpoint_of_the_log_loses_no_position_no_statistics_and_no_tag(Site::folder)
            .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn positions_that_were_asked_for_are_known_at_the_next_version_and_are_right() {
        super::positions_that_were_asked_for_are_known_at_the_next_version_and_are_right(
            Site::folder,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_identities_of_stored_records_can_be_read_back() {
        super::the_identities_of_stored_records_can_be_read_back(Site::folder).await;
    }
}
