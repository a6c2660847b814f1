//! What becomes of what an older version has written.

use std::sync::Arc;

use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::StepName;
use hearth_core::checkout::Remote;
use hearth_core::purpose::Purpose;
use jiff::Timestamp;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

use super::transfer::TABLES;
use super::{ClaimRules, Sight, Store, db};
use crate::seal::tests::NoVariables;
use crate::testing::{Database, Kind};

/// A database as the versions before this migration made it, with what these statements wrote then, as this version finds it; and its
/// folder.
async fn migrated(version: i64, written: &[&'static str]) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.db");
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let mut older = SqliteConnection::connect_with(&options).await.unwrap();
    let all = sqlx::migrate!("./migrations");
    all.run_to(version - 1, &mut older).await.unwrap();
    for statement in written {
        sqlx::query(*statement).execute(&mut older).await.unwrap();
    }
    older.close().await.unwrap();
    let store = Store::open(&file, Arc::new(NoVariables), None).await.unwrap();
    (folder, store)
}

/// What a database held before names were kept apart.
const BEFORE_NAMES: [&str; 4] = [
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
    let (_folder, store) = migrated(11, &BEFORE_NAMES).await;
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
        name_prefix: None,
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

/// What stood in a database before branch heads belonged to tenants.
const BEFORE_TENANTS: [&str; 3] = [
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
async fn branch_heads_belong_to_the_tenants_whose_projects_have_the_repository() {
    let (_folder, store) = migrated(14, &BEFORE_TENANTS).await;
    let mut heads: Vec<(String, String, String, String, i64)> =
        db::query_as("SELECT tenant, url, branch, commit_id, changed_at FROM tip")
            .fetch_all(&store.read)
            .await
            .unwrap();
    heads.sort();
    let head = |tenant: &str, url: &str, branch: &str, commit: &str, at| {
        (
            tenant.to_owned(),
            url.to_owned(),
            branch.to_owned(),
            commit.to_owned(),
            at,
        )
    };
    // Once each, however many projects of a tenant have it; what no project has is forgotten; `gamma` gets nothing.
    assert_eq!(
        heads,
        [
            head("beta", "https://h/app", "main", "a1", 10),
            head("beta", "https://h/app", "x", "a2", 20),
            head("beta", "https://h/lib", "main", "b1", 30),
            head("default", "https://h/app", "main", "a1", 10),
            head("default", "https://h/app", "x", "a2", 20),
        ]
    );
    let before = Remote {
        tenant: "beta".to_owned(),
        project: None,
        url: "https://h/app".to_owned(),
    };
    // A commit that was seen before keeps its time; another one gets the time it is seen first.
    let at = |ms| Timestamp::from_millisecond(ms).unwrap();
    store.note_branch_head(&before, "x", "a2", at(99)).await.unwrap();
    store.note_branch_head(&before, "main", "a9", at(99)).await.unwrap();
    let times: Vec<(String, i64)> = db::query_as(
        "SELECT branch, changed_at FROM tip WHERE tenant = 'beta' AND url = 'https://h/app' ORDER BY branch",
    )
    .fetch_all(&store.read)
    .await
    .unwrap();
    assert_eq!(times, [("main".to_owned(), 99), ("x".to_owned(), 20)]);
}

/// What stood in the four columns that said together what an instance was for, in all their mixtures, and a checkpoint. A test boot
/// was one whatever else was said of it, and what renewed a template served none.
const BEFORE_PURPOSE: [&str; 2] = [
    "INSERT INTO instance (id, project_id, vm_id, state, generation, is_test, is_build, reserved, use_cache, recipe, memory_mib,
                           created_at, state_since)
        SELECT 'wpi_' || n, 'prj_a1111111', 'vm-' || n, 'ready', 1, n / 8, n / 4 % 2, n / 2 % 2, n % 2, 'r', 1, 1, 1
        FROM (WITH RECURSIVE up(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM up WHERE n < 15) SELECT n FROM up)",
    r#"INSERT INTO checkpoint (key, pieces, created_at) VALUES ('0123456789abcdef',
        '[{"step":"clone_repo","output":"cloned","durationMs":5,"metadata":{},"isCommand":false}]', 1)"#,
];

#[tokio::test]
async fn four_columns_become_one_purpose_and_stage_logs_are_still_read() {
    let (_folder, store) = migrated(17, &BEFORE_PURPOSE).await;
    let purposes = async || {
        let mut rows = store.all_instances(Timestamp::now()).await.unwrap();
        let number = |id: &InstanceId| id.as_str().trim_start_matches("wpi_").parse::<usize>().unwrap();
        rows.sort_by_key(|row| number(&row.id));
        rows.iter().map(|row| row.purpose).collect::<Vec<_>>()
    };
    // Is it a test, does it renew a template, does a claim wait for it, do frozen stages need not run: by binary number.
    let test = |use_cache| Purpose::Test { use_cache };
    let (claim, pool, renewal) = (Purpose::Claim, Purpose::Pool, Purpose::Renewal);
    let expected = [
        [pool, pool, claim, claim],
        [renewal; 4],
        [test(false), test(true), test(false), test(true)],
        [test(false), test(true), test(false), test(true)],
    ];
    assert_eq!(purposes().await, expected.concat());
    // At its start a server takes back what claims had that wait no more, and nothing else.
    store.unreserve_all().await.unwrap();
    let freed = expected.concat().into_iter().map(Purpose::without_claim);
    assert_eq!(purposes().await, freed.collect::<Vec<_>>());

    let key = "0123456789abcdef".parse().unwrap();
    let logs = store.stage_logs_up_to(&key).await.unwrap().unwrap();
    assert_eq!((logs[0].step, logs[0].output.as_str()), (StepName::CloneRepo, "cloned"));
}

#[tokio::test]
async fn a_purpose_that_is_none_is_refused_by_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.db");
    let store = Store::open(&file, Arc::new(NoVariables), None).await.unwrap();
    let known = Purpose::ALL.map(|purpose| (purpose.as_str(), true));
    for (purpose, is_known) in known.into_iter().chain([("test-claim", false), ("", false)]) {
        let mut tx = store.write.begin().await.unwrap();
        let written = db::query(
            "INSERT INTO instance (id, project_id, vm_id, state, generation, purpose, recipe, memory_mib, created_at, state_since)
             VALUES ('wpi_1', 'prj_a1111111', 'vm-1', 'ready', 1, $1, 'r', 1, 1, 1)",
        )
        .bind(purpose)
        .execute(&mut *tx)
        .await;
        assert_eq!(written.is_ok(), is_known, "{purpose}");
        let serves: Option<bool> = db::query_scalar("SELECT serves_claims FROM instance")
            .fetch_optional(&mut *tx)
            .await
            .unwrap();
        assert_eq!(
            serves,
            purpose.parse::<Purpose>().ok().map(Purpose::serves_claims),
            "{purpose}"
        );
    }
}

#[tokio::test]
async fn project_with_credentials_sees_for_itself_what_its_tenant_has_seen() {
    let written = [
        BEFORE_TENANTS[0],
        "INSERT INTO tip (tenant, url, branch, commit_id, changed_at) VALUES ('default', 'https://h/app', 'main', 'a1', 10)",
    ];
    let (_folder, store) = migrated(20, &written).await;
    let id: ProjectId = "prj_a1111111".parse().unwrap();
    let project = async || store.project(&id).await.unwrap().unwrap();
    let seen = async || {
        let project = project().await;
        let remote = project.remote(&project.repos[0]);
        let tips = store.branch_heads_of(&project).await.unwrap();
        (remote.project.clone(), tips.commit(&remote, "main").map(str::to_owned))
    };
    assert_eq!(seen().await, (None, Some("a1".to_owned())));
    // What the first credential finds there is the project's; from then on each sees for itself.
    assert!(store.put_credentials(&id, &[], "ada", Timestamp::now()).await.unwrap());
    assert_eq!(seen().await, (Some(id.clone()), Some("a1".to_owned())));
    let own = project().await;
    let own = own.remote(&own.repos[0]);
    store
        .note_branch_head(&own, "main", "a2", Timestamp::now())
        .await
        .unwrap();
    let tenants = Remote {
        project: None,
        ..own.clone()
    };
    let all = store.branch_heads().await.unwrap();
    assert_eq!(
        (all.commit(&own, "main"), all.commit(&tenants, "main")),
        (Some("a2"), Some("a1"))
    );
    store.put_credentials(&id, &[], "ada", Timestamp::now()).await.unwrap();
    assert_eq!(seen().await.1, Some("a2".to_owned()));
    store.forget_branch_heads().await.unwrap();
    let all = store.branch_heads().await.unwrap();
    assert_eq!(
        (all.commit(&own, "main"), all.commit(&tenants, "main")),
        (Some("a2"), Some("a1"))
    );
}

#[tokio::test]
async fn project_of_before_says_nothing_of_its_claims_and_is_warned_of_their_ends() {
    let (_folder, store) = migrated(23, &BEFORE_TENANTS[..1]).await;
    let id: ProjectId = "prj_a1111111".parse().unwrap();
    let project = async || store.project(&id).await.unwrap().unwrap();
    assert_eq!(project().await.claim_rules, ClaimRules::default());
    assert_eq!(store.claims_held(&id).await.unwrap(), None);
    assert_eq!(store.idle_rules().await.unwrap(), []);
    let rules = ClaimRules {
        max_claims: Some(2),
        idle_pause_minutes: Some(30),
        idle_pause_to_disk: true,
        lease_warning_minutes: 0,
    };
    let change = store.change_project(&id, Timestamp::now(), |project| {
        project.claim_rules = rules;
        Ok::<_, super::StoreError>(())
    });
    change.await.unwrap();
    assert_eq!(project().await.claim_rules, rules);
    assert_eq!(
        store.claims_held(&id).await.unwrap(),
        Some(hearth_core::claim::Held { now: 0, most: 2 })
    );
}

/// Databases as released schemas left them: a version of Hearth that stops reading one of them has lost what people have.
const RELEASED: [(&str, &str); 4] = [
    ("0002", include_str!("released/0002.sql")),
    ("0010", include_str!("released/0010.sql")),
    ("0020", include_str!("released/0020.sql")),
    ("0023", include_str!("released/0023.sql")),
];

#[tokio::test]
async fn database_of_every_released_schema_is_opened_with_all_it_holds() {
    for (name, dump) in RELEASED {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hearth.db");
        // A dump names tables before it makes them.
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .foreign_keys(false);
        let mut older = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(dump).execute(&mut older).await.unwrap();
        older.close().await.unwrap();
        let store = Store::open(&file, Arc::new(NoVariables), None)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut names: Vec<String> = store
            .all_projects()
            .await
            .unwrap()
            .into_iter()
            .map(|project| format!("{} {}", project.tenant, project.name))
            .collect();
        names.sort();
        assert_eq!(names, ["beta Blog", "default Shop"], "{name}");
        let id: ProjectId = "prj_a1111111".parse().unwrap();
        let pool = store.pool(&id).await.unwrap().unwrap();
        assert_eq!((pool.config.enabled, pool.config.target_size), (true, 2), "{name}");
        let instance: InstanceId = "wpi_2".parse().unwrap();
        let instance = store.instance(&instance).await.unwrap().unwrap();
        assert_eq!(instance.purpose, Purpose::Test { use_cache: true }, "{name}");
        let sight = Sight {
            tenant: "default",
            project: None,
            claimed_by: None,
            name_prefix: None,
        };
        let claims = store.claims(sight).await.unwrap();
        assert_eq!(claims.len(), 1, "{name}");
        assert_eq!(store.count_tokens().await.unwrap(), 1, "{name}");
        let (variables, broken): (i64, i64) =
            db::query_as("SELECT (SELECT count(*) FROM variable), (SELECT count(*) FROM pragma_foreign_key_check)")
                .fetch_one(&store.read)
                .await
                .unwrap();
        assert_eq!((variables, broken), (2, 0), "{name}");
        // A copy of it is adopted too, and begins without the VMs.
        let copy = folder.path().join("copy.db");
        let open = "INSERT INTO claim_history (instance_id, project_id, claimed_at, source, wait_ms, recipe)
                        VALUES ('wpi_1', 'prj_a1111111', 1, 'warm', 0, 'r')";
        let mut tx = store.write.begin().await.unwrap();
        db::query(open).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let holds = super::copy_database(&file, &copy).await.unwrap();
        assert_eq!((holds.projects, holds.variables, holds.tokens), (2, 2, 1), "{name}");
        assert_eq!(super::adopt_copy(&copy).await.unwrap(), holds, "{name}");
        let adopted = Store::open(&copy, Arc::new(NoVariables), None).await.unwrap();
        assert!(adopted.claims(sight).await.unwrap().is_empty(), "{name}");
        let ended: Option<String> = db::query_scalar("SELECT ended_because FROM claim_history")
            .fetch_one(&adopted.read)
            .await
            .unwrap();
        assert_eq!(ended.as_deref(), Some("restored from a backup"), "{name}");
    }
}

#[test]
fn every_migration_after_the_first_of_postgresql_is_a_pair() {
    const FIRST: i64 = 32;
    let later = |all: sqlx::migrate::Migrator| {
        let named = all.iter().map(|one| (one.version, one.description.to_string()));
        named.filter(|(version, _)| *version > FIRST).collect::<Vec<_>>()
    };
    assert_eq!(
        later(sqlx::migrate!("./postgres")),
        later(sqlx::migrate!("./migrations"))
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn both_databases_have_the_same_tables_with_the_same_columns() {
    let (sqlite, postgres) = (Database::new(Kind::Sqlite), Database::new(Kind::Postgres));
    let (sqlite, postgres) = (sqlite.open().await, postgres.open().await);
    let mut tables: Vec<String> = db::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '_sqlx%' ORDER BY name",
    )
    .fetch_all(&sqlite.read)
    .await
    .unwrap();
    let ours = "SELECT CAST(table_name AS text) FROM information_schema.tables
        WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'";
    let mut others: Vec<String> = db::query_scalar(ours).fetch_all(&postgres.read).await.unwrap();
    let mut known = TABLES.map(str::to_owned).to_vec();
    for list in [&mut tables, &mut others, &mut known] {
        list.sort();
    }
    assert_eq!((&tables, &tables), (&others, &known));
    for table in &tables {
        let columns = "SELECT name, \"notnull\" OR pk > 0 FROM pragma_table_xinfo($1) ORDER BY name";
        let one: Vec<(String, bool)> = db::query_as(columns).bind(table).fetch_all(&sqlite.read).await.unwrap();
        let columns = "SELECT CAST(column_name AS text), is_nullable = 'NO' FROM information_schema.columns
            WHERE table_schema = 'public' AND table_name = $1 ORDER BY CAST(column_name AS text) COLLATE \"C\"";
        let other: Vec<(String, bool)> = db::query_as(columns)
            .bind(table)
            .fetch_all(&postgres.read)
            .await
            .unwrap();
        // The one that follows from another can be nothing only where that is.
        let stored = |(name, full): (String, bool)| (name.clone(), full || name == "serves_claims");
        let one: Vec<_> = one.into_iter().map(stored).collect();
        assert_eq!(one, other, "{table}");
    }
}
