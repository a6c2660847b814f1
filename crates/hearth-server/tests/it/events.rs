//! Events through the front door: what happened and why, resumed without a gap, for the caller's own projects alone, and for many who
//! watch at a time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::harness::{SOON, Server, bare_project, options, pause};

/// One event as it came.
#[derive(Debug, Clone, PartialEq)]
struct Came {
    id: u64,
    name: String,
    data: Value,
}

/// The events of a stream's text, as far as they are whole.
fn parse(text: &str) -> Vec<Came> {
    let mut came = Vec::new();
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    for block in whole.split("\n\n") {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_start_matches(": ").trim_start_matches(':').trim())
        };
        let (Some(id), Some(data)) = (field("id"), field("data")) else {
            continue;
        };
        came.push(Came {
            id: id.parse().unwrap(),
            name: field("event").unwrap_or_default().to_owned(),
            data: serde_json::from_str(data).unwrap(),
        });
    }
    came
}

/// All that is kept, of what this query says.
async fn kept(server: &Server, query: &str) -> Vec<Came> {
    let request = server.request(Method::GET, &format!("/events?follow=false&{query}"));
    let reply = request.send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.headers()["content-type"], "text/event-stream");
    parse(&reply.text().await.unwrap())
}

fn happened(came: &[Came]) -> Vec<&str> {
    let names = came.iter().map(|came| came.name.as_str());
    names.filter(|name| !["begin", "end"].contains(name)).collect()
}

async fn claim(server: &Server, pool: &str) -> String {
    let body = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    body["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_life_of_an_instance_is_told_in_order_and_with_reasons() {
    let (server, _driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let id = claim(&server, &pool).await;
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let query = format!("after=0&projectId={}", project.trim_start_matches("/projects/"));
    let deadline = Instant::now() + SOON;
    let life = loop {
        let all = kept(&server, &query).await;
        let life: Vec<Came> = all
            .into_iter()
            .filter(|came| came.data["instanceId"] == id.as_str())
            .collect();
        if life.last().is_some_and(|last| last.name == "instance.removed") {
            break life;
        }
        assert!(Instant::now() < deadline, "{life:#?}");
        pause().await;
    };
    let names: Vec<&str> = happened(&life)
        .into_iter()
        .filter(|name| *name != "instance.step")
        .collect();
    assert_eq!(
        names,
        [
            "instance.provisioning",
            "instance.ready",
            "instance.claimed",
            "claim.handedOver",
            "instance.deleting",
            "claim.ended",
            "instance.removed"
        ],
        "{life:#?}"
    );
    let named = |name: &str| life.iter().find(|came| came.name == name).unwrap();
    let handed_over = &named("claim.handedOver").data;
    assert_eq!(handed_over["detail"]["source"], "ready");
    assert_eq!(named("claim.ended").data["reason"], "it was released");
    assert!(
        named("instance.provisioning").data["reason"]
            .as_str()
            .is_some_and(|why| !why.is_empty())
    );
    assert!(
        life.iter()
            .any(|came| came.name == "instance.step" && came.data["detail"]["step"].is_string())
    );
    let ids: Vec<u64> = life.iter().map(|came| came.id).collect();
    assert!(
        ids.is_sorted() && life.iter().all(|came| came.data["id"] == came.id),
        "{ids:?}"
    );
    assert_eq!(life[0].data["kind"], life[0].name.as_str());
}

#[tokio::test]
async fn a_stream_is_resumed_by_its_id_and_says_when_that_is_not_kept() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let mut options = options(folder.path());
    options.most_events = 5;
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let project = server.project(bare_project()).await;
    for _ in 0..3 {
        server.patch(&project, json!({ "description": "changed" })).await;
    }
    let all = kept(&server, "after=0").await;
    assert_eq!(
        happened(&all),
        [
            "project.created",
            "project.changed",
            "project.changed",
            "project.changed"
        ]
    );
    let resumed = server
        .request(Method::GET, "/events?follow=false&after=1")
        .header("Last-Event-ID", "2");
    let resumed = parse(&resumed.send().await.unwrap().text().await.unwrap());
    assert_eq!(
        resumed.first().map(|came| (came.id, came.name.as_str())),
        Some((2, "begin"))
    );
    assert_eq!(happened(&resumed).len(), 2, "{resumed:?}");
    assert_eq!(happened(&kept(&server, "last=1").await), ["project.changed"]);
    // Of a database that is another one now.
    let ahead = kept(&server, "after=4711").await;
    assert_eq!(ahead[0].name, "reset");
    assert_eq!(ahead[0].data, json!({ "oldest": 1, "newest": 4 }));
    let (status, body) = server
        .send(server.request(Method::GET, "/events").header("Last-Event-ID", "now"))
        .await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("validation_error"))
    );
    for _ in 0..10 {
        server.patch(&project, json!({ "description": "again" })).await;
    }
    let (folder, options) = server.stop().await;
    // The next server removes what is too much when it starts.
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        let old = kept(&server, "after=2").await;
        if old[0].name == "reset" {
            assert_eq!(old[0].data, json!({ "oldest": 10, "newest": 14 }));
            break;
        }
        assert!(Instant::now() < deadline, "{old:?}");
        pause().await;
    }
}

#[tokio::test]
async fn nobody_sees_events_of_others_and_no_event_holds_a_secret() {
    const SECRET: &str = "s3cr3t-value-of-this-test";
    let printing = format!("before {SECRET} after");
    let (server, _driver) = Server::fake(FakeOptions {
        rules: vec![ExecRule::fails("die", 3, &printing)],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let other = server.project(json!({ "name": "other", "repos": [] })).await;
    let variables = json!({ "variables": [{ "name": "S", "value": SECRET }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let commands = json!({ "setupCommands": [{ "name": "die", "command": format!("die {SECRET}") }] });
    server.test_boot(SOON, &project, commands).await;
    let all = kept(&server, "after=0").await;
    assert!(happened(&all).contains(&"instance.failed"), "{all:?}");
    let text = serde_json::to_string(&all.iter().map(|came| &came.data).collect::<Vec<_>>()).unwrap();
    assert!(!text.contains(SECRET), "{text}");
    let token = |body: Value| {
        let server = &server;
        async move {
            let made = server.post("/tokens", body).await;
            made["token"].as_str().unwrap().to_owned()
        }
    };
    let foreign = token(json!({ "name": "f", "scopes": ["project:read"], "tenant": "acme" })).await;
    let id = other.trim_start_matches("/projects/");
    let narrow = token(json!({ "name": "n", "scopes": ["project:read"], "projectId": id })).await;
    let claims = token(json!({ "name": "c", "scopes": ["claim"] })).await;
    let client = reqwest::Client::new();
    let ask = |token: String, path: String| {
        let request = client
            .get(format!("http://{}/api/v1{path}", server.address))
            .bearer_auth(token);
        async move { request.send().await.unwrap() }
    };
    let reply = ask(foreign.clone(), "/events?follow=false&after=0".into()).await;
    assert_eq!(happened(&parse(&reply.text().await.unwrap())), Vec::<&str>::new());
    let reply = ask(narrow, "/events?follow=false&after=0".into()).await;
    let own = parse(&reply.text().await.unwrap());
    assert_eq!(happened(&own), ["project.created"]);
    let path = format!("/events?projectId={id}");
    assert_eq!(ask(foreign, path).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(ask(claims, "/events".into()).await.status(), StatusCode::FORBIDDEN);
}

/// Clients that watch.
const WATCHERS: usize = 500;
/// Changes a second, and for how long.
const RATE: u32 = 50;
const SECONDS: u32 = 6;
/// Clients that change.
const CHANGERS: u32 = 5;

/// One client: it is cut off now and then, and continues with the last id it has. It reads bytes, so that it costs little beside what it costs
/// the server.
async fn watch(
    address: SocketAddr,
    head: String,
    number: usize,
    until: CancellationToken,
) -> (BTreeMap<u64, u32>, usize) {
    let (mut seen, mut last, mut cuts) = (BTreeMap::new(), 0_u64, 0);
    loop {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{head}Last-Event-ID: {last}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut bytes, mut count) = (Vec::with_capacity(64 << 10), 0);
        loop {
            let read = tokio::select! {
                read = stream.read_buf(&mut bytes) => read.unwrap(),
                () = until.cancelled() => return (seen, cuts),
            };
            if read == 0 {
                break;
            }
            while let Some(end) = bytes.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = bytes.drain(..end + 2).collect();
                let block = std::str::from_utf8(&block).unwrap();
                let id = block.lines().find_map(|line| line.strip_prefix("id: "));
                if let Some(id) = id.and_then(|id| id.parse().ok()) {
                    last = id;
                    if block.contains("\nevent: project.changed") {
                        *seen.entry(id).or_insert(0) += 1;
                        count += 1;
                    }
                }
            }
            // A third of them lose their connection, again and again, and not at the same time.
            if number.is_multiple_of(3) && count >= 20 + number % 50 {
                cuts += 1;
                break;
            }
        }
    }
}

/// Processor time of this process, and its memory, bytes.
fn used() -> (Duration, u64) {
    const TICK: Duration = Duration::from_millis(10);
    let numbers = |file: &str| -> Vec<i64> {
        let text = std::fs::read_to_string(file).unwrap();
        let after_name = text.rsplit(')').next().unwrap();
        after_name
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    // The state is a letter, so `utime` and `stime` are the 11th and 12th number after the name.
    let (stat, statm) = (numbers("/proc/self/stat"), numbers("/proc/self/statm"));
    let ticks = u32::try_from(stat[10] + stat[11]).unwrap();
    (TICK * ticks, u64::try_from(statm[1]).unwrap() * 4096)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_watch_fifty_changes_a_second_and_none_misses_one() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let mut options = options(folder.path());
    options.requests_per_second = 0;
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let project = server.project(bare_project()).await;
    let before = used();
    let until = CancellationToken::new();
    let head = format!(
        "GET /api/v1/events?projectId={} HTTP/1.1\r\nHost: hearth\r\nAuthorization: Bearer {}\r\n",
        project.trim_start_matches("/projects/"),
        server.token
    );
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|number| tokio::spawn(watch(server.address, head.clone(), number, until.clone())))
        .collect();
    let began = Instant::now();
    // Several at a time: one alone waits for the disk.
    let mut changers = Vec::new();
    for changer in 0..CHANGERS {
        let request = server.request(Method::PATCH, &project);
        changers.push(tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) * CHANGERS / RATE);
            for count in 0..RATE * SECONDS / CHANGERS {
                tick.tick().await;
                let change = json!({ "description": format!("change {count} of {changer}") });
                let reply = request.try_clone().unwrap().json(&change).send().await.unwrap();
                assert_eq!(reply.status(), StatusCode::OK);
            }
        }));
    }
    for changer in changers {
        changer.await.unwrap();
    }
    let took = began.elapsed();
    let all: Vec<u64> = kept(&server, "after=0")
        .await
        .iter()
        .filter(|came| came.name == "project.changed")
        .map(|came| came.id)
        .collect();
    assert_eq!(all.len(), (RATE * SECONDS) as usize);
    // What was written last takes a moment to reach them all.
    tokio::time::timeout(SOON, pause()).await.unwrap();
    let after = used();
    for _ in 0..40 {
        pause().await;
    }
    until.cancel();
    let mut cuts = 0;
    for watcher in watchers {
        let (seen, cut) = watcher.await.unwrap();
        cuts += cut;
        let ids: Vec<u64> = seen.keys().copied().collect();
        assert_eq!(ids, all);
        assert!(seen.values().all(|times| *times == 1), "an event came twice: {seen:?}");
    }
    let cpu = after.0 - before.0;
    println!(
        "{WATCHERS} watch {} changes in {took:.1?}: {cuts} reconnects; server and clients together {cpu:.1?} of processor time, {} MiB more memory",
        all.len(),
        (after.1.saturating_sub(before.1)) >> 20
    );
    assert!(cuts > WATCHERS / 3, "{cuts}");
}
