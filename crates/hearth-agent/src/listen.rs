//! Where the host comes from: the virtio-serial port of a VM, or a Unix socket in a container and for tests. Each transport carries one
//! session after the other; a session's end ends what was running for it.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hearth_guest::requests::FOLDER;
use hearth_guest::session::{SessionStream, serve_sessions};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exec::Execs;
use crate::init::net;
use crate::port::Port;
use crate::{activate, requests};

/// After an error of the port, before it is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// How long commands may take to end when the agent itself is asked to.
const FAREWELL: Duration = Duration::from_secs(5);

/// What `serve` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) endpoint: Endpoint,
    pub(crate) setup_network: bool,
    pub(crate) use_cgroups: bool,
    pub(crate) log_folder: PathBuf,
    /// Where programs ask; in a VM at its usual place, else nowhere.
    pub(crate) request_folder: Option<PathBuf>,
}

/// Where to listen.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// The virtio-serial port of this name.
    Port(String),
    /// A Unix socket; every connection is like a port of its own.
    Socket(PathBuf),
}

/// Serves until it is asked to stop.
pub(crate) async fn run(options: Options) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let execs = Arc::new(Execs::new(options.use_cgroups, options.log_folder));
    let stop = CancellationToken::new();
    if options.setup_network {
        // Not awaited: the agent must answer even when the network never comes.
        tokio::spawn(net::bring_up());
    }
    let request_folder = options.request_folder.or_else(|| match options.endpoint {
        Endpoint::Port(_) => Some(FOLDER.into()),
        Endpoint::Socket(_) => None,
    });
    if let Some(folder) = request_folder {
        tokio::spawn(requests::serve(folder));
    }
    let result = tokio::select! {
        () = execs.keep_pre_started() => Ok(()),
        result = listen(options.endpoint, &execs, &stop) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop.cancel();
    // Whatever is left after that is the next agent's or init's business.
    drop(tokio::time::timeout(FAREWELL, execs.all_ended()).await);
    result
}

async fn listen(endpoint: Endpoint, execs: &Arc<Execs>, stop: &CancellationToken) -> io::Result<()> {
    match endpoint {
        Endpoint::Port(name) => listen_port(&name, execs, stop).await,
        Endpoint::Socket(path) => listen_socket(path, execs, stop).await,
    }
}

async fn listen_port(name: &str, execs: &Arc<Execs>, stop: &CancellationToken) -> io::Result<()> {
    let mut complained = false;
    loop {
        match serve_port(name, execs, stop).await {
            Err(error) if !complained => {
                complained = true;
                eprintln!("hearth-agent: the port {name} failed, trying again: {error}");
            }
            // A port does not end on its own.
            Ok(()) | Err(_) => {}
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
    }
}

async fn serve_port(name: &str, execs: &Arc<Execs>, stop: &CancellationToken) -> io::Result<()> {
    let port = Rc::new(Port::wait_for(name).await?);
    activate::prepare_boot_id();
    port.wait_for_host().await?;
    let next_host = async || port.wait_for_host().await.map(|()| true);
    serve_sessions(
        port.half(),
        port.half(),
        |session| serve_one(session, execs, stop),
        next_host,
    )
    .await
}

async fn listen_socket(path: PathBuf, execs: &Arc<Execs>, stop: &CancellationToken) -> io::Result<()> {
    // A leftover of an agent that was killed.
    drop(std::fs::remove_file(&path));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(&path)?;
    // Who may connect is root in the guest.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (execs, stop) = (Arc::clone(execs), stop.clone());
        tokio::spawn(async move {
            let (reader, writer) = stream.into_split();
            // A test's broken connection does not matter here.
            let no_other_host = async || Ok(false);
            drop(
                serve_sessions(
                    reader,
                    writer,
                    |session| serve_one(session, &execs, &stop),
                    no_other_host,
                )
                .await,
            );
        });
    }
}

/// One session. Dropping this future ends the session's commands.
async fn serve_one(session: SessionStream, execs: &Arc<Execs>, stop: &CancellationToken) {
    let alive = stop.child_token();
    let _ends_commands = alive.clone().drop_guard();
    crate::http::serve(session, Arc::clone(execs), alive).await;
}
