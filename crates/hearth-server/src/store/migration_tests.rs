//! What becomes of what an older version has written.

use hearth_api::ids::ProjectId;
use jiff::Timestamp;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::{Sight, Store};
use crate::secrets::Cipher;

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
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.db");
    let open = async || {
        let cipher = Cipher::open(&folder.path().join("key")).unwrap();
        Store::open(&file, cipher, None).await.unwrap()
    };
    open().await.close().await;
    let options = SqliteConnectOptions::new().filename(&file);
    let mut older = SqliteConnection::connect_with(&options).await.unwrap();
    for statement in OLDER {
        sqlx::query(statement).execute(&mut older).await.unwrap();
    }
    older.close().await.unwrap();

    let store = open().await;
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
    assert_eq!(store.claims(sight).await.unwrap()[0].owner.as_deref(), Some("ada"));
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
