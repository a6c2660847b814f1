//! Raw connections to ports of VMs, and SSH, over the public WebSocket with the typed client.

use std::time::Duration;

use bytes::Bytes;
use hearth_api::client::{Client, ClientError};
use hearth_api::error::ErrorCode;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::harness::SOON;
use crate::ports::Work;

#[tokio::test]
async fn raw_connection_carries_both_directions_and_their_ends() {
    let work = Work::begin().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    work.driver.listen(5432, listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                connection.read_to_end(&mut all).await.unwrap();
                all.reverse();
                connection.write_all(&all).await.unwrap();
            });
        }
    });
    let client = work.client();
    let sent: Vec<u8> = (0..2_000_000_u32).map(|at| (at % 253) as u8).collect();
    let (mut sender, mut receiver) = client.tunnel(&work.id, 5432).await.unwrap();
    for chunk in sent.chunks(60_000) {
        sender.bytes(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    sender.end().await.unwrap();
    let mut back = Vec::new();
    while let Some(bytes) = timeout(SOON, receiver.next()).await.unwrap().unwrap() {
        back.extend(bytes);
    }
    back.reverse();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    // Closed in order: nothing more comes, and that is soon.
    let after = timeout(Duration::from_secs(5), receiver.next()).await.unwrap();
    assert!(after.is_err());

    let Err(error) = client.tunnel(&work.id, 5433).await else {
        panic!("nothing listens there")
    };
    assert_eq!(error.code(), Some(ErrorCode::BadGateway));
    assert!(error.to_string().contains("5432 (fake)"), "{error}");
}

#[tokio::test]
async fn released_vm_ends_its_raw_connections_with_a_sentence() {
    let work = Work::begin().await;
    let client = work.client();
    let (_sender, mut receiver) = client.tunnel(&work.id, 3000).await.unwrap();
    work.server
        .post(&format!("/instances/{}/release", work.id), json!({}))
        .await;
    let end = timeout(SOON, receiver.next()).await.unwrap();
    let Err(ClientError::Interrupted { reason, .. }) = end else {
        panic!("{end:?}")
    };
    assert!(reason.starts_with("the connection to the VM broke off"), "{reason}");
}

#[tokio::test]
async fn ssh_connection_is_a_raw_connection_for_whom_the_key_was_shown() {
    let work = Work::begin().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    work.driver.listen(22, listener.local_addr().unwrap());
    let client = work.client();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    let allowed = client.allow_ssh(&work.id, key).await.unwrap();
    assert_eq!(allowed.host_keys, ["ssh-ed25519 AAAAfake"]);
    let (mut sender, mut receiver) = client.ssh(&work.id).await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    connection.write_all(b"SSH-2.0-server\r\n").await.unwrap();
    assert_eq!(receiver.next().await.unwrap().unwrap(), "SSH-2.0-server\r\n");
    sender.bytes(Bytes::from_static(b"SSH-2.0-client\r\n")).await.unwrap();
    let mut said = [0; 16];
    timeout(SOON, connection.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"SSH-2.0-client\r\n");

    let (keys, ssh) = (
        format!("/instances/{}/ssh/keys", work.id),
        format!("/instances/{}/ssh", work.id),
    );
    let (status, body) = work.server.send(work.server.request(Method::GET, &ssh)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let (status, body) = work.server.call(Method::POST, &keys, json!({ "publicKey": "" })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let created = work
        .server
        .post("/tokens", json!({ "name": "other", "scopes": ["claim"] }))
        .await;
    let stranger = Client::new(
        &format!("http://{}", work.server.address),
        created["token"].as_str().unwrap(),
    )
    .unwrap();
    let refused = stranger.allow_ssh(&work.id, key).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::NotFound));
}
