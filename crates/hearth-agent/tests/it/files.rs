//! Files and folders up and down, health, and requests that make no sense.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use hearth_guest::client::{AgentError, Upload};
use hearth_guest::{PROTOCOL_VERSION, paths};

use crate::support::*;

const MAX: usize = 64 << 20;

fn refused(result: Result<impl Sized, AgentError>) -> (u16, String) {
    match result {
        Err(AgentError::Refused { status, message, .. }) => (status, message),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[tokio::test]
async fn health_says_who_answers() {
    let agent = Agent::start();
    let health = agent.client().await.health().await.unwrap();
    assert_eq!(
        (health.version.as_str(), health.protocol),
        (env!("CARGO_PKG_VERSION"), PROTOCOL_VERSION)
    );
    assert_eq!(health.boot_id.len(), 36);
    assert!(health.uptime_ms > 0);
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_files_come_back_as_they_went() {
    let agent = Agent::start();
    let client = agent.client().await;
    let path = agent.path_text("new/deep & strange ü/file?");
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    client.write_file(&path, 0o600, bytes.clone()).await.unwrap();
    assert!(client.read_file(&path).await.unwrap().collect(MAX).await.unwrap() == bytes);
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    // Replaced, not rewritten.
    client.write_file_as(&path, 0o4755, "daemon", "short").await.unwrap();
    let replaced = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (replaced.uid(), replaced.permissions().mode() & 0o7777, replaced.len()),
        (1, 0o4755, 5)
    );
    assert_ne!(replaced.ino(), found.ino());
    let owned = agent.path_text("owned/by/daemon");
    client
        .write_file_as(&owned, 0o644, "daemon", Upload::empty())
        .await
        .unwrap();
    assert_eq!(std::fs::metadata(agent.path("owned")).unwrap().uid(), 1);
    assert!(std::fs::metadata(agent.path("")).unwrap().uid() != 1);
    // Files without a length of their own.
    assert!(
        !client
            .read_file("/proc/self/status")
            .await
            .unwrap()
            .collect(MAX)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn half_a_file_is_no_file() {
    let agent = Agent::start();
    let client = agent.client().await;
    let path = agent.path_text("folder/file");
    client.write_file(&path, 0o644, "old").await.unwrap();
    let broken = futures::stream::iter([Ok("new".into()), Err(std::io::Error::other("the source broke"))]);
    client
        .write_file(&path, 0o644, Upload::from_stream(broken))
        .await
        .unwrap_err();
    // The same when the caller gives up.
    let endless = futures::stream::repeat_with(|| Ok(bytes::Bytes::from_static(&[0; 1000])));
    let writing = client.write_file(&path, 0o644, Upload::from_stream(endless));
    tokio::time::timeout(std::time::Duration::from_millis(300), writing)
        .await
        .unwrap_err();
    eventually("only the old file is there", async || {
        (std::fs::read_dir(agent.path("folder")).unwrap().count() == 1).then_some(())
    })
    .await;
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[tokio::test]
async fn nonsense_is_refused_in_words() {
    let agent = Agent::start();
    let client = agent.client().await;
    assert_eq!(refused(client.read_file("/no/such/file").await).0, 404);
    assert_eq!(
        refused(client.read_file("relative").await),
        (400, "\"relative\" is not an absolute path".into())
    );
    assert_eq!(
        refused(client.read_file("/etc").await),
        (400, "/etc is not a file".into())
    );
    assert_eq!(refused(client.write_file("/etc", 0o644, "x").await).0, 400);
    assert_eq!(refused(client.write_file("/etc/passwd/x", 0o644, "x").await).0, 400);
    assert_eq!(
        refused(
            client
                .write_file_as(&agent.path_text("x"), 0o644, "no-such-user", "x")
                .await
        )
        .0,
        400
    );
    assert_eq!(
        refused(client.write_file(&agent.path_text("x"), 0o777_777, "x").await).0,
        400
    );
    assert!(!agent.path("x").exists());
    // A refusal comes through while the body is still being sent.
    let endless = futures::stream::repeat_with(|| Ok(bytes::Bytes::from_static(&[0; 1000])));
    assert_eq!(
        refused(client.write_file("/etc", 0o644, Upload::from_stream(endless)).await).0,
        400
    );
    client.health().await.unwrap();
}

fn tar_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn entry(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o751);
    header.set_size(data.len() as u64);
    // By hand: the builder itself refuses what is tested here.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

#[tokio::test]
async fn trees_keep_modes_and_links() {
    use tar::EntryType;
    let agent = Agent::start();
    let client = agent.client().await;
    let tar = tar_of(|builder| {
        entry(builder, "bin/", EntryType::Directory, "", b"");
        entry(builder, "bin/tool", EntryType::Regular, "", b"#!/bin/sh\n");
        entry(builder, "link", EntryType::Symlink, "/somewhere/else", b"");
        entry(builder, "hard", EntryType::Link, "bin/tool", b"");
    });
    client.put_tree(&agent.path_text("a/b"), tar.clone()).await.unwrap();
    // A second time over the first.
    client.put_tree(&agent.path_text("a/b"), tar).await.unwrap();
    let tool = std::fs::metadata(agent.path("a/b/bin/tool")).unwrap();
    assert_eq!(
        (tool.permissions().mode() & 0o7777, tool.len(), tool.uid()),
        (0o751, 10, nix::unistd::geteuid().as_raw())
    );
    assert_eq!(
        std::fs::read_link(agent.path("a/b/link")).unwrap().to_str(),
        Some("/somewhere/else")
    );
    assert_eq!(std::fs::metadata(agent.path("a/b/hard")).unwrap().len(), 10);
}

#[tokio::test]
async fn trees_stay_inside() {
    use tar::EntryType;
    let agent = Agent::start();
    let client = agent.client().await;
    std::fs::create_dir(agent.path("outside")).unwrap();
    std::fs::create_dir(agent.path("t")).unwrap();
    symlink(agent.path("outside"), agent.path("t/out")).unwrap();
    std::fs::write(agent.path("secret"), "s").unwrap();
    let secret = agent.path_text("secret");
    let cases: [(&str, EntryType, &str); 5] = [
        ("../x", EntryType::Regular, ""),
        ("/tmp/hearth-x", EntryType::Regular, ""),
        ("a/../../x", EntryType::Regular, ""),
        ("out/x", EntryType::Regular, ""),
        ("stolen", EntryType::Link, &secret),
    ];
    for (path, kind, link) in cases {
        let tar = tar_of(|builder| entry(builder, path, kind, link, b""));
        let (status, message) = refused(client.put_tree(&agent.path_text("t"), tar).await);
        assert_eq!(status, 400, "{path}: {message}");
    }
    assert!(!agent.path("x").exists() && !agent.path("outside/x").exists() && !agent.path("t/stolen").exists());
    assert_eq!(
        refused(client.put_tree(&agent.path_text("t"), vec![7; 2000]).await).0,
        400
    );
    // Half a tar stream.
    let whole = tar_of(|builder| entry(builder, "file", EntryType::Regular, "", &[1; 5000]));
    assert_eq!(
        refused(client.put_tree(&agent.path_text("t"), whole[..3000].to_vec()).await).0,
        400
    );
}

/// Requests that the client would never make, over plain HTTP/2 in a session.
#[tokio::test]
async fn unknown_paths_and_bad_bodies_are_faults() {
    let agent = Agent::start();
    let stream = agent.stream().await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let session = hearth_guest::session::open(stream, deadline).await.unwrap();
    let exec = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(session);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(exec, io).await.unwrap();
    tokio::spawn(connection);
    let long = format!("{}?path=/{}", paths::FILES, "x".repeat(5000));
    let json = hearth_guest::frames::encode(hearth_guest::FrameKind::Spec, b"{nonsense");
    // Only invalid requests: a valid one would change the identity of the machine that runs this test.
    let named = |hostname: &str| format!(r#"{{"unixNanos":0,"entropy":"AAAA","hostname":"{hostname}"}}"#);
    let cases: [(&str, &str, bytes::Bytes, u16); 14] = [
        ("GET", "/", "".into(), 404),
        ("GET", "/v1/nothing", "".into(), 404),
        ("DELETE", paths::HEALTH, "".into(), 405),
        ("PUT", paths::FILES, "".into(), 400),
        ("GET", &long, "".into(), 400),
        ("POST", paths::CLOCK, "{".into(), 400),
        ("POST", paths::CLOCK, vec![b' '; 1 << 20].into(), 400),
        ("GET", paths::ACTIVATE, "".into(), 405),
        ("POST", paths::ACTIVATE, "{}".into(), 400),
        ("POST", paths::ACTIVATE, named("two words").into(), 400),
        ("POST", paths::ACTIVATE, named("too-little-entropy").into(), 400),
        ("POST", paths::EXEC, "".into(), 400),
        ("POST", paths::EXEC, "garbage garbage garbage".into(), 400),
        ("POST", paths::EXEC, json, 400),
    ];
    for (method, path, body, wanted) in cases {
        let body = http_body_util::Full::new(body);
        let uri = format!("http://agent{path}");
        let request = http::Request::builder().method(method).uri(uri).body(body).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        let status = reply.status().as_u16();
        let body = http_body_util::BodyExt::collect(reply.into_body())
            .await
            .unwrap()
            .to_bytes();
        let fault: hearth_guest::AgentFault = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, wanted, "{method} {path}: {}", fault.message);
        assert!(!fault.message.is_empty());
    }
}
