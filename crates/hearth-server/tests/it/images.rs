//! The server removes old images of the data folder, and none that is still needed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

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
async fn image_that_is_not_there_is_refused_with_those_that_are() {
    let fake = FakeOptions {
        images: vec!["base".to_owned(), "node".to_owned()],
        ..FakeOptions::default()
    };
    let (server, _) = Server::fake(fake).await;
    let refused = |(status, reply): (StatusCode, Value)| {
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
        let fault = reply["error"]["details"][0].clone();
        assert_eq!(fault["path"], "image");
        let message = fault["message"].as_str().unwrap().to_owned();
        assert!(
            message.starts_with("no image on the server is called `nope`: there are base, node"),
            "{message}"
        );
    };
    refused(
        server
            .call(Method::POST, "/projects", json!({ "name": "web", "image": "nope" }))
            .await,
    );
    assert_eq!(server.get("/projects").await["items"], json!([]));
    let project = server.project(json!({ "name": "web", "image": "node" })).await;
    let patch = json!({ "image": "nope", "description": "other" });
    refused(server.call(Method::PATCH, &project, patch).await);
    let view = server.get(&format!("{project}/view")).await;
    assert_eq!((&view["image"], &view["description"]), (&json!("node"), &json!(null)));
    for image in [json!("base"), json!(null)] {
        server.patch(&project, json!({ "image": image })).await;
    }
}

/// An image may go while a project names it: everything else of the project can still be changed.
#[tokio::test]
async fn image_that_has_gone_since_does_not_hinder_other_changes() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let with = |images: &[&str]| -> Arc<dyn Driver> {
        let images = images.iter().map(|name| (*name).to_owned()).collect();
        let fake = FakeOptions {
            images,
            ..FakeOptions::default()
        };
        Arc::new(FakeDriver::new(1, fake))
    };
    let driver = with(&["base", "node"]);
    let server = Server::start(folder.clone(), options(folder.path()), move |_| Ok(driver))
        .await
        .unwrap();
    let project = server.project(json!({ "name": "web", "image": "node" })).await;
    let (folder, options) = server.stop().await;
    let driver = with(&["base"]);
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let patch = json!({ "image": "node", "description": "other" });
    server.patch(&project, patch).await;
    let other = server.call(Method::POST, "/projects", json!({ "name": "two", "image": "node" }));
    assert_eq!(other.await.0, StatusCode::UNPROCESSABLE_ENTITY);
    server.stop().await;
}

#[tokio::test]
async fn old_image_that_nobody_needs_is_removed_by_the_server() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let options = options(folder.path());
    let images = options.data_dir.join("images");
    let fake = FakeOptions {
        images: vec!["fake-image".to_owned(), "b".repeat(64)],
        ..FakeOptions::default()
    };
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, fake));
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
