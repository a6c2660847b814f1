//! Files in a VM through the public API: what goes in comes back, in parts too; what is refused and how it is said; who may.

use hearth_drivers::fake::{FakeDriver, FakeOptions, Verb};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{BOOT, Server, bare_project};
use crate::vms;

/// A claimed VM, its claim, and the path of its files.
async fn claimed() -> (Server, FakeDriver, Value, String) {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    // The address that the claim names is the one that is served.
    let files = claim["agent"]["files"].as_str().unwrap().to_owned();
    (server, driver, claim, files)
}

async fn put(server: &Server, files: &str, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
    let request = server.request(Method::PUT, files).query(&[("path", path)]);
    server.send(request.body(body)).await
}

async fn read(server: &Server, files: &str, path: &str, range: &str) -> reqwest::Response {
    let request = server.request(Method::GET, files).query(&[("path", path)]);
    request.header("range", range).send().await.unwrap()
}

#[tokio::test]
async fn a_file_goes_in_and_comes_back_whole_and_in_parts() {
    let (server, driver, claim, files) = claimed().await;
    // More than a JSON body may have, in chunks, without a length that is known before.
    const CHUNKS: usize = 80;
    let chunk = bytes::Bytes::from(vec![7; 1 << 20]);
    let chunks = futures::stream::iter((0..CHUNKS).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let (status, entry) = put(&server, &files, "big", reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!(status, StatusCode::OK, "{entry}");
    assert_eq!(
        (&entry["path"], &entry["size"], &entry["kind"], &entry["mode"]),
        (
            &json!("/home/big"),
            &json!(CHUNKS << 20),
            &json!("file"),
            &json!("0644")
        )
    );
    let (status, _) = put(&server, &files, "/srv/a b/ü", "0123456789").await;
    assert_eq!(status, StatusCode::OK);
    let vm = claim["instanceId"].as_str().unwrap().parse().unwrap();
    assert_eq!(driver.file(&vm, "/srv/a b/ü").unwrap(), "0123456789");
    let whole = server.request(Method::GET, &files).query(&[("path", "/home/big")]);
    let whole = whole.send().await.unwrap();
    assert_eq!(whole.status(), StatusCode::OK);
    assert_eq!(whole.headers()["content-length"], (CHUNKS << 20).to_string());
    assert_eq!(whole.bytes().await.unwrap().len(), CHUNKS << 20);
    for (range, status, about, text) in [
        ("bytes=2-4", 206, "bytes 2-4/10", "234"),
        ("bytes=7-", 206, "bytes 7-9/10", "789"),
        ("bytes=-2", 206, "bytes 8-9/10", "89"),
        ("bytes=0-1,4-5", 200, "", "0123456789"),
        ("nonsense", 200, "", "0123456789"),
    ] {
        let reply = read(&server, &files, "/srv/a b/ü", range).await;
        assert_eq!(reply.status(), status, "{range}");
        let header = |name: &str| {
            let value = reply.headers().get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        assert_eq!(header("content-range"), about, "{range}");
        assert_eq!(
            (
                header("accept-ranges"),
                header("hearth-file-mode"),
                header("content-type")
            ),
            ("bytes".into(), "0644".into(), "application/octet-stream".into())
        );
        assert!(header("etag").starts_with('"') && header("last-modified").ends_with("GMT"));
        assert_eq!(reply.text().await.unwrap(), text, "{range}");
    }
    let reply = read(&server, &files, "/srv/a b/ü", "bytes=10-").await;
    assert_eq!(reply.status(), 416);
    let body: Value = reply.json().await.unwrap();
    assert_eq!(body["error"]["code"], "range_not_satisfiable");
    let head = server.request(Method::HEAD, &files).query(&[("path", "big")]);
    let head = head.send().await.unwrap();
    assert_eq!(
        (head.status(), head.headers()["content-length"].to_str().unwrap()),
        (StatusCode::OK, (CHUNKS << 20).to_string().as_str())
    );
}

#[tokio::test]
async fn folders_are_made_listed_moved_and_removed() {
    let (server, _, _, files) = claimed().await;
    let call =
        async |method: Method, path: &str, body: Value| server.call(method, &format!("{files}{path}"), body).await;
    let (status, made) = call(Method::POST, "/mkdir", json!({ "path": "app", "mode": "0750" })).await;
    assert_eq!(
        (status, &made["kind"], &made["path"]),
        (StatusCode::OK, &json!("directory"), &json!("/home/app"))
    );
    let (status, again) = call(Method::POST, "/mkdir", json!({ "path": "/home/app" })).await;
    assert_eq!(
        (status, &again["error"]["message"]),
        (StatusCode::CONFLICT, &json!("/home/app exists already"))
    );
    for path in ["app/src/a", "app/src/b", "app/README"] {
        assert_eq!(put(&server, &files, path, path).await.0, StatusCode::OK);
    }
    let list = server.get(&format!("{files}/list?path=app&depth=2")).await;
    let names: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "/home/app/README",
            "/home/app/src",
            "/home/app/src/a",
            "/home/app/src/b"
        ]
    );
    assert_eq!((&list["truncated"], &list["unreadable"]), (&json!(false), &json!([])));
    let list = server.get(&format!("{files}/list?path=/home/app&limit=1")).await;
    assert_eq!(
        (&list["items"][0]["name"], &list["truncated"]),
        (&json!("README"), &json!(true))
    );
    let (status, _) = call(
        Method::POST,
        "/move",
        json!({ "path": "app/README", "to": "app/src/a" }),
    )
    .await;
    assert_eq!(status, StatusCode::CONFLICT);
    let body = json!({ "path": "app/README", "to": "app/src/a", "replace": true });
    let (status, moved) = call(Method::POST, "/move", body).await;
    assert_eq!((status, &moved["path"]), (StatusCode::OK, &json!("/home/app/src/a")));
    let stat = server.get(&format!("{files}/stat?path=app/src/a")).await;
    assert_eq!(stat["size"], "app/README".len());
    let (status, body) = call(Method::DELETE, "?path=app", json!(null)).await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    let (status, body) = call(Method::DELETE, "?path=app&recursive=true", json!(null)).await;
    assert_eq!(
        (status, body),
        (StatusCode::OK, json!({ "removed": true, "path": "app" }))
    );
    let (status, body) = call(Method::DELETE, "?path=app", json!(null)).await;
    assert_eq!(
        (status, &body["error"]["code"], &body["error"]["message"]),
        (
            StatusCode::NOT_FOUND,
            &json!("not_found"),
            &json!("/home/app does not exist")
        )
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_field_by_field() {
    let (server, _, _, files) = claimed().await;
    let long = "x".repeat(5000);
    for (method, path, body, field) in [
        (Method::GET, "", json!(null), "path"),
        (Method::GET, "/stat?path=", json!(null), "path"),
        (Method::GET, &format!("/stat?path={long}"), json!(null), "path"),
        (Method::GET, "/stat?path=a%00b", json!(null), "path"),
        (Method::GET, "/stat?path=%ff", json!(null), "query"),
        (Method::GET, "/list?path=a&depth=0", json!(null), "depth"),
        (Method::GET, "/list?path=a&limit=10001", json!(null), "limit"),
        (Method::PUT, "?path=a&mode=rw", json!(null), "mode"),
        (Method::PUT, "?path=a&mode=17777", json!(null), "mode"),
        (Method::DELETE, "?path=a&recursive=yes", json!(null), "recursive"),
        (Method::POST, "/mkdir", json!({}), "path"),
        (Method::POST, "/mkdir", json!({ "path": "a", "mode": "9" }), "mode"),
        (
            Method::POST,
            "/mkdir",
            json!({ "path": "a", "parents": true }),
            "parents",
        ),
        (Method::POST, "/move", json!({ "path": "a" }), "to"),
    ] {
        let (status, body) = server.call(method.clone(), &format!("{files}{path}"), body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{method} {path}: {body}");
        assert_eq!(body["error"]["details"][0]["path"], field, "{method} {path}: {body}");
    }
    let part = server.request(Method::PUT, &format!("{files}?path=a"));
    let (status, _) = server
        .send(part.header("content-range", "bytes 0-1/2").body("xy"))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, body) = server.call(Method::POST, &files, json!({})).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{body}");
}

#[tokio::test]
async fn a_claim_token_has_the_files_of_its_own_vm_and_a_removed_vm_has_none() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let token = server
        .post("/tokens", json!({ "name": "agent", "scopes": ["claim"] }))
        .await;
    let http = reqwest::Client::new();
    let as_agent = |method: Method, path: &str| {
        let url = format!("http://{}{path}", server.address);
        http.request(method, url).bearer_auth(token["token"].as_str().unwrap())
    };
    let claim = as_agent(Method::POST, &format!("/api/v1{pool}/claim")).json(&json!({}));
    let (_, own) = server.send(claim).await;
    let foreign = server.post(&format!("{pool}/claim"), json!({})).await;
    for (claim, expected) in [(&own, StatusCode::OK), (&foreign, StatusCode::NOT_FOUND)] {
        let files = claim["agent"]["files"].as_str().unwrap();
        let (status, body) = server
            .send(as_agent(Method::PUT, &format!("{files}?path=a")).body("x"))
            .await;
        assert_eq!(status, expected, "{body}");
        let reply = as_agent(Method::GET, &format!("{files}?path=a")).send().await.unwrap();
        assert_eq!(reply.status(), expected);
        let (status, _) = server
            .send(as_agent(Method::GET, &format!("{files}/stat?path=a")))
            .await;
        assert_eq!(status, expected);
    }
    let reader = server
        .post("/tokens", json!({ "name": "reader", "scopes": ["project:read"] }))
        .await;
    let url = format!(
        "http://{}{}?path=a",
        server.address,
        own["agent"]["files"].as_str().unwrap()
    );
    let reply = http.get(url).bearer_auth(reader["token"].as_str().unwrap());
    assert_eq!(reply.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let files = own["agent"]["files"].as_str().unwrap().to_owned();
    let id = own["id"].as_str().unwrap();
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let (status, body) = server
        .call(Method::GET, &format!("{files}/stat?path=a"), json!(null))
        .await;
    assert!(
        matches!(status, StatusCode::GONE | StatusCode::NOT_FOUND),
        "{status} {body}"
    );
}

/// An admin looks into a VM of the pool: it is resumed for that, and paused afterwards.
#[tokio::test]
async fn a_ready_vm_is_resumed_while_its_files_are_read() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0].clone();
    let (resumed, paused) = (driver.calls(Verb::Resume), driver.calls(Verb::Pause));
    let files = format!("/instances/{}/files", ready["id"].as_str().unwrap());
    assert_eq!(put(&server, &files, "app/a", "x").await.0, StatusCode::OK);
    let list = server.get(&format!("{files}/list?path=app")).await;
    assert_eq!(list["items"][0]["name"], "a", "{list}");
    assert!(driver.calls(Verb::Resume) > resumed);
    let deadline = tokio::time::Instant::now() + crate::harness::SOON;
    while driver.calls(Verb::Pause) == paused {
        assert!(tokio::time::Instant::now() < deadline, "it is not paused again");
        crate::harness::pause().await;
    }
}

#[tokio::test]
async fn a_folder_goes_in_and_out_as_a_tar_stream() {
    let (server, driver, claim, files) = claimed().await;
    let mut tar = tar::Builder::new(Vec::new());
    for (path, text) in [("src/a", "aaa"), ("README", "r")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let request = server.request(Method::PUT, &format!("{files}/tar?path=app"));
    let (status, done) = server.send(request.body(tar)).await;
    assert_eq!(
        (status, done),
        (
            StatusCode::OK,
            json!({ "files": 2, "bytes": 4, "leftOut": 0, "failed": 0, "named": [] })
        )
    );
    let vm = claim["instanceId"].as_str().unwrap().parse().unwrap();
    assert_eq!(driver.file(&vm, "/home/app/src/a").unwrap(), "aaa");
    let reply = server.request(Method::GET, &format!("{files}/tar?path=/home/app"));
    let reply = reply.send().await.unwrap();
    assert_eq!(reply.headers()["content-type"], "application/x-tar");
    let stream = reply.bytes().await.unwrap();
    let mut archive = tar::Archive::new(&stream[..]);
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["README", "src/a"]);
    for (path, status) in [("app/README", StatusCode::CONFLICT), ("none", StatusCode::NOT_FOUND)] {
        let (found, body) = server
            .call(Method::GET, &format!("{files}/tar?path={path}"), json!(null))
            .await;
        assert_eq!(found, status, "{body}");
    }
    let request = server.request(Method::PUT, &format!("{files}/tar?path=app"));
    let (status, body) = server.send(request.body(vec![7; 2000])).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
}

#[tokio::test]
async fn changes_come_as_events_from_start_to_end() {
    let (server, _, _, files) = claimed().await;
    assert_eq!(put(&server, &files, "app/a", "x").await.0, StatusCode::OK);
    let request = server.request(Method::GET, &format!("{files}/watch?path=app&recursive=true"));
    let text = request.send().await.unwrap().text().await.unwrap();
    for event in [
        r#"event: start
data: {"kind":"start","path":"","from":null,"isDirectory":false}"#,
        r#"event: create
data: {"kind":"create","path":"a","from":null,"isDirectory":false}"#,
        r#"event: rename
data: {"kind":"rename","path":"new","from":"old","isDirectory":false}"#,
        "event: end\n",
    ] {
        assert!(text.contains(event), "{event}: {text}");
    }
    let (status, body) = server
        .call(Method::GET, &format!("{files}/watch?path=none"), json!(null))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
}

/// What only a VM shows: another user's permissions, a disk that is full, gigabytes with little memory in the agent, changes.
#[tokio::test]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn in_a_real_vm_files_go_both_ways_as_its_users() {
    let server = vms::server_with(|_| {}).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(BOOT, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({ "waitMs": 60_000 })).await;
    let id = claim["id"].as_str().unwrap().to_owned();
    let files = claim["agent"]["files"].as_str().unwrap().to_owned();
    let run = async |command: &str| {
        vms::exec(&server, &id, command).await["stdout"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    // A file of its own user, which root then writes and that user may not give away.
    run("useradd --create-home dev; chmod 700 /root; mkdir /srv/roots; chmod 755 /srv/roots").await;
    let (status, entry) = put(&server, &format!("{files}?user=dev&mode=0640"), "~/notes", "one").await;
    assert_eq!(
        (status, &entry["path"], &entry["owner"], &entry["mode"]),
        (StatusCode::OK, &json!("/home/dev/notes"), &json!("dev"), &json!("0640")),
        "{entry}"
    );
    let (_, entry) = put(&server, &files, "/home/dev/notes", "two").await;
    assert_eq!((&entry["owner"], &entry["mode"]), (&json!("dev"), &json!("0640")));
    for path in ["/srv/roots/x", "/root/x"] {
        let (status, body) = put(&server, &format!("{files}?user=dev"), path, "x").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    }
    let (status, body) = server
        .call(Method::GET, &format!("{files}?path=/etc/shadow&user=dev"), json!(null))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    // A small disk.
    run("mkdir /small; mount -t tmpfs -o size=1m tmpfs /small").await;
    let (status, body) = put(&server, &files, "/small/big", vec![1; 4 << 20]).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::INSUFFICIENT_STORAGE, &json!("insufficient_storage"))
    );
    assert_eq!(run("ls -A /small").await, "");
    // Many bytes, which the agent never holds.
    const MEBIBYTES: usize = 200;
    let chunk = bytes::Bytes::from(vec![7; 1 << 20]);
    let chunks = futures::stream::iter((0..MEBIBYTES).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let (status, _) = put(&server, &files, "/srv/big", reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!(status, StatusCode::OK);
    let reply = read(&server, &files, "/srv/big", "bytes=0-").await;
    let mut stream = reply.bytes_stream();
    let mut length = 0;
    while let Some(chunk) = futures::StreamExt::next(&mut stream).await {
        length += chunk.unwrap().len();
    }
    assert_eq!(length, MEBIBYTES << 20);
    let peak = run("cat /proc/$(pgrep -o hearth-agent)/status | awk '/VmHWM/ {print $2}'").await;
    let peak: u64 = peak.trim().parse().unwrap();
    assert!(peak < 48 * 1024, "the agent held {peak} KiB");
    // A change in the VM is heard outside.
    let watch = server.request(Method::GET, &format!("{files}/watch?path=/srv&recursive=true"));
    let mut events = watch.send().await.unwrap().bytes_stream();
    let mut text = String::new();
    let mut has_written = false;
    while !text.contains(r#"{"kind":"create","path":"roots/made","from":null,"isDirectory":true}"#) {
        let chunk = tokio::time::timeout(BOOT, futures::StreamExt::next(&mut events)).await;
        text.push_str(&String::from_utf8_lossy(&chunk.unwrap().unwrap().unwrap()));
        if !has_written && text.contains("event: start") {
            has_written = true;
            run("mkdir /srv/roots/made").await;
        }
    }
    drop(events);
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    vms::clean_up(server, &project).await;
}
