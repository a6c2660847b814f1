//! The gateway: one process in the VM network that stands between VMs and the uplink. It gives each VM a network namespace of its own,
//! says by packet rules what it may reach, and resolves names for it. Like the holder it outlives the server, so that a VM's names are
//! resolved and its policy holds while no server runs; the packet rules hold without the gateway too.
//!
//! ```text
//! VM ── QEMU ── namespace of its own ── vm7 │ rules │ tap0 ── uplink ── the world
//!                        └── names ─────────┘ gateway ── upstream resolver
//! ```
//! A claimed VM of a project with a list reaches the networks of the list, and the addresses that its names were resolved to by the
//! gateway, for as long as the answer may be used. So another resolver gets round nothing: what it answers is not let through.

mod answer;
mod filter;
mod namespaces;
mod protocol;
mod refused;
mod resolver;
mod slots;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

pub(super) use protocol::{Known, Reply, Request};
use slots::Slots;

/// The word after the program's name that makes it the gateway.
pub const WORD: &str = "vm-gateway";
/// What the host's ends of the VMs' links are called.
pub(super) const VM_LINKS: &str = "vm*";
/// What VMs take for their resolver, and route by. It exists inside the VM network only.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where it answers name queries.
const RESOLVER: SocketAddrV4 = SocketAddrV4::new(ADDRESS, 53);
/// Longest request: a policy, or those of all VMs.
const MAX_REQUEST: u64 = 64 << 20;

/// Runs the gateway until it is killed. Standard input is the socket that it is asked over; it is ready when it has said so on standard
/// output.
#[must_use]
pub fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| runtime.block_on(serve()));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the gateway of the VM network cannot work: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> std::io::Result<()> {
    use std::os::fd::AsFd as _;
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    namespaces::prepare().await?;
    let slots = Arc::new(Slots::default());
    let resolver = resolver::Resolver::bind(RESOLVER, slots.clone()).await?;
    tokio::spawn(resolver.run());
    tokio::spawn(slots.clone().keep());
    // The server that started us reads no more than this.
    tokio::io::stdout().write_all(b"ready\n").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let slots = slots.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(&slots, stream).await {
                eprintln!("a request was not answered: {error}");
            }
        });
    }
}

/// One request per connection.
async fn answer(slots: &Slots, mut stream: UnixStream) -> std::io::Result<()> {
    let mut text = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_to_end(&mut text).await?;
    let reply = match serde_json::from_slice(&text) {
        Ok(request) => slots.answer(request).await,
        Err(error) => Reply::Failed {
            reason: format!("the request cannot be read: {error}"),
        },
    };
    stream.write_all(&serde_json::to_vec(&reply)?).await?;
    stream.shutdown().await
}
