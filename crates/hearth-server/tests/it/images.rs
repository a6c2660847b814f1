//! The server removes old images of the data folder, and none that is still needed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use serde_json::json;

use crate::harness::{SOON, Server, options};

/// A folder that counts as an image, built so many days ago.
fn image(images: &Path, digit: char, name: &str, days: u64) {
    let digest = digit.to_string().repeat(64);
    let folder = images.join(&digest);
    fs::create_dir_all(&folder).unwrap();
    for file in ["rootfs.ext4", "vmlinuz", "initrd"] {
        fs::write(folder.join(file), "1234").unwrap();
    }
    let manifest = json!({
        "digest": digest, "name": name, "suite": "bookworm", "kernelVersion": "6.1", "packages": [],
        "agentSha256": "a", "agentVersion": "0.1.0", "base": "b", "created": "2026-01-01T00:00:00Z",
        "sizes": { "rootfs": 4, "rootfsOnDisk": 4, "vmlinuz": 4, "initrd": 4 },
    });
    let path = folder.join("manifest.json");
    fs::write(&path, manifest.to_string()).unwrap();
    let built = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
    fs::File::options()
        .append(true)
        .open(path)
        .unwrap()
        .set_modified(built)
        .unwrap();
}

#[tokio::test]
async fn old_image_that_nobody_needs_is_removed_by_the_server() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let options = options(folder.path());
    let images = options.data_dir.join("images");
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let made = Arc::clone(&driver);
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    server.project(json!({ "name": "pinned", "image": "bbbb" })).await;
    let (folder, options) = server.stop().await;
    for (digit, name, days) in [
        ('a', "one", 1),
        ('b', "one", 40),
        ('c', "one", 50),
        ('d', "one", 60),
        ('e', "two", 90),
    ] {
        image(&images, digit, name, days);
    }
    // One of them is the base of a VM.
    let record = options.data_dir.join("vms/vm-1/vm.json");
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(record, json!({ "image": "d".repeat(64) }).to_string()).unwrap();
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let there = || {
        "abcde"
            .chars()
            .filter(|digit| images.join(digit.to_string().repeat(64)).exists())
            .collect::<String>()
    };
    let deadline = tokio::time::Instant::now() + SOON;
    while there() != "abde" {
        assert!(tokio::time::Instant::now() < deadline, "{}", there());
        crate::harness::pause().await;
    }
    server.stop().await;
}
