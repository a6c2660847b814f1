//! Terminals over the public WebSocket, with the typed client. The fake agent shows what is typed and how large the terminal is.

use bytes::Bytes;
use hearth_api::client::{Client, ClientError, Screen, Shown, TerminalRequest};
use hearth_api::ids::InstanceId;
use hearth_api::terminal::TerminalSize;
use hearth_drivers::fake::FakeOptions;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{SOON, Server};

fn client(server: &Server) -> Client {
    Client::new(&format!("http://{}", server.address), &server.token).unwrap()
}

async fn claimed(server: &Server) -> InstanceId {
    let (_, pool) = server.full_pool(1).await;
    let reply = server.post(&format!("{pool}/claim"), json!({})).await;
    reply["id"].as_str().unwrap().parse().unwrap()
}

/// Looks until this is shown.
async fn sees(screen: &mut Screen, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match tokio::time::timeout(SOON, screen.next()).await.unwrap().unwrap() {
            Shown::Bytes(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Shown::Exit(exit) => panic!("{exit:?} after {seen:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_typed_is_shown_and_the_end_is_told() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let id = claimed(&server).await;
    let wanted = TerminalRequest {
        size: TerminalSize { rows: 40, cols: 132 },
        term: Some("vt100".into()),
        user: Some("dev".into()),
        cwd: Some("/home/app".into()),
    };
    let (mut typing, mut screen) = client(&server).terminal(&id, &wanted).await.unwrap();
    sees(&mut screen, "40 x 132").await;
    typing.bytes(Bytes::from_static("grüße".as_bytes())).await.unwrap();
    sees(&mut screen, "grüße").await;
    typing.resize(TerminalSize { rows: 10, cols: 20 }).await.unwrap();
    sees(&mut screen, "10 x 20").await;
    // No terminal is that large: the last size stays.
    typing.resize(TerminalSize { rows: 0, cols: 9999 }).await.unwrap();
    typing.bytes(Bytes::from_static(b"exit\r")).await.unwrap();
    sees(&mut screen, "exit").await;
    let Shown::Exit(exit) = screen.next().await.unwrap() else {
        panic!("more after the end");
    };
    assert_eq!((exit.exit_code, exit.error), (Some(0), None));
    let view = server.get(&format!("/instances/{id}")).await;
    let vm = view["instanceId"].as_str().unwrap().parse().unwrap();
    let command = driver.commands(&vm).pop().unwrap();
    assert_eq!(command.argv.unwrap(), ["bash", "-l"]);
    assert_eq!(
        (command.user.as_deref(), command.cwd.as_deref()),
        (Some("dev"), Some("/home/app"))
    );
    assert!(command.env.contains(&("TERM".into(), "vt100".into())) && command.env_file.is_some());
}

#[tokio::test]
async fn a_vm_of_the_pool_goes_on_for_as_long_as_the_terminal_lasts() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let all = server.get(&format!("{pool}/instances")).await;
    let ready = &all["items"][0];
    let id = ready["id"].as_str().unwrap().parse().unwrap();
    let (typing, mut screen) = client(&server)
        .terminal(&id, &TerminalRequest::default())
        .await
        .unwrap();
    sees(&mut screen, "24 x 80").await;
    drop((typing, screen));
    // It is paused again and can be claimed.
    server.until_full(SOON, &project, 1).await;
    let reply = server.post(&format!("{pool}/claim"), json!({})).await;
    assert_eq!(reply["id"], ready["id"]);
    drop(driver);
}

#[tokio::test]
async fn a_released_vm_ends_its_terminals_with_a_sentence() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let id = claimed(&server).await;
    let (_typing, mut screen) = client(&server)
        .terminal(&id, &TerminalRequest::default())
        .await
        .unwrap();
    sees(&mut screen, "24 x 80").await;
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let last = tokio::time::timeout(SOON, screen.next()).await.unwrap().unwrap();
    let Shown::Exit(exit) = last else { panic!("{last:?}") };
    let reason = exit.error.unwrap();
    assert!(reason.contains("the VM was removed"), "{reason}");
}

#[tokio::test]
async fn what_cannot_be_a_terminal_is_refused_in_the_documented_shape() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let id = claimed(&server).await;
    let path = format!("/instances/{id}/terminal");
    let (status, body) = server.send(server.request(Method::GET, &path)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        body["error"]["message"].as_str().unwrap().contains("WebSocket"),
        "{body}"
    );
    let (status, body) = server
        .send(server.request(Method::GET, &format!("{path}?rows=0&term=a%20b")))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body["error"]["details"].as_array().unwrap().len(), 2, "{body}");
    let refused = |wanted| {
        let client = client(&server);
        async move {
            match client.terminal(&wanted, &TerminalRequest::default()).await {
                Err(ClientError::Api { status, message, .. }) => (status, message),
                other => panic!("{other:?}"),
            }
        }
    };
    let unknown: InstanceId = "wpi_00000000000000000000000000000000".parse().unwrap();
    assert_eq!(refused(unknown).await.0, 404);
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let (status, message) = refused(id).await;
    assert!(matches!(status, 404 | 410), "{message}");
    let nobody = Client::new(&format!("http://{}", server.address), "").unwrap();
    let error = nobody
        .terminal(&"wpi_1".parse().unwrap(), &TerminalRequest::default())
        .await;
    assert!(matches!(error, Err(ClientError::Api { status: 401, .. })), "{error:?}");
}
