//! A data folder on a file system without a free byte: what makes room still works.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{SOON, Server, options};

/// Room for the database, what is kept, and some more.
const SIZE_MIB: u64 = 24;

/// A small file system in memory, taken away with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={SIZE_MIB}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "hearth-test"])
            .arg(at)
            .output()
            .unwrap();
        assert!(mounted.status.success(), "{mounted:?}");
        Self(at.to_owned())
    }

    /// Writes until there is no byte left.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        for size in [64 * 1024, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

fn small(folder: &Path) -> hearth_server::ServeOptions {
    let mut options = options(folder);
    options.reserve_mib = 2;
    options
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_everything_can_still_be_deleted_on_a_full_disk() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let options = small(folder.path());
    let disk = SmallDisk::mount(&options.data_dir);
    let driver = FakeDriver::new(1, FakeOptions::default());
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let (first, pool) = server.full_pool(3).await;
    let second = server.project(json!({ "name": "second" })).await;
    server
        .patch(
            &format!("{second}/warm-pool"),
            json!({ "enabled": true, "targetSize": 2 }),
        )
        .await;
    server.until_full(SOON, &second, 2).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    server.until_full(SOON, &first, 3).await;
    // Whatever is written until the database finds no room: of a project without VMs, since VMs that get old end.
    let third = server.project(json!({ "name": "third" })).await;
    disk.fill();
    let mut full = None;
    for number in 0..2000 {
        let value = "x".repeat(50_000);
        let body = json!({ "variables": [{ "name": format!("V{number}"), "value": value }] });
        let (status, body) = server
            .call(Method::PUT, &format!("{third}/environment-variables/shared"), body)
            .await;
        if status != StatusCode::OK {
            full = Some((status, body));
            break;
        }
    }
    let (status, body) = full.expect("a full disk takes no more");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("is full"), "{body}");
    // What does not make room does not get what was kept for that.
    assert_eq!(std::fs::read_dir(disk.0.join("reserve")).unwrap().count(), 4);
    let id = claim["id"].as_str().unwrap();
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    server.post(&format!("{pool}/clear"), json!({})).await;
    for project in [&first, &second, &third] {
        let (status, body) = server.send(server.request(Method::DELETE, project)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    let deadline = tokio::time::Instant::now() + SOON;
    while !driver.list().await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "VMs are left on a full disk");
        crate::harness::pause().await;
    }
    assert!(std::fs::read_dir(disk.0.join("reserve")).unwrap().count() < 4);
    // A server that starts there, too.
    let (folder, options) = server.stop().await;
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    assert_eq!(server.get("/projects").await["items"], json!([]));
    server.stop().await;
}
