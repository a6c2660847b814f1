//! What other users of the host can open of VMs and templates: nothing. They hold what projects keep secret.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_api::ids::VmId;
use hearth_drivers::{CheckDepth, ForkPurpose, ForkStart};

use crate::contract::{Rig, agent, shell};
use crate::contract_forks::{fork, freezable, freeze, key};
use crate::qemu::Qemu;

/// Another user of this host: an ordinary one, and the one that many services share.
const OTHERS: [u32; 2] = [1000, 65534];

/// Everything below, with the folder itself.
fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(all_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Whether a process of this user can read the file or list the folder.
fn can_open(user: u32, path: &Path) -> bool {
    let user = user.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
        .args(["find", "-L"])
        .arg(path)
        .args(["-maxdepth", "0", "-readable"])
        .output()
        .unwrap();
    !output.stdout.is_empty()
}

fn nobody_else_can_open_anything(data: &Path) {
    let all = ["vms", "templates"].map(|name| all_below(&data.join(name))).concat();
    assert!(all.iter().any(|path| path.ends_with("ram")), "{all:?}");
    assert!(all.iter().any(|path| path.ends_with("disk-0.qcow2")), "{all:?}");
    for path in &all {
        let mode = std::fs::symlink_metadata(path).unwrap().permissions().mode();
        // QEMU's sockets lie in a folder that only it can enter.
        if path.extension().is_none_or(|it| it != "sock") {
            assert_eq!(mode & 0o007, 0, "{}: {mode:o}", path.display());
        }
        for user in OTHERS {
            assert!(!can_open(user, path), "{user} can open {}", path.display());
        }
    }
}

/// As versions before this one left it.
fn open_as_before(data: &Path) {
    for name in ["vms", "templates"] {
        for path in all_below(&data.join(name)) {
            let found = std::fs::symlink_metadata(&path).unwrap();
            let mode = found.permissions().mode();
            if path.ends_with("run") || path.extension().is_some_and(|it| it == "sock") {
                continue;
            }
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode | 0o055)).unwrap();
            if path.starts_with(data.join("templates")) {
                std::os::unix::fs::chown(&path, None, Some(0)).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn other_users_of_the_host_can_open_nothing_of_vms_and_templates() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can act as another user");
        return;
    }
    let rig = Qemu::new().await;
    let data = rig.data();
    // A data folder that everybody can enter, as one that was made by hand may be.
    for folder in data.ancestors().take(3) {
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let open = data.join("open");
    std::fs::write(&open, "for everybody").unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(
        OTHERS.iter().all(|user| can_open(*user, &open)),
        "the look itself is no good"
    );
    std::fs::remove_file(open).unwrap();

    let (base, client) = freezable(&rig).await;
    shell(&client, "echo a-secret-value > /home/secret").await;
    let key = key("ac");
    rig.driver().checkpoint(&base, &freeze(&key, None)).await.unwrap();
    nobody_else_can_open_anything(&data);

    // A data folder of an older version is closed when it is opened, and what is in it can be used as before.
    open_as_before(&data);
    assert!(can_open(
        OTHERS[0],
        &data.join("templates").join(key.as_str()).join("ram")
    ));
    let driver = rig.reopen();
    nobody_else_can_open_anything(&data);
    driver.check_checkpoint(&key, CheckDepth::Full).await.unwrap();
    let ids = [ForkPurpose::Instance, ForkPurpose::Build].map(|purpose| (VmId::generate(), purpose));
    for (id, purpose) in &ids {
        driver
            .fork(&fork(id, &key, *purpose, ForkStart::Running))
            .await
            .unwrap();
        let client = agent(&*driver, id).await;
        assert_eq!(shell(&client, "cat /home/secret").await.1.trim(), "a-secret-value");
    }
    nobody_else_can_open_anything(&data);
    for (id, _) in ids {
        driver.destroy(&id).await.unwrap();
    }
    driver.destroy(&base).await.unwrap();
    driver.remove_checkpoint(&key).await.unwrap();
    drop(driver);
    rig.finish().await;
}
