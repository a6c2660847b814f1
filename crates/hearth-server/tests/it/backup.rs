//! A backup of a running server, and the server that begins with it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_server::{BackupError, KeySource, back_up, describe, restore};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, options};

/// What is looked for; long and unlikely enough.
const VALUE: &str = "value-of-a-variable-4711";
const CREDENTIAL: &str = "ghp_credentialThatIsNowhereElse0815";
/// Some user without a name.
const OTHER_USER: u32 = 60_123;
const PASSPHRASE: &str = "correct horse battery staple";

fn passphrase(text: &str) -> SecretString {
    SecretString::from(text)
}

fn holds(file: &Path, needle: &[u8]) -> bool {
    let content = std::fs::read(file).unwrap();
    content.windows(needle.len()).any(|window| window == needle)
}

/// Ids of all instances of a pool.
async fn instances(server: &Server, pool: &str) -> Vec<String> {
    let page = server.get(&format!("{pool}/instances?limit=50")).await;
    let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
    page["items"].as_array().unwrap().iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_server_has_its_pools_and_secrets_and_none_of_the_vms() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let variables = json!({ "variables": [{ "name": "S", "value": VALUE }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let credential = json!({ "credentials": [{ "host": "git.example.org", "kind": "token", "secret": CREDENTIAL }] });
    server.put(&format!("{project}/credentials"), credential.clone()).await;
    server.patch(&pool, json!({ "enabled": true, "targetSize": 2 })).await;
    server.until_full(SOON, &project, 2).await;
    let claim = server.post(&format!("{pool}/claim"), json!({ "taskId": "T" })).await;
    server.until_full(SOON, &project, 2).await;
    let before = instances(&server, &pool).await;
    let vms_before = driver.list().await.unwrap().len();

    // The server runs on while it is made; claims keep coming.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("hearth.tar");
    let secret = passphrase(PASSPHRASE);
    let made = back_up(&server.options.data_dir, &file, Some(&secret));
    let path = format!("{pool}/claim");
    let (made, more) = tokio::join!(made, server.post(&path, json!({ "taskId": "U" })));
    let made = made.unwrap();
    assert!(more["id"].as_str().unwrap() != claim["id"].as_str().unwrap());
    assert_eq!((made.projects, made.variables, made.credentials), (1, 1, 1));
    let key = std::fs::read(server.options.data_dir.join("secret.key")).unwrap();
    let needles = [
        VALUE.as_bytes(),
        CREDENTIAL.as_bytes(),
        PASSPHRASE.as_bytes(),
        server.token.as_bytes(),
        &key,
    ];
    for needle in needles {
        assert!(!holds(&file, needle), "{}", String::from_utf8_lossy(needle));
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        std::fs::read_dir(elsewhere.path()).unwrap().count(),
        1,
        "nothing but the backup is left"
    );
    assert!(matches!(
        back_up(&server.options.data_dir, &file, None).await,
        Err(BackupError::Exists(_))
    ));

    let folder = Arc::new(tempfile::tempdir().unwrap());
    let new = options(folder.path());
    let wrong = restore(&file, &new.data_dir, KeySource::Passphrase(passphrase("wrong horse"))).await;
    assert!(matches!(wrong, Err(BackupError::Passphrase(_))), "{wrong:?}");
    assert!(!new.data_dir.exists(), "nothing is left of what did not work");
    restore(&file, &new.data_dir, KeySource::Passphrase(secret))
        .await
        .unwrap();
    let again = restore(&file, &new.data_dir, KeySource::Passphrase(passphrase(PASSPHRASE))).await;
    assert!(matches!(again, Err(BackupError::NotEmpty(_))), "{again:?}");

    // Both servers run, each with its own VMs.
    let other = FakeDriver::new(2, FakeOptions::default());
    let made: Arc<dyn Driver> = Arc::new(other.clone());
    let (name, label) = tokio::sync::oneshot::channel();
    let restored = Server::start(folder, new, move |installation| {
        name.send(installation).unwrap();
        Ok(made)
    })
    .await
    .unwrap();
    assert_eq!(restored.token, server.token, "tokens are valid as they were");
    restored.until_full(SOON, &project, 2).await;
    for id in instances(&restored, &pool).await {
        assert!(!before.contains(&id), "{id} is a VM of the other server");
    }
    assert_eq!(restored.get("/claims").await["items"], json!([]));
    // A claim with the same task is a new one: the VM of the first is elsewhere.
    let anew = restored.post(&format!("{pool}/claim"), json!({ "taskId": "T" })).await;
    assert_ne!(anew["id"], claim["id"]);
    let detail = restored
        .get(&format!("{pool}/instances/{}", anew["id"].as_str().unwrap()))
        .await;
    let vm = detail["instanceId"].as_str().unwrap().parse().unwrap();
    assert!(String::from_utf8_lossy(&other.file(&vm, "/home/.env").unwrap()).contains(VALUE));
    // A credential that is what it was is no change, which only who can open it knows.
    let same = restored.put(&format!("{project}/credentials"), credential).await;
    assert!(same.to_string().contains("git.example.org"), "{same}");
    let listed = restored.get(&format!("{project}/credentials")).await;
    assert_eq!(listed["items"][0]["host"], "git.example.org", "{listed}");
    // Neither server takes the other's VMs for orphans.
    let ours = server.get("/claims").await["items"].as_array().unwrap().len();
    assert_eq!(ours, 2);
    assert!(driver.list().await.unwrap().len() >= vms_before);
    let database = server.options.data_dir.join("hearth.db");
    let old = std::fs::read(&database).unwrap();
    let label = label.await.unwrap();
    assert!(
        !old.windows(label.len()).any(|window| window == label.as_bytes()),
        "two installations, two names"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_without_its_key_needs_it_from_elsewhere() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let variables = json!({ "variables": [{ "name": "S", "value": VALUE }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let elsewhere = tempfile::tempdir().unwrap();
    let path = |name: &str| elsewhere.path().join(name);
    back_up(&server.options.data_dir, &path("b.tar"), None).await.unwrap();
    assert!(!describe(&path("b.tar")).unwrap().has_key);
    let missing = restore(
        &path("b.tar"),
        &path("data"),
        KeySource::Passphrase(passphrase(PASSPHRASE)),
    )
    .await;
    assert!(matches!(missing, Err(BackupError::KeyMissing)), "{missing:?}");
    std::fs::write(path("other.key"), [7; 32]).unwrap();
    let wrong = restore(&path("b.tar"), &path("data"), KeySource::File(path("other.key"))).await;
    assert!(matches!(wrong, Err(BackupError::WrongKey)), "{wrong:?}");
    let key = server.options.data_dir.join("secret.key");
    restore(&path("b.tar"), &path("data"), KeySource::File(key.clone()))
        .await
        .unwrap();
    assert!(!path("data/admin-token").exists());

    // A folder that was made for it stays the one it is, its owner's.
    std::fs::create_dir(path("made")).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(path("made"), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    }
    let before = std::fs::metadata(path("made")).unwrap();
    restore(&path("b.tar"), &path("made"), KeySource::File(key))
        .await
        .unwrap();
    let after = std::fs::metadata(path("made")).unwrap();
    assert_eq!(
        (after.ino(), after.uid(), after.mode() & 0o777),
        (before.ino(), before.uid(), 0o700)
    );
    let entries: Vec<_> = std::fs::read_dir(path("made"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    assert!(entries.iter().any(|entry| entry.file_name() == "hearth.db"));
    for entry in &entries {
        let owner = entry.metadata().unwrap().uid();
        assert_eq!(owner, before.uid(), "{entry:?}");
        assert!(
            !entry.file_name().to_string_lossy().starts_with(".hearth-restore"),
            "{entry:?}"
        );
    }

    // What is no backup, or is cut off, is refused, and leaves nothing.
    std::fs::write(path("text"), "a text").unwrap();
    let whole = std::fs::read(path("b.tar")).unwrap();
    std::fs::write(path("half.tar"), &whole[..whole.len() / 2]).unwrap();
    let mut damaged = whole.clone();
    let near_the_end = damaged.len() - 3000;
    damaged[near_the_end] ^= 1;
    std::fs::write(path("damaged.tar"), &damaged).unwrap();
    for name in ["text", "half.tar", "damaged.tar"] {
        let refused = restore(&path(name), &path("new"), KeySource::File(path("other.key"))).await;
        assert!(
            matches!(refused, Err(BackupError::NoBackup { .. })),
            "{name}: {refused:?}"
        );
        assert!(!path("new").exists());
    }
    let no_folder = back_up(&path("nowhere"), &path("c.tar"), None).await;
    assert!(matches!(no_folder, Err(BackupError::NoDataFolder(_))), "{no_folder:?}");
}
