//! How the driver is opened.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use hearth_image::Stores;
use serde::{Deserialize, Serialize};
use url::Url;

/// Where Debian's and most other packages put the daemon's socket.
pub const USUAL_SOCKET: &str = "/var/lib/incus/unix.socket";
/// How an address of a socket begins.
const SOCKET_SCHEME: &str = "unix:";

/// Where a daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncusAddress {
    /// Its unix socket: who may open it may do everything.
    Socket(PathBuf),
    /// Its port, with a client certificate.
    Url(Url),
}

impl FromStr for IncusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("write unix:{USUAL_SOCKET} or https://HOST:8443");
        if let Some(path) = text.strip_prefix(SOCKET_SCHEME) {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Socket(path))
            } else {
                Err(wanted())
            };
        }
        let url = Url::parse(text).map_err(|_| wanted())?;
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.username().is_empty();
        if url.scheme() == "https" && url.has_host() && is_bare && url.password().is_none() {
            Ok(Self::Url(url))
        } else {
            Err(wanted())
        }
    }
}

impl fmt::Display for IncusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{SOCKET_SCHEME}{}", path.display()),
            Self::Url(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

/// How daemons know us, and we them, at their ports. All PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncusTls {
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The daemon's own certificate (a cluster has one for all members), which is trusted as it is; `None`: one that this machine's
    /// authorities vouch for.
    pub server_certificate: Option<PathBuf>,
}

/// What an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncusKind {
    /// Shares its host's kernel: native speed, weaker isolation.
    #[default]
    Container,
    /// A kernel of its own, under KVM.
    VirtualMachine,
}

impl IncusKind {
    /// Incus' word.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::VirtualMachine => "virtual-machine",
        }
    }
}

/// Where a daemon is, and what of it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncusSettings {
    /// Daemons of one cluster, or one daemon; the first that answers is asked.
    pub addresses: Vec<IncusAddress>,
    /// For those at ports.
    pub tls: Option<IncusTls>,
    /// The project that everything is in; made when it is missing. `None`: named after the installation.
    pub project: Option<String>,
    /// The storage pool. `None`: the only one there is, or the one called `default`.
    pub pool: Option<String>,
    /// The network that instances are on. `None`: none.
    pub network: Option<String>,
    /// What instances are, where an image does not say it.
    pub kind: IncusKind,
}

impl Default for IncusSettings {
    fn default() -> Self {
        Self {
            addresses: vec![IncusAddress::Socket(USUAL_SOCKET.into())],
            tls: None,
            project: None,
            pool: None,
            network: None,
            kind: IncusKind::default(),
        }
    }
}

/// The agent for images that have none.
#[derive(Debug, Clone)]
pub struct AgentBinary {
    /// The static program.
    pub bytes: Arc<[u8]>,
    pub version: String,
}

/// How to open an [`IncusDriver`](super::IncusDriver).
#[derive(Debug, Clone)]
pub struct IncusOptions {
    pub settings: IncusSettings,
    /// Tells this installation's instances from those of another in the same project. 1 to 32 of a-z, 0-9, `-`, `_`.
    pub installation: String,
    /// Hearth's own images, which are brought into Incus when they are needed.
    pub stores: Stores,
    /// For images of Incus' own; `None`: only images that have an agent can be used.
    pub agent: Option<AgentBinary>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_https_urls() {
        for text in [
            "unix:/var/lib/incus/unix.socket",
            "https://10.0.0.1:8443",
            "https://incus.example.org",
        ] {
            let address: IncusAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "unix:",
            "unix:relative",
            "http://10.0.0.1:8443",
            "https://user:word@h",
            "https://h/1.0",
            "10.0.0.1:8443",
        ] {
            assert!(text.parse::<IncusAddress>().is_err(), "{text}");
        }
    }
}
