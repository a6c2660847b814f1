//! Every change has its event, in its transaction; what is not a change has none.

use std::path::Path;

use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::pool::PatchPool;
use hearth_core::redact::Redacted;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::Failure;
use jiff::{SignedDuration, Timestamp};

use super::{End, EventFilter, EventRow, EventSpan, EventsKept, Moved, NewInstance, RunOn as _, Store, db};
use crate::events::kind_of;
use crate::testing::{Database, Kind, on_both};

on_both!(
    every_legal_move_tells_one_event_with_its_reason_and_no_illegal_one_tells_any,
    a_failure_is_told_with_its_reason_and_a_lost_race_is_not,
    what_happens_to_a_project_its_pool_and_its_instances_is_told_to_its_tenant_even_when_it_is_gone,
    old_events_go_in_batches_the_newest_stays_and_ids_are_never_used_again,
);

/// A store with a project, and the newest event in it.
struct Tried {
    _database: Database,
    store: Store,
    project: ProjectId,
    seen: u64,
}

impl Tried {
    async fn new(kind: Kind) -> Self {
        let database = Database::new(kind);
        let store = database.open().await;
        let project = ProjectId::generate();
        db::query(
            "INSERT INTO project (id, tenant, name, task_code, repos, vm_size, created_at, updated_at)
             VALUES ($1, 'acme', 'web', 'W', '[]', 'small', 1, 1)",
        )
        .bind(project.as_str())
        .run_on(&store.write)
        .await
        .unwrap();
        Self {
            _database: database,
            store,
            project,
            seen: 0,
        }
    }

    /// What was told since the last time.
    async fn told(&mut self) -> Vec<EventRow> {
        let rows = self
            .store
            .events_after(EventFilter::default(), self.seen, 1000)
            .await
            .unwrap();
        self.seen = rows.last().map_or(self.seen, |row| row.event.id);
        rows
    }

    async fn kinds(&mut self) -> Vec<EventKind> {
        self.told().await.into_iter().map(|row| row.event.kind).collect()
    }

    async fn instance(&self) -> InstanceId {
        let new = NewInstance::new(&self.project, "r-1".to_owned(), 1, "the pool is below its target");
        self.store.insert_instance(&new, Timestamp::now()).await.unwrap();
        new.id
    }

    /// An instance that came into this state by legal moves.
    async fn in_state(&self, state: InstanceState) -> InstanceId {
        use InstanceState::{Archived, Claimed, Deleting, Failed, Provisioning, Ready, Retiring};
        let id = self.instance().await;
        let path: &[InstanceState] = match state {
            Provisioning => &[],
            Ready => &[Ready],
            Claimed => &[Ready, Claimed],
            Failed => &[Failed],
            Retiring => &[Ready, Retiring],
            Archived => &[Ready, Retiring, Archived],
            Deleting => &[Deleting],
        };
        for to in path {
            let moved = self.go(&id, *to).await;
            assert_ne!(moved, Moved::Lost, "{to:?}");
        }
        id
    }

    async fn go(&self, id: &InstanceId, to: InstanceState) -> Moved {
        let moved = self
            .store
            .move_instance(id, to, None, "the test says so", Timestamp::now());
        moved.await.unwrap()
    }
}

async fn every_legal_move_tells_one_event_with_its_reason_and_no_illegal_one_tells_any(kind: Kind) {
    let mut tried = Tried::new(kind).await;
    for from in InstanceState::ALL {
        for to in InstanceState::ALL {
            let id = tried.in_state(from).await;
            tried.told().await;
            let moved = tried.go(&id, to).await;
            let told = tried.told().await;
            if !to.legal_sources().contains(&from) {
                assert_eq!((moved, told), (Moved::Lost, Vec::new()), "{from:?} to {to:?}");
                continue;
            }
            let [row] = told.as_slice() else {
                panic!("{from:?} to {to:?} told {told:?}");
            };
            let event = &row.event;
            assert_eq!((event.kind, &event.project_id), (kind_of(to), &tried.project));
            assert_eq!(event.instance_id.as_ref(), Some(&id));
            assert_eq!(
                (row.tenant.as_str(), event.reason.as_deref()),
                ("acme", Some("the test says so"))
            );
        }
    }
}

async fn a_failure_is_told_with_its_reason_and_a_lost_race_is_not(kind: Kind) {
    let mut tried = Tried::new(kind).await;
    let id = tried.instance().await;
    assert_eq!(tried.kinds().await, [EventKind::InstanceProvisioning]);
    let failure = Failure {
        kind: FailureKind::Setup,
        reason: Redacted::from("npm said no"),
    };
    let (end, now) = (End::Failed(&failure), Timestamp::now());
    tried.store.end_instance(&id, Some(99), end, now).await.unwrap();
    assert_eq!(tried.kinds().await, []);
    tried.store.end_instance(&id, Some(1), end, now).await.unwrap();
    let told = tried.told().await;
    assert_eq!(told[0].event.kind, EventKind::InstanceFailed);
    assert_eq!(told[0].event.reason.as_deref(), Some("npm said no"));
}

async fn what_happens_to_a_project_its_pool_and_its_instances_is_told_to_its_tenant_even_when_it_is_gone(kind: Kind) {
    let mut tried = Tried::new(kind).await;
    let (store, project) = (tried.store.clone(), tried.project.clone());
    let now = Timestamp::now();
    let enable = PatchPool {
        enabled: Some(true),
        ..PatchPool::default()
    };
    store.change_pool(&project, &enable, now).await.unwrap().unwrap();
    assert!(store.retry_pool(&project, now).await.unwrap());
    let id = tried.instance().await;
    assert!(store.start_instance(&id, "session", "r-1").await.unwrap());
    assert!(store.begin_again(&id, now).await.unwrap());
    assert!(store.delete_project(&project, now).await.unwrap());
    store.forget_instance(&id).await.unwrap();
    let told = tried.told().await;
    let kinds: Vec<_> = told.iter().map(|row| row.event.kind).collect();
    assert_eq!(
        kinds,
        [
            EventKind::PoolChanged,
            EventKind::PoolRetried,
            EventKind::InstanceProvisioning,
            EventKind::InstanceStarted,
            EventKind::InstanceInterrupted,
            EventKind::InstanceDeleting,
            EventKind::ProjectDeleted,
            EventKind::InstanceRemoved,
        ]
    );
    assert!(told.iter().all(|row| row.tenant == "acme"), "{told:?}");
    assert_eq!(told[0].event.detail["enabled"], true);
}

async fn old_events_go_in_batches_the_newest_stays_and_ids_are_never_used_again(kind: Kind) {
    let tried = Tried::new(kind).await;
    let store = &tried.store;
    for _ in 0..25 {
        tried.instance().await;
    }
    let most = EventsKept {
        since: Timestamp::MIN,
        most: 10,
    };
    assert_eq!(store.remove_events(most, 10).await.unwrap(), 10);
    assert_eq!(store.remove_events(most, 10).await.unwrap(), 5);
    assert_eq!(store.remove_events(most, 10).await.unwrap(), 0);
    let span = |oldest, newest| EventSpan { oldest, newest };
    assert_eq!(store.event_span().await.unwrap(), span(16, 25));
    let all = EventsKept {
        since: Timestamp::now() + SignedDuration::from_secs(60),
        most: 10,
    };
    assert_eq!(store.remove_events(all, 100).await.unwrap(), 9);
    assert_eq!(store.remove_events(all, 100).await.unwrap(), 0);
    assert_eq!(store.event_span().await.unwrap(), span(25, 25));
    tried.instance().await;
    assert_eq!(store.event_span().await.unwrap(), span(25, 26));
}

/// Files of the store's code that may write states, or make rows of instances.
const WRITE_STATES: [&str; 2] = ["forks.rs", "moves.rs"];

#[test]
fn states_are_written_only_where_their_events_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            // Only tests have folders of their own.
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // Tests may put rows in place.
        let text = text.split("\nmod tests {").next().unwrap();
        if name.ends_with("_tests.rs") || WRITE_STATES.contains(&name.as_str()) {
            continue;
        }
        for statement in [
            "UPDATE instance SET state",
            "INSERT INTO instance ",
            "INSERT INTO event ",
        ] {
            let may = statement.contains("event") && name == "events.rs";
            assert!(may || !text.contains(statement), "{name} has `{statement}`");
        }
    }
}
