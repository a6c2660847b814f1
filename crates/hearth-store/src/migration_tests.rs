//! What becomes of what an older version has written.

use std::sync::Arc;

use hearth_api::ids::ProjectId;
use hearth_core::checkout::Remote;
use jiff::Timestamp;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

use super::{Sight, Store};
use crate::seal::tests::NoVariables;

/// A database that these statements made into one of an older version, as this version finds it; and its folder.
async fn migrated(older: &[&'static str]) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.db");
    let open = async || Store::open(&file, Arc::new(NoVariables), None).await.unwrap();
    open().await.close().await;
    let options = SqliteConnectOptions::new().filename(&file);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    for statement in older {
        sqlx::query(*statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let store = open().await;
    (folder, store)
}

/// Takes back what the migration of names did, and then leaves the database as an older version could have.
const OLDER: [&str; 8] = [
    "DROP INDEX project_by_name",
    "ALTER TABLE claim DROP COLUMN asked",
    "ALTER TABLE claim DROP COLUMN owner",
    "DELETE FROM _sqlx_migrations WHERE version = 11",
    "INSERT INTO project (id, tenant, name, task_code, repos, vm_size, created_at, updated_at) VALUES
        ('prj_a1111111', 'default', 'Shop', 'S', '[]', 'small', 1, 1), ('prj_b2222222', 'default', 'shop ', 'S', '[]', 'small', 2, 2),
        ('prj_c3333333', 'default', 'SHOP', 'S', '[]', 'small', 3, 3), ('prj_d4444444', 'beta', 'shop', 'S', '[]', 'small', 4, 4)",
    "INSERT INTO token (id, tenant, name, owner, hash, scopes, created_at) VALUES ('tok_1', 'default', 't', 'ada', 'h', '[]', 1)",
    "INSERT INTO instance (id, project_id, vm_id, state, generation, is_test, reserved, recipe, memory_mib, created_at, state_since)
        VALUES ('wpi_1', 'prj_a1111111', 'vm-1', 'claimed', 1, 0, 0, 'r', 1, 1, 1)",
    "INSERT INTO claim (instance_id, project_id, key, body_hash, token_id, reply, lease_ms, created_at, expires_at)
        VALUES ('wpi_1', 'prj_a1111111', 'T1', 'h', 'tok_1', '{}', 1, 1, 2)",
];

#[tokio::test]
async fn projects_of_one_name_are_told_apart_and_claims_keep_their_owner() {
    let (_folder, store) = migrated(&OLDER).await;
    let names: Vec<String> = store
        .all_projects()
        .await
        .unwrap()
        .into_iter()
        .map(|project| project.name)
        .collect();
    assert_eq!(names, ["Shop", "shop-b2222222", "SHOP-c3333333", "shop"]);
    let sight = Sight {
        tenant: "default",
        project: None,
        claimed_by: None,
    };
    let found = store.find_projects(sight, "sHOP").await.unwrap();
    assert_eq!(
        found.iter().map(|project| project.id.as_str()).collect::<Vec<_>>(),
        ["prj_a1111111"]
    );
    assert_eq!(store.claims(sight).await.unwrap()[0].1.owner.as_deref(), Some("ada"));
    // From now on a name that is taken stays so.
    let id: ProjectId = "prj_c3333333".parse().unwrap();
    let renamed = store
        .change_project(&id, Timestamp::now(), |project| {
            " shop".clone_into(&mut project.name);
            Ok::<_, super::StoreError>(())
        })
        .await;
    assert!(matches!(renamed, Err(super::StoreError::NameTaken { project }) if project.as_str() == "prj_a1111111"));
}

/// Takes back what the migration of tips did, and leaves tips as a version before it could have.
const BEFORE_TENANTS: [&str; 6] = [
    "DROP TABLE tip",
    "CREATE TABLE tip (url TEXT NOT NULL, branch TEXT NOT NULL, commit_id TEXT NOT NULL, changed_at INTEGER NOT NULL,
        PRIMARY KEY (url, branch)) STRICT",
    "DELETE FROM _sqlx_migrations WHERE version = 14",
    "INSERT INTO project (id, tenant, name, task_code, repos, vm_size, created_at, updated_at) VALUES
        ('prj_a1111111', 'default', 'one', 'S', '[{\"repoFullName\":\"acme/app\",\"branch\":\"main\",\"url\":\"https://h/app\"},
            {\"repoFullName\":\"acme/app\",\"branch\":\"main\",\"url\":\"https://h/app\"}]', 'small', 1, 1),
        ('prj_b2222222', 'default', 'two', 'S', '[{\"repoFullName\":\"acme/app\",\"branch\":\"x\",\"url\":\"https://h/app\"}]', 'small', 2, 2),
        ('prj_c3333333', 'beta', 'three', 'S', '[{\"repoFullName\":\"acme/lib\",\"branch\":\"main\",\"url\":\"https://h/lib\"}]', 'small', 3, 3),
        ('prj_d4444444', 'gamma', 'four', 'S', '[]', 'small', 4, 4)",
    "INSERT INTO tip (url, branch, commit_id, changed_at) VALUES
        ('https://h/app', 'main', 'a1', 10), ('https://h/app', 'x', 'a2', 20), ('https://h/lib', 'main', 'b1', 30),
        ('https://h/nobody', 'main', 'c1', 40)",
    // What a tenant shares with another, each has seen.
    "UPDATE project SET repos = json_insert(repos, '$[#]', json('{\"repoFullName\":\"acme/app\",\"branch\":\"x\",\"url\":\"https://h/app\"}'))
        WHERE tenant = 'beta'",
];

#[tokio::test]
async fn tips_belong_to_the_tenants_whose_projects_have_the_repository() {
    let (_folder, store) = migrated(&BEFORE_TENANTS).await;
    let mut tips: Vec<(String, String, String, String, i64)> =
        sqlx::query_as("SELECT tenant, url, branch, commit_id, changed_at FROM tip")
            .fetch_all(&store.read)
            .await
            .unwrap();
    tips.sort();
    let tip = |tenant: &str, url: &str, branch: &str, commit: &str, at| {
        (
            tenant.to_owned(),
            url.to_owned(),
            branch.to_owned(),
            commit.to_owned(),
            at,
        )
    };
    // Once each, however many projects of a tenant have it; what nobody has is forgotten; `gamma` gets nothing.
    assert_eq!(
        tips,
        [
            tip("beta", "https://h/app", "main", "a1", 10),
            tip("beta", "https://h/app", "x", "a2", 20),
            tip("beta", "https://h/lib", "main", "b1", 30),
            tip("default", "https://h/app", "main", "a1", 10),
            tip("default", "https://h/app", "x", "a2", 20),
        ]
    );
    let before = Remote {
        tenant: "beta".to_owned(),
        url: "https://h/app".to_owned(),
    };
    // A commit that was seen before keeps its time; another one gets the time it is seen first.
    let at = |ms| Timestamp::from_millisecond(ms).unwrap();
    store.note_tip(&before, "x", "a2", at(99)).await.unwrap();
    store.note_tip(&before, "main", "a9", at(99)).await.unwrap();
    let times: Vec<(String, i64)> = sqlx::query_as(
        "SELECT branch, changed_at FROM tip WHERE tenant = 'beta' AND url = 'https://h/app' ORDER BY branch",
    )
    .fetch_all(&store.read)
    .await
    .unwrap();
    assert_eq!(times, [("main".to_owned(), 99), ("x".to_owned(), 20)]);
}
