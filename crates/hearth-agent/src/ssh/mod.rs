//! SSH into this VM, without a server that listens: for each connection of the host an `sshd` is started with the connection as its input
//! and output. Whose keys open it and what the VM proves itself by lies in a folder in memory ([`access`]): none of it is on a disk, and a
//! fork begins without.

mod access;

use std::path::Path;
use std::sync::Arc;

use hearth_guest::ssh::SshKeys;
use hearth_guest::{paths, ssh::SshHost};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

pub(crate) use access::{FOLDER, forget};

use crate::exec::Execs;
use crate::http::small_json;
use crate::ports::relay;
use crate::reply::{self, Fault, Reply};

/// The server; started by its absolute path, which it insists on.
const SERVER: &str = "/usr/sbin/sshd";
/// Where it locks itself in while nobody has proved who they are. Its package makes the folder only where its service runs.
const EMPTY_FOLDER: &str = "/run/sshd";

/// Lets the owners of some keys enter.
pub(crate) async fn allow(request: Request<Incoming>) -> Result<Reply, Fault> {
    let SshKeys { keys } = small_json(request, "a list of keys").await?;
    need_server()?;
    let host_keys = access::allow(Path::new(FOLDER), &keys)?;
    Ok(reply::json(StatusCode::OK, &SshHost { host_keys }))
}

/// Serves one connection.
pub(crate) async fn serve(
    request: Request<Incoming>,
    execs: Arc<Execs>,
    session: &CancellationToken,
) -> Result<Reply, Fault> {
    need_server()?;
    let query = request.uri().query().unwrap_or_default();
    let env_file = form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == paths::PATH)
        .map(|(_, path)| path.into_owned());
    let variables = match env_file {
        Some(file) => execs.variables(&file).await.map_err(Fault::bad)?,
        None => Vec::new(),
    };
    let folder = Path::new(FOLDER);
    access::prepare(folder)?;
    make_empty_folder()?;
    let config = access::write_config(folder, &variables)?;
    let argv = [SERVER, "-i", "-e", "-f", &config].map(str::to_owned);
    let (reader, writer) = execs.run_server(argv.to_vec()).await?;
    Ok(relay::start(reader, writer, request.into_body(), session))
}

fn need_server() -> Result<(), Fault> {
    if Path::new(SERVER).exists() {
        return Ok(());
    }
    Err(Fault {
        code: None,
        status: StatusCode::NOT_IMPLEMENTED,
        message: format!(
            "this VM has no SSH server ({SERVER}); build the image again, or install openssh-server in the set-up"
        ),
    })
}

fn make_empty_folder() -> Result<(), Fault> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(EMPTY_FOLDER);
    made.map_err(|error| Fault::from_io(EMPTY_FOLDER, &error))
}
