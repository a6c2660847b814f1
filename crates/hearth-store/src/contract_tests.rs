//! What the store promises on either database, when much happens at once.

use std::collections::{BTreeMap, BTreeSet};

use hearth_api::claim::{AgentPaths, ClaimReply, ClaimSource};
use hearth_api::ids::{InstanceId, ProjectId, TokenId};
use jiff::{SignedDuration, Timestamp};

use super::testing::{Database, Kind, on_both};
use super::{EventFilter, InstanceRow, NewClaim, NewInstance, RunOn as _, Store, Taken, db};

on_both!(
    claims_at_once_get_a_vm_each_and_the_others_nothing,
    one_of_many_claims_with_one_key_gets_a_vm,
    limit_of_claims_holds_when_they_come_at_once,
    reader_of_events_misses_none_that_are_written_at_once,
    names_are_told_apart_as_people_do,
    store_of_a_newer_version_is_refused,
    text_with_a_nul_is_kept,
);

mod figures {
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "not a test: prints figures for people"]
    async fn not_a_test_time_of_claims_on_sqlite() {
        super::not_a_test_time_of_claims(super::Kind::Sqlite).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "not a test: prints figures for people, on PostgreSQL"]
    async fn not_a_test_time_of_claims_on_postgres() {
        super::not_a_test_time_of_claims(super::Kind::Postgres).await;
    }
}

/// Stores in use at once: on PostgreSQL each is as another server.
const STORES: usize = 2;

pub(super) async fn project(store: &Store, name: &str) -> ProjectId {
    let id = ProjectId::generate();
    db::query(
        "INSERT INTO project (id, tenant, name, task_code, repos, vm_size, created_at, updated_at)
         VALUES ($1, 'acme', $2, 'W', '[]', 'small', 1, 1)",
    )
    .bind(id.as_str())
    .bind(name)
    .run_on(&store.write)
    .await
    .unwrap();
    let pool = "INSERT INTO pool (project_id, enabled, target_size, max_age_minutes, created_at, updated_at)
                VALUES ($1, TRUE, 1, 60, 1, 1)";
    db::query(pool).bind(id.as_str()).run_on(&store.write).await.unwrap();
    id
}

pub(super) async fn ready(store: &Store, project: &ProjectId, count: usize) {
    for _ in 0..count {
        let new = NewInstance::new(project, "r-1".to_owned(), 1, "the test says so");
        store.insert_instance(&new, Timestamp::now()).await.unwrap();
        store.instance_ready(&new.id, Timestamp::now()).await.unwrap();
    }
}

fn answer(row: &InstanceRow, expires_at: Timestamp) -> ClaimReply {
    let path = |what: &str| format!("/api/v1/{what}");
    ClaimReply {
        id: row.id.clone(),
        instance_id: row.vm.clone(),
        source: ClaimSource::Ready,
        recipe: row.recipe.clone(),
        age_ms: 0,
        wait_ms: 0,
        repos: Vec::new(),
        expires_at,
        stale: false,
        stale_since: None,
        stale_parts: Vec::new(),
        agent: AgentPaths {
            exec: path("exec"),
            files: path("files"),
            terminal: path("terminal"),
            ports: path("ports"),
        },
    }
}

pub(super) async fn take(store: &Store, project: &ProjectId, key: Option<&str>) -> Taken {
    let token: TokenId = "tok_1".parse().unwrap();
    let claim = NewClaim {
        project,
        key,
        body_hash: "h",
        asked: &BTreeMap::new(),
        token: &token,
        owner: "ada",
        strict_recipe: None,
        only: None,
        lease: SignedDuration::from_hours(1),
    };
    store.take_ready(&claim, "r-1", Timestamp::now(), answer).await.unwrap()
}

/// So many claims at once, over all stores.
async fn take_at_once(stores: &[Store], project: &ProjectId, key: Option<&'static str>, count: usize) -> Vec<Taken> {
    let tasks: Vec<_> = (0..count)
        .map(|number| {
            let (store, project) = (stores[number % stores.len()].clone(), project.clone());
            tokio::spawn(async move { take(&store, &project, key).await })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.push(task.await.unwrap());
    }
    taken
}

fn ids(taken: &[Taken]) -> Vec<InstanceId> {
    let id = |taken: &Taken| match taken {
        Taken::Instance(row, ..) => Some(row.id.clone()),
        _ => None,
    };
    taken.iter().filter_map(id).collect()
}

async fn stores(database: &Database) -> Vec<Store> {
    let mut stores = Vec::new();
    for _ in 0..STORES {
        stores.push(database.open().await);
    }
    stores
}

async fn claims_at_once_get_a_vm_each_and_the_others_nothing(kind: Kind) {
    let database = Database::new(kind);
    let stores = stores(&database).await;
    let project = project(&stores[0], "web").await;
    ready(&stores[0], &project, 20).await;
    // Who finds all rows locked finds nothing, and asks again: as claims do.
    let mut got = Vec::new();
    while got.len() < 20 {
        let taken = take_at_once(&stores, &project, None, 30).await;
        got.extend(ids(&taken));
        assert!(
            taken
                .iter()
                .all(|taken| matches!(taken, Taken::Instance(..) | Taken::Nothing(_)))
        );
    }
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 20);
    assert!(ids(&take_at_once(&stores, &project, None, 3).await).is_empty());
    let pool = stores[1].pool(&project).await.unwrap().unwrap();
    assert!(pool.metadata.last_claimed_at.is_some());
}

async fn one_of_many_claims_with_one_key_gets_a_vm(kind: Kind) {
    let database = Database::new(kind);
    let stores = stores(&database).await;
    let project = project(&stores[0], "web").await;
    ready(&stores[0], &project, 10).await;
    let taken = take_at_once(&stores, &project, Some("T-1"), 10).await;
    assert_eq!(ids(&taken).len(), 1);
    assert_eq!(taken.iter().filter(|taken| matches!(taken, Taken::Before)).count(), 9);
    let left = stores[0].ready_by_recipe(&project).await.unwrap();
    assert_eq!(left, [("r-1".to_owned(), 9)]);
}

async fn limit_of_claims_holds_when_they_come_at_once(kind: Kind) {
    let database = Database::new(kind);
    let stores = stores(&database).await;
    let project = project(&stores[0], "web").await;
    ready(&stores[0], &project, 10).await;
    let change = stores[0].change_project(&project, Timestamp::now(), |project| {
        project.claim_rules.max_claims = Some(3);
        Ok::<_, super::StoreError>(())
    });
    change.await.unwrap();
    let taken = take_at_once(&stores, &project, None, 10).await;
    assert_eq!(ids(&taken).len(), 3);
    assert_eq!(taken.iter().filter(|taken| matches!(taken, Taken::Full)).count(), 7);
}

async fn reader_of_events_misses_none_that_are_written_at_once(kind: Kind) {
    const WRITERS: usize = 8;
    const EACH: usize = 25;
    let database = Database::new(kind);
    let stores = stores(&database).await;
    let project = project(&stores[0], "web").await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (store, project) = (stores[number % STORES].clone(), project.clone());
            tokio::spawn(async move { ready(&store, &project, EACH).await })
        })
        .collect();
    let mut written = stores[0].events_written();
    let (mut seen, mut last) = (Vec::new(), 0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while seen.len() < WRITERS * EACH * 2 {
        assert!(std::time::Instant::now() < deadline, "{} of them", seen.len());
        let rows = stores[0].events_after(EventFilter::default(), last, 7).await.unwrap();
        if let Some(row) = rows.last() {
            last = row.event.id;
            seen.extend(rows.into_iter().map(|row| row.event.id));
        } else {
            let patience = std::time::Duration::from_millis(100);
            drop(tokio::time::timeout(patience, written.changed()).await);
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(seen.is_sorted());
    assert_eq!(stores[1].event_span().await.unwrap().newest, last);
    let left = stores[0].events_after(EventFilter::default(), last, 7).await.unwrap();
    assert!(left.is_empty());
}

async fn names_are_told_apart_as_people_do(kind: Kind) {
    let database = Database::new(kind);
    let store = database.open().await;
    for name in ["b", "Zebra", "a", "Émile", "émile"] {
        project(&store, name).await;
    }
    let mut projects = store.all_projects().await.unwrap();
    let first = projects.remove(0);
    let renamed = store
        .change_project(&first.id, Timestamp::now(), |project| {
            " zEBRA ".clone_into(&mut project.name);
            Ok::<_, super::StoreError>(())
        })
        .await;
    if first.name == "Zebra" {
        renamed.unwrap();
    } else {
        assert!(
            matches!(renamed, Err(super::StoreError::NameTaken { .. })),
            "{renamed:?}"
        );
    }
    // Texts compare by their bytes.
    let names: Vec<String> = db::query_scalar("SELECT name FROM project ORDER BY name")
        .fetch_all(&store.read)
        .await
        .unwrap();
    assert!(names.is_sorted(), "{names:?}");
}

async fn store_of_a_newer_version_is_refused(kind: Kind) {
    let database = Database::new(kind);
    let store = database.open().await;
    let newer = match kind {
        Kind::Sqlite => {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'x', TRUE, x'00', 1)"
        }
        Kind::Postgres => {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'x', TRUE, '\\x00', 1)"
        }
    };
    db::query(newer).run_on(&store.write).await.unwrap();
    store.close().await;
    let refused = database.try_open().await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "the database could not be migrated to this version's schema: migration 9999 was previously applied but is missing in the resolved migrations"
    );
}

async fn text_with_a_nul_is_kept(kind: Kind) {
    let database = Database::new(kind);
    let store = database.open().await;
    let project = project(&store, "web").await;
    let new = NewInstance::new(&project, "r-1".to_owned(), 1, "it said \0 and ended");
    store.insert_instance(&new, Timestamp::now()).await.unwrap();
    let told = store.events_after(EventFilter::default(), 0, 9).await.unwrap();
    let kept = match kind {
        Kind::Sqlite => "it said \0 and ended",
        Kind::Postgres => "it said \u{fffd} and ended",
    };
    assert_eq!(told[0].event.reason.as_deref(), Some(kept));
}

/// Prints how long a claim takes in the store, one after the other and many at once. Figures for people: `cargo test -p hearth-store
/// --release not_a_test_ -- --ignored --nocapture`.
async fn not_a_test_time_of_claims(kind: Kind) {
    const CLAIMS: usize = 600;
    const AT_ONCE: usize = 16;
    let database = Database::new(kind);
    let store = database.open().await;
    let project = project(&store, "web").await;
    for at_once in [1, AT_ONCE] {
        ready(&store, &project, CLAIMS).await;
        let start = std::time::Instant::now();
        let tasks: Vec<_> = (0..at_once)
            .map(|_| {
                let (store, project) = (store.clone(), project.clone());
                tokio::spawn(async move {
                    for _ in 0..CLAIMS / at_once {
                        take(&store, &project, None).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let each = start.elapsed() / u32::try_from(CLAIMS).unwrap();
        println!("{kind:?}, {at_once} at once: {each:?} each");
    }
}
