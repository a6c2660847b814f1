//! A connection to a TCP port of this VM.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hearth_guest::paths;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{listening, relay};
use crate::reply::{Fault, Reply};

/// How long a server may take to let a connection in. The kernel does that for it, unless too many wait already.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects the host to the port that its request names.
pub(crate) async fn stream(request: Request<Incoming>, session: &CancellationToken) -> Result<Reply, Fault> {
    let query = request.uri().query().unwrap_or_default();
    let port = form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == paths::PORT)
        .and_then(|(_, port)| port.parse::<u16>().ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| Fault::bad("the port must be a number from 1 to 65535"))?;
    let connection = connect(port).await?;
    // Small messages are answers that somebody waits for.
    drop(connection.set_nodelay(true));
    let (reader, writer) = connection.into_split();
    Ok(relay::start(reader, writer, request.into_body(), session))
}

async fn connect(port: u16) -> Result<TcpStream, Fault> {
    let deadline = Instant::now() + PATIENCE;
    let loopback = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    for address in loopback {
        if let Some(connection) = connect_to(address, deadline).await? {
            return Ok(connection);
        }
    }
    // A server may listen on another address of the VM only.
    for address in listening::addresses_of(port) {
        if !address.ip().is_loopback()
            && let Some(connection) = connect_to(address, deadline).await?
        {
            return Ok(connection);
        }
    }
    Err(Fault {
        code: None,
        status: StatusCode::BAD_GATEWAY,
        message: format!("nothing listens on port {port} in the VM"),
    })
}

/// `None` when nothing listens at this address, or the VM has no such address.
async fn connect_to(address: SocketAddr, deadline: Instant) -> Result<Option<TcpStream>, Fault> {
    match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(Ok(connection)) => Ok(Some(connection)),
        Ok(Err(error)) if matters(&error) => Err(Fault::from_io(&format!("{address}"), &error)),
        Ok(Err(_)) => Ok(None),
        Err(_) => Err(Fault {
            code: None,
            status: StatusCode::GATEWAY_TIMEOUT,
            message: format!(
                "what listens on port {} in the VM did not take the connection within {} s",
                address.port(),
                PATIENCE.as_secs()
            ),
        }),
    }
}

/// What says more than that nothing is there.
fn matters(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Unsupported
    ) && error.raw_os_error() != Some(nix::libc::EAFNOSUPPORT)
}
