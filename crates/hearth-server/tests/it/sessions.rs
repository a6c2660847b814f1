//! Exec sessions through the public API: started, found, read by several, signalled, waited for, removed; also after a restart of the
//! server. The fake agent keeps them as the real one does, and runs nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hearth_api::client::{AttachOptions, Client, SessionEvent, SessionOutput};
use hearth_api::ids::InstanceId;
use hearth_api::session::{ReadUntil, Session};
use hearth_api::terminal::TerminalSize;
use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Special};
use hearth_guest::ExecEnd;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, git_repo};

/// A claimed VM in which some commands do something.
async fn claimed() -> (Server, FakeDriver, InstanceId) {
    let rules = vec![
        ExecRule {
            stdout: "step one\n".into(),
            stderr: "a warning\n".into(),
            ..ExecRule::does("build", Special::NeverEnds)
        },
        ExecRule::does("cat", Special::Echo),
        ExecRule {
            code: 3,
            ..ExecRule::prints("quick", "done\n")
        },
        ExecRule {
            takes: Duration::from_millis(100),
            ..ExecRule::does("kill -9 -1", Special::AgentDies)
        },
        ExecRule::does(
            "no-such-program",
            Special::End(ExecEnd::NotStarted {
                reason: "the program no-such-program was not found".into(),
                code: Some(127),
            }),
        ),
    ];
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(1).await;
    let reply = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = reply["id"].as_str().unwrap().parse().unwrap();
    (server, driver, id)
}

fn client(server: &Server) -> Client {
    Client::new(&format!("http://{}", server.address), &server.token).unwrap()
}

async fn refused(server: &Server, method: Method, path: &str, body: Value) -> (u16, String) {
    let (status, reply) = server.call(method, path, body).await;
    assert!(!status.is_success(), "{reply}");
    let mut text = reply["error"]["message"].as_str().unwrap().to_owned();
    text.push_str(&reply["error"]["details"].to_string());
    (status.as_u16(), text)
}

async fn next(output: &mut SessionOutput) -> SessionEvent {
    tokio::time::timeout(SOON, output.next()).await.unwrap().unwrap()
}

/// Output until this text is there.
async fn until(output: &mut SessionOutput, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match next(output).await {
            SessionEvent::Stdout(bytes) | SessionEvent::Stderr(bytes) => {
                seen.push_str(&String::from_utf8_lossy(&bytes))
            }
            SessionEvent::Begin(_) => {}
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

async fn end(output: &mut SessionOutput) -> Session {
    loop {
        if let SessionEvent::End(session) = next(output).await {
            return *session;
        }
    }
}

#[tokio::test]
async fn a_session_is_found_read_signalled_waited_for_and_removed() {
    let (server, driver, id) = claimed().await;
    let sessions = format!("/instances/{id}/sessions");
    let body =
        json!({ "request": { "command": "build", "cwd": "/home/app", "timeoutSeconds": 600 }, "tag": "my build" });
    let started = server.post(&sessions, body.clone()).await;
    assert_eq!(
        (&started["status"], &started["exit"], &started["tag"]),
        (&json!("running"), &Value::Null, &json!("my build"))
    );
    assert_eq!(
        (&started["cwd"], &started["timeoutSeconds"], &started["stdinOpen"]),
        (&json!("/home/app"), &json!(600), &json!(false))
    );
    let session = started["id"].as_str().unwrap();
    let view = server.get(&format!("/instances/{id}")).await;
    let vm = view["instanceId"].as_str().unwrap().parse().unwrap();
    let command = driver.commands(&vm).pop().unwrap();
    assert_eq!(command.argv.unwrap(), ["bash", "-c", "build"]);
    assert!(command.env_file.is_some());
    for name in [session, "my%20build", &started["pid"].to_string()] {
        assert_eq!(server.get(&format!("{sessions}/{name}")).await["id"], session);
    }
    assert_eq!(server.get(&sessions).await["items"].as_array().unwrap().len(), 1);
    let processes = server.get(&format!("/instances/{id}/processes")).await;
    assert_eq!(processes["items"][0]["session"], session);
    // A taken tag, one that runs, what is not there.
    assert_eq!(refused(&server, Method::POST, &sessions, body).await.0, 409);
    let one = format!("{sessions}/{session}");
    assert_eq!(refused(&server, Method::DELETE, &one, json!({})).await.0, 409);
    let (status, why) = refused(&server, Method::GET, &format!("{sessions}/s-none"), json!({})).await;
    assert!(status == 404 && why.contains("no session"), "{why}");
    let (status, why) = refused(
        &server,
        Method::POST,
        &format!("{one}/signal"),
        json!({ "signal": "NOPE" }),
    )
    .await;
    assert!(status == 422 && why.contains("signal"), "{why}");
    assert_eq!(
        refused(&server, Method::POST, &format!("{one}/stdin"), json!({}))
            .await
            .0,
        409
    );
    // The limit of a wait is no error.
    let waited = server.get(&format!("{one}/wait?timeoutSeconds=0")).await;
    assert_eq!(waited["status"], "running");
    let waiting = tokio::spawn(server.request(Method::GET, &format!("{one}/wait")).send());
    let sent = server
        .post(&format!("{one}/signal"), json!({ "signal": "TERM", "tree": true }))
        .await;
    assert_eq!(sent, json!({ "id": session, "processes": 2 }));
    let waited: Value = waiting.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(
        (
            &waited["status"],
            &waited["exit"]["signal"],
            &waited["exit"]["exitCode"]
        ),
        (&json!("ended"), &json!("SIGTERM"), &Value::Null)
    );
    let output = server
        .request(Method::GET, &format!("{one}/output?follow=true"))
        .send()
        .await
        .unwrap();
    assert_eq!(output.headers()["hearth-dropped-bytes"], "0");
    assert_eq!(output.text().await.unwrap(), "step one\na warning\n");
    let part = server
        .request(Method::GET, &format!("{one}/output?from=5&last=14"))
        .send()
        .await
        .unwrap();
    assert_eq!(part.text().await.unwrap(), "one\na warning\n"[0..].to_owned());
    let events = server
        .request(Method::GET, &format!("{one}/output"))
        .header("accept", "text/event-stream");
    let events = events.send().await.unwrap().text().await.unwrap();
    let names: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["begin", "stdout", "stderr", "end"], "{events}");
    let (status, removed) = server.call(Method::DELETE, &one, json!({})).await;
    assert_eq!(
        (status, removed),
        (StatusCode::OK, json!({ "id": session, "removed": true }))
    );
    assert_eq!(refused(&server, Method::GET, &one, json!({})).await.0, 404);
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_and_an_end_is_a_result() {
    let (server, _driver, id) = claimed().await;
    let sessions = format!("/instances/{id}/sessions");
    let (status, why) = refused(
        &server,
        Method::POST,
        &sessions,
        json!({ "request": { "argv": ["no-such-program"] } }),
    )
    .await;
    assert!(status == 422 && why.contains("was not found"), "{why}");
    for bad in [
        json!({ "request": {} }),
        json!({ "request": { "command": "x", "argv": ["x"] } }),
        json!({ "request": { "command": "x" }, "tag": "123" }),
        json!({ "request": { "command": "x" }, "tag": "s-1" }),
        json!({ "request": { "command": "x" }, "terminal": { "rows": 0, "cols": 1 } }),
        json!({ "request": { "command": "x" }, "readOnly": true, "openStdin": true }),
        json!({ "request": { "command": "x" }, "other": 1 }),
        json!({}),
    ] {
        assert_eq!(
            refused(&server, Method::POST, &sessions, bad.clone()).await.0,
            422,
            "{bad}"
        );
    }
    let quick = server
        .post(&sessions, json!({ "request": { "command": "quick" } }))
        .await;
    let path = format!("{sessions}/{}/wait", quick["id"].as_str().unwrap());
    let ended = server.get(&path).await;
    assert_eq!(ended["exit"]["exitCode"], 3);
    assert!(ended["endedAt"].is_string() && ended["outputBytes"] == 5);
}

#[tokio::test]
async fn several_clients_share_a_terminal_and_leave_it_running() {
    let (server, _driver, id) = claimed().await;
    let body = json!({ "request": { "command": "cat" }, "terminal": { "rows": 24, "cols": 80 }, "tag": "shell" });
    server.post(&format!("/instances/{id}/sessions"), body).await;
    let client = client(&server);
    let attach = async |options| client.attach_session(&id, "shell", options).await.unwrap();
    let (mut first, mut sees_first) = attach(AttachOptions::default()).await;
    let (second, mut sees_second) = attach(AttachOptions::default()).await;
    first.bytes(Bytes::from_static("grüße".as_bytes())).await.unwrap();
    until(&mut sees_first, "grüße").await;
    until(&mut sees_second, "grüße").await;
    first.resize(TerminalSize { rows: 40, cols: 132 }).await.unwrap();
    until(&mut sees_second, "40 x 132").await;
    drop((second, sees_second));
    first.bytes(Bytes::from_static(b"still here")).await.unwrap();
    until(&mut sees_first, "still here").await;
    drop((first, sees_first));
    // A later client continues where it was.
    let options = AttachOptions {
        from: 7,
        ..AttachOptions::default()
    };
    let (mut third, mut sees) = attach(options).await;
    let SessionEvent::Begin(begin) = next(&mut sees).await else {
        panic!("no beginning");
    };
    assert_eq!(
        (begin.position, begin.session.terminal),
        (7, Some(TerminalSize { rows: 40, cols: 132 }))
    );
    until(&mut sees, "40 x 132\r\nstill here").await;
    third.end().await.unwrap();
    let session = end(&mut sees).await;
    assert_eq!(session.exit.unwrap().exit_code, Some(0));
    let now = AttachOptions {
        last: Some(4),
        until: ReadUntil::Now,
        lossless: true,
        ..AttachOptions::default()
    };
    let (_, mut sees) = attach(now).await;
    until(&mut sees, "here").await;
    end(&mut sees).await;
    let request = server.request(Method::GET, &format!("/instances/{id}/sessions/shell/attach"));
    let (status, body) = server.send(request).await;
    assert!(
        status == StatusCode::UNPROCESSABLE_ENTITY && body.to_string().contains("WebSocket"),
        "{body}"
    );
}

#[tokio::test]
async fn input_is_written_and_closed_without_a_websocket() {
    let (server, _driver, id) = claimed().await;
    let sessions = format!("/instances/{id}/sessions");
    let body = json!({ "request": { "command": "cat", "stdin": "first\n" }, "openStdin": true });
    let session = server.post(&sessions, body).await;
    let one = format!("{sessions}/{}", session["id"].as_str().unwrap());
    server.until(SOON, &one, |it| it["outputBytes"] == 6).await;
    let write =
        |query: &str, bytes: &'static [u8]| server.request(Method::POST, &format!("{one}/stdin{query}")).body(bytes);
    let (status, _) = server.send(write("", b"\xff\x00second\n")).await;
    assert_eq!(status, StatusCode::OK);
    let (status, closed) = server.send(write("?close=true", b"")).await;
    assert_eq!((status, &closed["stdinOpen"]), (StatusCode::OK, &json!(false)));
    assert_eq!(server.get(&format!("{one}/wait")).await["exit"]["exitCode"], 0);
    let output = server
        .request(Method::GET, &format!("{one}/output"))
        .send()
        .await
        .unwrap();
    assert_eq!(output.bytes().await.unwrap(), &b"first\n\xff\x00second\n"[..]);
}

#[tokio::test]
async fn a_restarted_server_finds_the_sessions_that_run() {
    let (server, driver, id) = claimed().await;
    let sessions = format!("/instances/{id}/sessions");
    let started = server
        .post(&sessions, json!({ "request": { "command": "build" }, "tag": "b" }))
        .await;
    let (folder, options) = server.stop().await;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    let found = &server.get(&sessions).await["items"][0];
    assert_eq!((&found["id"], &found["status"]), (&started["id"], &json!("running")));
    let output = server
        .request(Method::GET, &format!("{sessions}/b/output"))
        .send()
        .await
        .unwrap();
    assert_eq!(output.text().await.unwrap(), "step one\na warning\n");
}

#[tokio::test]
async fn a_client_is_told_when_the_agent_died_or_the_vm_was_released() {
    let (server, _driver, id) = claimed().await;
    let sessions = format!("/instances/{id}/sessions");
    let client = client(&server);
    server
        .post(&sessions, json!({ "request": { "command": "build" }, "tag": "b" }))
        .await;
    let (_input, mut output) = client.attach_session(&id, "b", AttachOptions::default()).await.unwrap();
    until(&mut output, "a warning").await;
    server
        .post(&format!("/instances/{id}/exec"), json!({ "command": "kill -9 -1" }))
        .await;
    let error = tokio::time::timeout(SOON, output.next()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("its sessions are gone"), "{error}");
    assert_eq!(server.get(&sessions).await["items"], json!([]));
    server
        .post(&sessions, json!({ "request": { "command": "build" }, "tag": "b" }))
        .await;
    let (_input, mut output) = client.attach_session(&id, "b", AttachOptions::default()).await.unwrap();
    until(&mut output, "a warning").await;
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let error = tokio::time::timeout(SOON, output.next()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("VM was removed"), "{error}");
    assert!([404, 410].contains(&refused(&server, Method::GET, &sessions, json!({})).await.0));
}

#[tokio::test]
async fn a_session_is_its_claims_owners() {
    let (server, _driver, id) = claimed().await;
    let sessions = format!("/instances/{id}/sessions");
    server
        .post(&sessions, json!({ "request": { "command": "build" }, "tag": "b" }))
        .await;
    let other = server
        .post("/tokens", json!({ "name": "agent", "scopes": ["claim"] }))
        .await;
    let other = other["token"].as_str().unwrap();
    let http = reqwest::Client::new();
    for (method, path) in [
        (Method::GET, ""),
        (Method::GET, "/b"),
        (Method::GET, "/b/output"),
        (Method::GET, "/b/wait"),
        (Method::DELETE, "/b"),
    ] {
        let url = format!("http://{}/api/v1{sessions}{path}", server.address);
        let status = http
            .request(method, url)
            .bearer_auth(other)
            .send()
            .await
            .unwrap()
            .status();
        assert!([403, 404].contains(&status.as_u16()), "{path}: {status}");
    }
}

#[tokio::test]
async fn terminals_of_the_settings_file_run_in_a_claimed_vm() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let settings = r#"{"hooks":{"terminals":[{"name":"dev","command":"npm run dev"},{"name":"8080","command":"tail","readonly":true}]}}"#;
    let url = git_repo(server.folder.path(), "app", &[(".hearth/settings.json", settings)]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(SOON, &project, 1).await;
    let listed = server.get(&format!("{pool}/instances")).await;
    let vm = listed["items"][0]["instanceId"].as_str().unwrap().parse().unwrap();
    let of_pool = driver.commands(&vm).len();
    let claim = server.post(&format!("{pool}/claim"), json!({ "taskId": "T" })).await;
    let sessions = format!("/instances/{}/sessions", claim["id"].as_str().unwrap());
    let found = server
        .until(SOON, &sessions, |it| it["items"].as_array().unwrap().len() == 2)
        .await;
    // None of them ran before.
    assert_eq!(driver.commands(&vm).len(), of_pool + 2);
    let (dev, tail) = (&found["items"][0], &found["items"][1]);
    assert_eq!(
        (&dev["tag"], &dev["cwd"], &dev["stdinOpen"]),
        (&json!("dev"), &json!("/home/app"), &json!(true))
    );
    assert_eq!(dev["argv"], json!(["bash", "-c", "npm run dev"]));
    assert_eq!(
        (&tail["tag"], &tail["stdinOpen"]),
        (&json!("terminal 8080"), &json!(false))
    );
    assert_eq!(dev["terminal"], json!({ "rows": 24, "cols": 80 }));
    // A repeated claim starts them no second time.
    server.post(&format!("{pool}/claim"), json!({ "taskId": "T" })).await;
    server
        .post(
            &format!("/instances/{}/exec", claim["id"].as_str().unwrap()),
            json!({ "command": "true" }),
        )
        .await;
    assert_eq!(server.get(&sessions).await["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_session_releases_its_vm_when_it_ends_also_after_a_restart_of_the_server() {
    let (server, driver, id) = claimed().await;
    let path = format!("/instances/{id}/sessions");
    let start = |command: &str, tag: Value| json!({ "request": { "argv": ["bash", "-c", command] }, "tag": tag, "releaseWhenEnded": true });
    let (status, _) = refused(&server, Method::POST, &path, start("build", Value::Null)).await;
    assert_eq!(status, 422);
    // One that cannot be started releases nothing, and another one can.
    let (status, _) = refused(&server, Method::POST, &path, start("no-such-program", json!("worker"))).await;
    assert_eq!(status, 422);
    let worker = server.post(&path, start("build", json!("worker"))).await;
    let (status, message) = refused(&server, Method::POST, &path, start("build", json!("other"))).await;
    assert_eq!(status, 409, "{message}");
    assert!(message.contains("`worker` releases this VM already"), "{message}");
    let (status, message) = refused(&server, Method::POST, &path, start("build", json!("worker"))).await;
    assert_eq!(status, 409, "{message}");

    let (folder, options) = server.stop().await;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    let claims = server.get("/claims").await;
    assert_eq!(claims["items"].as_array().unwrap().len(), 1, "{claims}");
    let signal = format!("{path}/{}/signal", worker["id"].as_str().unwrap());
    server.post(&signal, json!({ "signal": "KILL", "tree": true })).await;
    server
        .until(SOON, "/claims", |claims| claims["items"] == json!([]))
        .await;
    let events = server
        .request(Method::GET, "/events?follow=false&last=50")
        .send()
        .await
        .unwrap();
    let events = events.text().await.unwrap();
    assert!(
        events.contains("the session that releases it ended by signal 9"),
        "{events}"
    );
}

#[tokio::test]
async fn a_vm_that_ends_is_released_with_the_session_that_was_to_do_it() {
    let (server, _, id) = claimed().await;
    let path = format!("/instances/{id}/sessions");
    let body = json!({ "request": { "argv": ["bash", "-c", "build"] }, "tag": "worker", "releaseWhenEnded": true });
    server.post(&path, body).await;
    // With its agent its sessions are gone.
    let died = server
        .post(&format!("/instances/{id}/exec"), json!({ "command": "kill -9 -1" }))
        .await;
    assert!(died["error"].is_string(), "{died}");
    server
        .until(SOON, "/claims", |claims| claims["items"] == json!([]))
        .await;
}
