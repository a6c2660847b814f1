//! Hosts that vanish, come back and talk nonsense. One connection of the socket stands for a whole virtio-serial port.

use std::time::Duration;

use hearth_guest::client::{AgentClient, Upload};
use hearth_guest::session::SessionId;
use hearth_guest::session::codec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::*;

/// Connects one host after the other to the same port, as QEMU does.
struct PortOfVm {
    stream: Option<UnixStream>,
}

impl PortOfVm {
    async fn new(agent: &Agent) -> Self {
        Self {
            stream: Some(agent.stream().await),
        }
    }

    /// A host's end, and the task that carries its bytes until it is dropped.
    fn plug_in(&mut self) -> (DuplexStream, JoinHandle<UnixStream>) {
        let (host, mut far) = duplex(10_000);
        let mut stream = self.stream.take().unwrap();
        let carrying = tokio::spawn(async move {
            let (mut incoming, mut outgoing) = (vec![0; 3000], vec![0; 3000]);
            loop {
                tokio::select! {
                    read = far.read(&mut outgoing) => match read {
                        // The host is gone; the port stays.
                        Ok(0) | Err(_) => return stream,
                        Ok(read) => stream.write_all(&outgoing[..read]).await.unwrap(),
                    },
                    read = stream.read(&mut incoming) => {
                        let read = read.unwrap();
                        assert!(read > 0, "the agent closed the port");
                        // Lost when the host does not listen any more.
                        drop(far.write_all(&incoming[..read]).await);
                    }
                }
            }
        });
        (host, carrying)
    }
}

#[tokio::test]
async fn a_new_host_in_the_middle_of_a_command_ends_it() {
    let agent = Agent::start();
    let mut port = PortOfVm::new(&agent).await;
    for round in 0..5 {
        let (host, carrying) = port.plug_in();
        let client = AgentClient::connect(host, Instant::now() + DEADLINE).await.unwrap();
        let file = agent.path(&format!("pid-{round}"));
        let command = format!(
            "(setsid sh -c 'echo $$ > {}; exec sleep 1000' &); exec yes",
            file.display()
        );
        let stream = client.exec(&shell(&command), vec![1; 1 << 20]).await.unwrap();
        let pid = pid_in(&file).await;
        // Cut hard: the carrier stops wherever it is, no farewell passes.
        carrying.abort();
        drop(carrying.await);
        drop((stream, client));
        // The abort dropped the stream too; a fresh connection is a fresh port.
        is_gone(pid).await;
        port = PortOfVm::new(&agent).await;
    }
}

/// The same, but the port survives, and the agent sees nothing but bytes.
#[tokio::test]
async fn a_new_host_on_the_same_port_ends_the_old_ones_commands() {
    let agent = Agent::start();
    let mut stream = agent.stream().await;
    for round in 0..8usize {
        // An old host: opens a session, starts HTTP/2 in it, is cut off in the middle of a frame.
        let (mut far, near) = duplex(1 << 20);
        let connecting = tokio::spawn(AgentClient::connect(near, Instant::now() + DEADLINE));
        let client = relay_until(&mut far, &mut stream, connecting).await.unwrap().unwrap();
        let file = agent.path(&format!("pid-{round}"));
        let spec = shell(&format!("echo $$ > {}; sleep 1000", file.display()));
        let starting = tokio::spawn(async move { (client.exec(&spec, Upload::empty()).await.unwrap(), client) });
        let (running, client) = relay_until(&mut far, &mut stream, starting).await.unwrap();
        let pid = pid_in(&file).await;
        let mut frame = Vec::new();
        codec::put_data(&mut frame, &[0; 9000]);
        stream.write_all(&frame[..round * 1000 + 1]).await.unwrap();
        assert!(alive(pid));
        // The next host.
        let (mut far, near) = duplex(1 << 20);
        let connecting = tokio::spawn(AgentClient::connect(near, Instant::now() + DEADLINE));
        let next = relay_until(&mut far, &mut stream, connecting).await.unwrap().unwrap();
        is_gone(pid).await;
        let asking = tokio::spawn(async move { next.health().await.map(|health| (health, next)) });
        relay_until(&mut far, &mut stream, asking).await.unwrap().unwrap();
        drop((running, client));
    }
}

/// Carries bytes between a host and the port until the task is done.
async fn relay_until<T>(
    host: &mut DuplexStream,
    port: &mut UnixStream,
    task: JoinHandle<T>,
) -> Result<T, tokio::task::JoinError> {
    let relayed = async {
        tokio::select! {
            result = task => result,
            broken = copy_bidirectional(host, port) => panic!("the port ended: {broken:?}"),
        }
    };
    tokio::time::timeout(DEADLINE, relayed).await.expect("no answer")
}

#[tokio::test]
async fn garbage_never_ends_the_agent() {
    let agent = Agent::start();
    let mut runner = TestRunner::deterministic();
    let garbage = prop::collection::vec(any::<u8>(), 0..2000);
    for round in 0..60 {
        let mut stream = agent.stream().await;
        let mut bytes = Vec::new();
        if round % 2 == 0 {
            // Garbage where HTTP/2 should be.
            codec::put_opening(&mut bytes, SessionId([round + 1; 16]));
            let inside = garbage.new_tree(&mut runner).unwrap().current();
            codec::put_data(&mut bytes, &inside);
            if round % 4 == 0 {
                codec::put_data(&mut bytes, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
                codec::put_data(&mut bytes, &inside);
            }
        }
        bytes.extend(garbage.new_tree(&mut runner).unwrap().current());
        // The agent may close in between.
        drop(stream.write_all(&bytes).await);
        // The same connection must still take a true host.
        let client = AgentClient::connect(stream, Instant::now() + DEADLINE).await.unwrap();
        client.health().await.unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_comes_later_is_waited_for() {
    let mut agent = Agent::start();
    let client = agent.client().await;
    client.health().await.unwrap();
    agent.replace();
    let next = agent.client().await;
    next.health().await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), client.closed())
        .await
        .unwrap();
}
