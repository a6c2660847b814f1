//! Commands in a VM through the public API: however one ends, the answer says so, and nothing that was printed is lost.

use std::time::Duration;

use bytes::Bytes;
use hearth_api::client::{Client, ClientError, ExecEvent};
use hearth_api::exec::{ExecRequest, ExecStart};
use hearth_api::ids::InstanceId;
use hearth_drivers::fake::{ExecRule, FakeOptions, Special, Verb};
use hearth_guest::{EXIT_NOT_FOUND, ExecEnd};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server};

/// A claimed VM whose commands do what these rules say, and the path of its commands.
async fn claimed(rules: Vec<ExecRule>) -> (Server, String) {
    let (server, _) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let path = format!("/instances/{}/exec", claim["id"].as_str().unwrap());
    (server, path)
}

/// The same command by the event stream: all of it as text.
async fn streamed(server: &Server, path: &str, body: &Value) -> String {
    let request = server.request(Method::POST, path).json(body);
    let reply = request.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    reply.text().await.unwrap()
}

#[tokio::test]
async fn a_command_whose_time_is_up_is_answered_with_all_it_had_printed() {
    let slow = ExecRule {
        takes: Duration::from_secs(60),
        stderr: "so far\n".into(),
        ..ExecRule::prints("slow", "half\n")
    };
    let (server, path) = claimed(vec![slow]).await;
    let body = json!({ "command": "slow", "timeoutSeconds": 1 });
    let (status, reply) = server.call(Method::POST, &path, body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(
        [&reply["stdout"], &reply["stderr"], &reply["timedOut"], &reply["signal"]],
        [&json!("half\n"), &json!("so far\n"), &json!(true), &json!("SIGTERM")]
    );
    assert_eq!(
        reply["error"],
        "the command's time was up after 1 s: it was ended with everything it had started"
    );
    let text = streamed(&server, &path, &body).await;
    assert!(
        text.contains("event: stdout\ndata: aGFsZgo=\n") && text.contains("\"timedOut\":true"),
        "{text}"
    );
}

#[tokio::test]
async fn what_cannot_start_has_the_exit_code_of_a_shell_and_a_sentence() {
    let missing = Special::End(ExecEnd::NotStarted {
        reason: "the program nix was not found".into(),
        code: Some(EXIT_NOT_FOUND),
    });
    let (server, path) = claimed(vec![ExecRule::does("nix", missing)]).await;
    let body = json!({ "argv": ["nix"] });
    let (status, reply) = server.call(Method::POST, &path, body.clone()).await;
    assert_eq!(
        (status, &reply["exitCode"], &reply["error"]),
        (StatusCode::OK, &json!(127), &json!("the program nix was not found"))
    );
    let text = streamed(&server, &path, &body).await;
    assert!(text.contains("{\"exitCode\":127,\"signal\":null"), "{text}");
}

#[tokio::test]
async fn bytes_that_are_no_text_are_said_to_be_and_come_exactly() {
    let (server, path) = claimed(vec![
        ExecRule::does("bytes", Special::Bytes(vec![0, 0xff, b'x'])),
        ExecRule::prints("text", "grüße\n"),
    ])
    .await;
    let reply = server.post(&path, json!({ "command": "bytes" })).await;
    assert_eq!(
        (&reply["stdout"], &reply["stdoutBase64"], &reply["stderrBase64"]),
        (&json!("\0\u{fffd}x"), &json!("AP94"), &json!(null))
    );
    let reply = server.post(&path, json!({ "command": "text" })).await;
    assert_eq!(
        (&reply["stdout"], &reply["stdoutBase64"]),
        (&json!("grüße\n"), &json!(null))
    );
}

#[tokio::test]
async fn an_agent_that_dies_under_a_command_is_said_to_have_died() {
    let dies = ExecRule {
        takes: Duration::from_millis(50),
        ..ExecRule::does("kill -9 -1", Special::AgentDies)
    };
    let (server, path) = claimed(vec![dies, ExecRule::prints("after", "well\n")]).await;
    let body = json!({ "command": "kill -9 -1" });
    let (status, reply) = server.call(Method::POST, &path, body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!((&reply["exitCode"], &reply["signal"]), (&json!(null), &json!(null)));
    let said = reply["error"].as_str().unwrap();
    assert!(
        said.starts_with("the agent in the VM died while the command ran") && said.contains("is not known"),
        "{said}"
    );
    let text = streamed(&server, &path, &body).await;
    assert!(text.contains("the agent in the VM died"), "{text}");
    // The VM keeps running.
    let reply = server.post(&path, json!({ "command": "after" })).await;
    assert_eq!(reply["stdout"], "well\n");
}

#[tokio::test]
async fn a_command_that_was_killed_for_memory_says_so() {
    let killed = Special::End(ExecEnd::Exited {
        code: None,
        signal: Some(9),
        duration_ms: 5,
        log: None,
        out_of_memory: Some("python3 (process 12, which used 900 MiB)".into()),
    });
    let (server, path) = claimed(vec![ExecRule::does("eat", killed)]).await;
    let reply = server.post(&path, json!({ "command": "eat" })).await;
    assert_eq!(
        (&reply["signal"], &reply["oomKilled"]),
        (&json!("SIGKILL"), &json!(true))
    );
    let said = reply["error"].as_str().unwrap();
    assert!(
        said.contains("no memory left") && said.contains("killed python3 (process 12"),
        "{said}"
    );
}

#[tokio::test]
async fn what_a_command_left_running_prints_can_be_read() {
    let leaves = ExecRule::does("server &", Special::Leaves("GET / 200\n".into()));
    let (server, path) = claimed(vec![leaves]).await;
    let instance = path.strip_suffix("/exec").unwrap();
    assert_eq!(server.get(&format!("{instance}/logs")).await["items"], json!([]));
    assert_eq!(
        server.post(&path, json!({ "command": "true" })).await["log"],
        json!(null)
    );
    let reply = server.post(&path, json!({ "command": "server &" })).await;
    assert_eq!(reply["log"], "exec-1", "{reply}");
    let logs = server.get(&format!("{instance}/logs")).await;
    assert_eq!(
        logs["items"],
        json!([{
            "name": "exec-1", "kind": "exec", "command": "server &", "bytes": 10, "droppedBytes": 0, "open": true,
            "updatedAt": "1970-01-01T00:00:00.000Z"
        }])
    );
    let text = server
        .request(Method::GET, &format!("{instance}/logs/exec-1"))
        .send()
        .await
        .unwrap();
    assert_eq!(text.headers()["content-type"], "application/octet-stream");
    assert_eq!(text.text().await.unwrap(), "GET / 200\n");
    for missing in ["exec-2", "..%2Fx"] {
        let (status, body) = server
            .send(server.request(Method::GET, &format!("{instance}/logs/{missing}")))
            .await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    }
    // A token that may not run commands in it may not read it.
    let token = server
        .post("/tokens", json!({ "name": "agent", "scopes": ["claim"] }))
        .await;
    let url = format!("http://{}/api/v1{instance}/logs", server.address);
    let foreign = reqwest::Client::new()
        .get(url)
        .bearer_auth(token["token"].as_str().unwrap());
    assert_eq!(server.send(foreign).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn input_is_streamed_both_ways_at_once_and_ends_when_it_is_ended() {
    let (server, path) = claimed(vec![
        ExecRule::does("cat", Special::Echo),
        ExecRule::prints("greet", "hello\n"),
    ])
    .await;
    let id: InstanceId = path.split('/').nth(2).unwrap().parse().unwrap();
    let client = Client::new(&format!("http://{}", server.address), &server.token).unwrap();
    let start = |words: &[&str]| ExecStart {
        request: ExecRequest {
            argv: Some(words.iter().map(|word| word.parse().unwrap()).collect()),
            stdin: Some("first ".into()),
            ..ExecRequest::default()
        },
        terminal: None,
    };
    let (mut input, mut output) = client.exec_attached(&id, &start(&["cat"])).await.unwrap();
    let mut next = async || tokio::time::timeout(SOON, output.next()).await.unwrap().unwrap();
    assert_eq!(next().await, ExecEvent::Stdout(Bytes::from_static(b"first ")));
    for chunk in [&b"a\0\xff"[..], b"second"] {
        input.bytes(Bytes::copy_from_slice(chunk)).await.unwrap();
        assert_eq!(next().await, ExecEvent::Stdout(Bytes::copy_from_slice(chunk)));
    }
    input.end().await.unwrap();
    let ExecEvent::Exit(exit) = next().await else {
        panic!("more after the end of the input");
    };
    assert_eq!((exit.exit_code, exit.error), (Some(0), None));
    // One that reads nothing ends on its own.
    let (_input, mut output) = client.exec_attached(&id, &start(&["greet"])).await.unwrap();
    assert_eq!(
        output.next().await.unwrap(),
        ExecEvent::Stdout(Bytes::from_static(b"hello\n"))
    );
    assert!(matches!(output.next().await.unwrap(), ExecEvent::Exit(_)));
    // What cannot be run is refused as in a body.
    let (_input, mut output) = client.exec_attached(&id, &start(&[])).await.unwrap();
    match output.next().await {
        Err(ClientError::Api {
            status: 422, details, ..
        }) => assert!(!details.is_empty()),
        other => panic!("{other:?}"),
    }
    let (status, body) = server.send(server.request(Method::GET, &path)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        body["error"]["message"].as_str().unwrap().contains("WebSocket"),
        "{body}"
    );
}

#[tokio::test]
async fn input_that_a_command_does_not_read_is_held_back() {
    let stuck = ExecRule {
        takes: Duration::from_secs(600),
        ..ExecRule::prints("stuck", "")
    };
    let (server, path) = claimed(vec![stuck]).await;
    let id: InstanceId = path.split('/').nth(2).unwrap().parse().unwrap();
    let client = Client::new(&format!("http://{}", server.address), &server.token).unwrap();
    let start = ExecStart {
        request: ExecRequest {
            command: Some("stuck".parse().unwrap()),
            ..ExecRequest::default()
        },
        terminal: None,
    };
    let (mut input, _output) = client.exec_attached(&id, &start).await.unwrap();
    let chunk = Bytes::from(vec![0; 64 * 1024]);
    let mut sent = 0;
    // Far less than what one would send who is never held back.
    while let Ok(done) = tokio::time::timeout(Duration::from_secs(2), input.bytes(chunk.clone())).await {
        done.unwrap();
        sent += chunk.len();
        assert!(sent < 256 * 1024 * 1024, "nothing holds it back");
    }
}

#[tokio::test]
async fn command_that_leaves_its_input_unread_is_answered_in_every_form() {
    let head = ExecRule {
        code: 7,
        ..ExecRule::prints("head", "abc")
    };
    let (server, path) = claimed(vec![head]).await;
    let id: InstanceId = path.split('/').nth(2).unwrap().parse().unwrap();
    let client = Client::new(&format!("http://{}", server.address), &server.token).unwrap();
    let attached = async |words: &[&str]| {
        let start = ExecStart {
            request: ExecRequest {
                argv: Some(words.iter().map(|word| word.parse().unwrap()).collect()),
                ..ExecRequest::default()
            },
            terminal: None,
        };
        let (mut input, mut output) = client.exec_attached(&id, &start).await.unwrap();
        let chunk = Bytes::from(vec![b'y'; 64 * 1024]);
        // It never stops by itself.
        let sending = async {
            while input.bytes(chunk.clone()).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let last = async {
            loop {
                match output.next().await {
                    Ok(ExecEvent::Exit(exit)) => return Ok(exit.exit_code),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::select! {
            () = sending => panic!("it never ends"),
            last = last => last,
        }
    };
    let body = json!({ "command": "head", "stdin": "y".repeat(1024 * 1024) });
    for round in 0..20 {
        let (status, reply) = server.call(Method::POST, &path, body.clone()).await;
        assert_eq!(
            (status, &reply["stdout"], &reply["exitCode"]),
            (StatusCode::OK, &json!("abc"), &json!(7)),
            "round {round}"
        );
        let text = streamed(&server, &path, &body).await;
        assert!(text.contains("{\"exitCode\":7,"), "round {round}: {text}");
        assert_eq!(attached(&["head"]).await.unwrap(), Some(7), "round {round}");
        match attached(&[]).await {
            Err(ClientError::Api { status: 422, .. }) => {}
            other => panic!("round {round}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_command_that_its_agent_does_not_end_is_answered_by_the_host() {
    let (server, driver) = Server::fake(FakeOptions {
        rules: vec![ExecRule {
            stdout: "half\n".into(),
            ..ExecRule::does("bomb", Special::NeverEnds)
        }],
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let path = format!("/instances/{}/exec", claim["id"].as_str().unwrap());
    let body = json!({ "command": "bomb", "timeoutSeconds": 1 });
    let began = tokio::time::Instant::now();
    let (json_form, text) = tokio::join!(
        server.call(Method::POST, &path, body.clone()),
        streamed(&server, &path, &body)
    );
    let (status, reply) = json_form;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(
        [
            &reply["stdout"],
            &reply["timedOut"],
            &reply["exitCode"],
            &reply["signal"]
        ],
        [&json!("half\n"), &json!(true), &json!(null), &json!(null)]
    );
    let said = reply["error"].as_str().unwrap();
    assert!(
        said.starts_with("the command's time was up after 1 s; the agent in the VM is asked to end it")
            && said.contains("has not confirmed"),
        "{said}"
    );
    assert!(
        text.contains("event: stdout\ndata: aGFsZgo=\n")
            && text.contains("\"timedOut\":true")
            && text.contains("has not confirmed"),
        "{text}"
    );
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // One that does not even take the command.
    let vm = claim["instanceId"].as_str().unwrap().parse().unwrap();
    assert!(driver.hang(&vm, true));
    let (status, reply) = server.call(Method::POST, &path, body).await;
    assert_eq!(
        (status, &reply["timedOut"], &reply["stdout"]),
        (StatusCode::OK, &json!(true), &json!("")),
        "{reply}"
    );
    assert!(driver.hang(&vm, false));
    server.post(&path, json!({ "command": "true" })).await;
}

#[tokio::test]
async fn a_command_over_a_living_connection_asks_the_host_nothing() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let path = format!("/instances/{}/exec", claim["id"].as_str().unwrap());
    let run = async || assert_eq!(server.post(&path, json!({ "argv": ["true"] })).await["exitCode"], 0);
    run().await;
    // The VM that takes its place is connected to, too.
    server.until_full(SOON, &project, 1).await;
    let asked = || (driver.calls(Verb::Inspect), driver.calls(Verb::Connect));
    let before = asked();
    for _ in 0..20 {
        run().await;
    }
    assert_eq!(asked(), before);
}

#[tokio::test]
async fn a_vm_that_is_being_made_is_said_to_be_in_a_header_and_no_other_is() {
    let (server, driver) = Server::fake(FakeOptions {
        rules: vec![ExecRule {
            takes: Duration::from_secs(600),
            ..ExecRule::prints("long", "")
        }],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(crate::harness::bare_project()).await;
    let commands = json!({ "setupCommands": [{ "name": "l", "command": "long" }] });
    let begun = server.post(&format!("{project}/warm-pool/test"), commands).await;
    let detail = format!("{project}/warm-pool/instances/{}", begun["id"].as_str().unwrap());
    let vm = server.get(&detail).await["instanceId"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while !driver
        .commands(&vm)
        .iter()
        .any(|spec| spec.shell.as_deref() == Some("long"))
    {
        assert!(tokio::time::Instant::now() < deadline);
        crate::harness::pause().await;
    }
    let header = async |server: &Server, id: &Value| {
        let path = format!("/instances/{}/exec", id.as_str().unwrap());
        let request = server.request(Method::POST, &path).json(&json!({ "argv": ["true"] }));
        let reply = request.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        reply.headers().contains_key("hearth-unfinished")
    };
    assert!(header(&server, &begun["id"]).await);
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    assert!(!header(&server, &claim["id"]).await);
}
