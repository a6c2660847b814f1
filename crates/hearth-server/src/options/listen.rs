//! Where a server listens: ports, unix sockets, and sockets that the service manager has opened for it.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How addresses of unix sockets begin.
pub const UNIX: &str = "unix:";
/// Who may connect to a unix socket: the server's user and group. A token is needed all the same.
const OWNER_AND_GROUP: u32 = 0o660;

/// One place to listen at.
#[derive(Debug, Clone)]
pub enum Listen {
    /// An address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A socket that is open already.
    Open(Arc<Listener>),
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Self::Open(_) => f.write_str("a socket of the service manager"),
        }
    }
}

/// Where a server can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// At a port.
    Tcp(SocketAddr),
    /// At a unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The port, if it is one.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// A socket that is listened at.
#[derive(Debug)]
pub enum Listener {
    /// At a port.
    Tcp(TcpListener),
    /// At a path; the file of one that the server made goes with it.
    Unix(UnixListener, Option<SocketFile>),
}

impl Listener {
    /// Opens what is not open yet.
    pub fn open(listen: &Listen) -> std::io::Result<Self> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Listen::Unix(path) => {
                remove_dead(path)?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(OWNER_AND_GROUP))?;
                Ok(Self::Unix(listener, Some(file)))
            }
            Listen::Open(open) => match open.as_ref() {
                Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
                Self::Unix(listener, _) => listener.try_clone().map(|listener| Self::Unix(listener, None)),
            },
        }
    }

    /// Where it is reached.
    pub fn address(&self) -> std::io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(listener, _) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(Path::to_owned);
                path.map(Address::Unix).ok_or_else(|| {
                    std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, "the unix socket has no path")
                })
            }
        }
    }
}

/// The file of a unix socket; it is removed with this.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The next server removes one that stays.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the socket of a server that was killed; one at which somebody listens, and any other file, stays.
fn remove_dead(path: &Path) -> std::io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if meta.file_type().is_socket()
        && UnixStream::connect(path).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        return std::fs::remove_file(path);
    }
    Ok(())
}
