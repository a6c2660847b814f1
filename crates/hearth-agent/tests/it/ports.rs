//! Connections to TCP ports through the agent, and the list of what listens.

use std::net::Ipv4Addr;

use hearth_guest::client::{AgentError, NOTHING_LISTENS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::*;

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn each_direction_carries_every_byte_and_ends_on_its_own() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (listener, port) = listener().await;
    let server = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        // To the end of what the host sends, and only then an answer.
        connection.read_to_end(&mut all).await.unwrap();
        connection.write_all(&all).await.unwrap();
        connection.shutdown().await.unwrap();
    });
    let mut stream = client.port_stream(port).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut back)).await.unwrap().unwrap();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    server.await.unwrap();
}

#[tokio::test]
async fn server_that_ends_first_still_gets_what_follows() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (listener, port) = listener().await;
    let mut stream = client.port_stream(port).await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    connection.write_all(b"bye").await.unwrap();
    connection.shutdown().await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "bye");
    stream.write_all(b"more").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut more = String::new();
    timeout(DEADLINE, connection.read_to_string(&mut more))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(more, "more");
}

#[tokio::test]
async fn dropped_stream_closes_the_connection_though_the_server_does_not_read() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (listener, port) = listener().await;
    let mut stream = client.port_stream(port).await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    // More than all buffers on the way hold: the agent is in the middle of a write.
    let endless = async {
        loop {
            stream.write_all(&[7; 64 * 1024]).await.unwrap();
        }
    };
    assert!(
        timeout(std::time::Duration::from_secs(2), endless).await.is_err(),
        "it is held back"
    );
    drop(stream);
    let drained = async {
        let mut buffer = vec![0; 1024 * 1024];
        while connection.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    timeout(DEADLINE, drained).await.unwrap();
}

#[tokio::test]
async fn port_without_a_listener_is_named() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (listener, port) = listener().await;
    drop(listener);
    let error = client.port_stream(port).await.unwrap_err();
    let AgentError::Refused { status, message, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(status, NOTHING_LISTENS);
    assert_eq!(message, format!("nothing listens on port {port} in the VM"));
}

#[tokio::test]
async fn server_on_another_address_of_the_machine_is_found() {
    let agent = Agent::start();
    let client = agent.client().await;
    // Every address of 127/8 is the machine's own; only this one is listened on.
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let found = client.listening_ports().await.unwrap();
    assert!(found.iter().any(|one| one.port == port && one.address == "127.0.0.9"));
    // Of loopback addresses only the usual ones are tried: what hides on another one means to.
    assert!(client.port_stream(port).await.is_err());
}

#[tokio::test]
async fn server_on_ipv6_alone_is_reached() {
    let agent = Agent::start();
    let client = agent.client().await;
    // A machine without IPv6 has nothing to show here.
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let mut stream = client.port_stream(port).await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    stream.write_all(b"six").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "six");
}

#[tokio::test]
async fn many_connections_at_once_do_not_wait_for_each_other() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = connection.split();
                drop(tokio::io::copy(&mut reader, &mut writer).await);
            });
        }
    });
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(client.port_stream(port).await.unwrap());
    }
    // The last one first: none is in the way of another.
    for (number, stream) in streams.iter_mut().enumerate().rev() {
        let said = format!("connection {number}");
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut back = vec![0; said.len()];
        timeout(DEADLINE, stream.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(back, said.as_bytes());
    }
}

#[tokio::test]
async fn listening_ports_are_listed_with_their_process() {
    let agent = Agent::start();
    let client = agent.client().await;
    let (listener, port) = listener().await;
    let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let found = client.listening_ports().await.unwrap();
    let ours: Vec<_> = found.iter().filter(|one| one.port == port).collect();
    let [ours] = ours[..] else { panic!("{found:?}") };
    assert_eq!(ours.address, "127.0.0.1");
    assert_eq!(ours.process_id, Some(std::process::id()));
    assert!(
        ours.command.as_deref().is_some_and(|command| command.contains("it-")),
        "{ours:?}"
    );
    assert!(ours.user.is_some() && ours.process.is_some());
    let local = connected.local_addr().unwrap().port();
    assert!(
        found.iter().all(|one| one.port != local),
        "a connection is not a listener"
    );
    drop(listener);
    let found = client.listening_ports().await.unwrap();
    assert!(found.iter().all(|one| one.port != port));
}
