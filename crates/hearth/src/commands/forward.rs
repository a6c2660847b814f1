//! `hearth forward`: ports of this machine that lead to ports of a VM. Each connection here is a connection of its own to the VM.

use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use clap::Args;
use hearth_api::client::{Client, ClientError, TunnelReceiver, TunnelSender};
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::exec::until_stopped;
use crate::args::Globals;
use crate::failure::Failure;
use crate::lease_warning::Meanwhile;
use crate::{connect, lease_warning, output, resolve};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

const AFTER_HELP: &str = "\
Examples:
  hearth forward last 3000                 # http://127.0.0.1:3000 here is port 3000 in the VM
  hearth forward fix-17 5432:15432 3000    # several at once; PostgreSQL is at 127.0.0.1:15432
  hearth forward last 3000:0               # a free port, which is printed

Ctrl-C ends it, with all connections. Only this machine can connect, unless --bind says otherwise.";

/// `hearth forward`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ForwardArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The port in the VM, and after a colon the one of this machine (0: a free one; without it the same number)
    #[arg(required = true, value_name = "PORT[:LOCAL]")]
    ports: Vec<Forward>,
    /// The address of this machine to listen at
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
}

/// `3000:8080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forward {
    port: u16,
    local: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "write it like 3000 or 3000:8080 (the port in the VM, then the one here)".to_owned();
        let (port, local) = text.split_once(':').unwrap_or((text, text));
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wanted)?;
        let local = local.parse().map_err(|_| wanted())?;
        Ok(Self { port, local })
    }
}

pub(crate) async fn run(globals: &Globals, args: ForwardArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    // Before anything is promised: the VM must be one that can be worked in.
    let listed = client.list_ports(&id).await?;
    let mut listeners = Vec::new();
    for forward in &args.ports {
        let listener = listen(SocketAddr::new(args.bind, forward.local)).await?;
        listeners.push((listener, forward.port));
    }
    for (listener, port) in &listeners {
        let local = listener.local_addr()?;
        if globals.json {
            output::print_json(&json!({ "local": local.to_string(), "port": port }))?;
        } else {
            output::print_line(&format!("{local} -> port {port} of {id}"))?;
        }
        if !globals.json && listed.items.iter().all(|one| one.port != *port) {
            output::note(&format!("nothing listens on port {port} in the VM yet"));
        }
    }
    if !globals.json && io::stdout().is_terminal() {
        output::note("Ctrl-C ends it");
    }
    let _warning = lease_warning::watch(&client, &id, Meanwhile::Nothing);
    let mut all = JoinSet::new();
    for (listener, port) in listeners {
        all.spawn(serve(listener, client.clone(), id.clone(), port));
    }
    until_stopped(async {
        match all.join_next().await {
            Some(Ok(failure)) => Err(failure),
            _ => Ok(0),
        }
    })
    .await
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let failure = Failure::new(format!(
            "this machine's port {} cannot be used: {error}",
            address.port()
        ));
        match error.kind() {
            io::ErrorKind::AddrInUse => failure.hint(format!(
                "another program listens there; choose another one behind the colon, like {0}:0 for a free one",
                address.port()
            )),
            io::ErrorKind::PermissionDenied => {
                failure.hint("ports below 1024 are root's: choose a larger one behind the colon, like 80:8080")
            }
            _ => failure,
        }
    })
}

/// Takes connections for as long as the program runs; ends only when none can be taken any more.
async fn serve(listener: TcpListener, client: Client, id: InstanceId, port: u16) -> Failure {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok((connection, _)) => {
                    connections.spawn(pass(connection, client.clone(), id.clone(), port));
                }
                // As when too many files are open: those that end make room.
                Err(error) if connections.is_empty() => return Failure::from(error),
                Err(_) => drop(connections.join_next().await),
            },
            // The VM is gone: no connection will be made any more.
            Some(Ok(Some(gone))) = connections.join_next() => return gone,
        }
    }
}

/// One connection to its end. What goes wrong is said, and is the matter of this connection alone; but for a VM that is gone, which is given.
async fn pass(connection: TcpStream, client: Client, id: InstanceId, port: u16) -> Option<Failure> {
    drop(connection.set_nodelay(true));
    let passed = match client.tunnel(&id, port).await {
        Ok((sender, receiver)) => {
            let (reader, writer) = connection.into_split();
            relay(reader, writer, sender, receiver).await
        }
        Err(error) if matches!(error.code(), Some(ErrorCode::Gone | ErrorCode::NotFound)) => return Some(error.into()),
        Err(error) => Err(error),
    };
    if let Err(error) = passed {
        output::note(&format!("port {port}: {}", Failure::from(error).into_parts().0));
    }
    None
}

/// Passes on in both directions until both have ended.
async fn relay(
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
    sender: TunnelSender,
    receiver: TunnelReceiver,
) -> Result<(), ClientError> {
    let mut up = std::pin::pin!(up(reader, sender));
    let mut down = std::pin::pin!(down(writer, receiver));
    tokio::select! {
        // The VM has said everything: what we still send is taken until we end.
        ended = &mut down => {
            ended?;
            // A connection that is closed by now is no fault.
            drop(up.await);
            Ok(())
        }
        ended = &mut up => {
            // What the VM still says comes along; whether sending failed is told by the other direction, too.
            let told = down.await;
            ended.and(told)
        }
    }
}

/// What is read here, to its end.
pub(super) async fn up(mut reader: impl AsyncRead + Unpin, mut sender: TunnelSender) -> Result<(), ClientError> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return sender.end().await,
            Ok(read) => sender.bytes(bytes::Bytes::copy_from_slice(&buffer[..read])).await?,
            // Our side broke off.
            Err(_) => return Ok(()),
        }
    }
}

/// What the VM sends, to its end.
pub(super) async fn down(mut writer: impl AsyncWrite + Unpin, mut receiver: TunnelReceiver) -> Result<(), ClientError> {
    while let Some(bytes) = receiver.next().await? {
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return Ok(());
        }
    }
    drop(writer.shutdown().await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_and_without_a_local_one() {
        for (text, port, local) in [("3000", 3000, 3000), ("3000:8080", 3000, 8080), ("5432:0", 5432, 0)] {
            assert_eq!(text.parse(), Ok(Forward { port, local }));
        }
        for text in ["", "0", "x", "3000:", ":80", "70000", "80:70000", "1:2:3", "-1"] {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
