//! A typed client of the HTTP API: one method per operation, one error type, and repeats only where a repeat is safe
//! (reads, heartbeats and writes of variables; a claim with a task id; anything that never reached a server or that the
//! server put off with a 429, which for a claim is the answer).
//!
//! It does not look for servers or tokens: the caller says where and with what.

mod audit;
mod call;
mod credentials;
mod egress;
mod error;
mod events;
mod exec;
mod files;
mod find;
mod forks;
mod history;
mod in_process;
mod instances;
mod logs;
mod pool;
mod ports;
mod projects;
mod schedule;
mod servers;
mod sessions;
mod setup;
mod socket;
mod ssh;
mod stream;
mod templates;
mod terminal;
mod tokens;
mod variables;
mod webhooks;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;

pub use error::ClientError;
pub use events::EventsQuery;
pub use exec::{ExecInput, ExecOutput};
pub use files::{FileContent, TarContent, WriteOptions};
pub use history::HistoryQuery;
pub use in_process::{AnswerInProcess, InProcessBody};
pub use logs::LogStream;
pub use ports::{TunnelReceiver, TunnelSender};
pub use sessions::{AttachOptions, PrintedBytes, SessionEvent, SessionInput, SessionOutput};
pub use stream::{ChangeStream, EventMessage, EventsStream, ExecEvent, ExecStream, FollowStream};
pub use terminal::{Screen, Shown, TerminalRequest, Typing};

/// Under this header every reply carries the id that the server's log has for it.
const REQUEST_ID_HEADER: &str = "x-request-id";
/// Where the API starts.
const BASE_PATH: [&str; 2] = ["api", "v1"];
/// Time for the TCP and TLS handshakes; the other end of the world answers within 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams may be silent for long; this finds out that the other end is gone.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How the address of a unix socket begins.
const UNIX: &str = "unix:";
/// Behind a unix socket every name leads to the server.
const SOCKET_HOST: &str = "http://localhost";

/// How a server is reached, besides its address.
#[derive(Clone)]
struct Route {
    socket: Option<PathBuf>,
    /// Who may sign its certificate; empty: who this machine trusts.
    authorities: Vec<reqwest::Certificate>,
}

/// A client of one server with one token. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    root: Url,
    route: Route,
    base: Url,
    authorization: Option<HeaderValue>,
    /// Who answers, when that is this process itself.
    in_process: Option<AnswerInProcess>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.address())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the server at `base_url` (`http://127.0.0.1:7717`, without `/api/v1`). An empty token sends none.
    ///
    /// # Errors
    /// [`ClientError::Setup`] when the address or the token cannot be used. Nothing is sent yet.
    pub fn new(base_url: &str, token: &str) -> Result<Self, ClientError> {
        Self::by(base_url, token, Vec::new())
    }

    /// The same for a server whose certificate was signed by one of these authorities (PEM) and by no other.
    ///
    /// # Errors
    /// As [`Client::new`], and when there is no certificate in it.
    pub fn trusting(base_url: &str, token: &str, authorities: &[u8]) -> Result<Self, ClientError> {
        let authorities = reqwest::Certificate::from_pem_bundle(authorities).unwrap_or_default();
        if authorities.is_empty() {
            return Err(ClientError::Setup {
                reason: "the file of the authority holds no certificate in PEM".to_owned(),
            });
        }
        Self::by(base_url, token, authorities)
    }

    fn by(base_url: &str, token: &str, authorities: Vec<reqwest::Certificate>) -> Result<Self, ClientError> {
        let socket = base_url.trim().strip_prefix(UNIX).map(PathBuf::from);
        let root = parse_root(if socket.is_some() { SOCKET_HOST } else { base_url })?;
        let route = Route { socket, authorities };
        let authorization = if token.is_empty() { None } else { Some(bearer(token)?) };
        let mut base = root.clone();
        if let Ok(mut path) = base.path_segments_mut() {
            path.pop_if_empty().extend(BASE_PATH);
        }
        Ok(Self {
            http: build_http(&root, &route, |builder| builder)?,
            root,
            route,
            base,
            authorization,
            in_process: None,
        })
    }

    /// The server's address, as given (without user, password and `/api/v1`).
    #[must_use]
    pub fn address(&self) -> String {
        match &self.route.socket {
            Some(path) => format!("{UNIX}{}", path.display()),
            None => self.root.as_str().trim_end_matches('/').to_owned(),
        }
    }

    /// Whether a server answers there; needs no token.
    ///
    /// # Errors
    /// As every call.
    pub async fn health(&self) -> Result<(), ClientError> {
        let mut call = self.get(&[]);
        call.set_root_path(&["healthz"]);
        call.open().await.map(drop)
    }
}

fn parse_root(base_url: &str) -> Result<Url, ClientError> {
    let bad = |reason: &str| ClientError::Setup {
        // The address is not repeated: it may hold a password.
        reason: format!("the server's address cannot be used ({reason}); write it like http://127.0.0.1:7717"),
    };
    let url = Url::parse(base_url.trim()).map_err(|fault| bad(&fault.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("it must start with http:// or https://"));
    }
    if !url.has_host() {
        return Err(bad("it has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it must not hold a user or password; give the token separately"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it must not hold `?` or `#`"));
    }
    Ok(url)
}

fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::Setup {
        reason: "the token holds characters that no token has; was it copied whole, without line breaks?".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn build_http(
    root: &Url,
    route: &Route,
    kind: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        // The API redirects nowhere; following one would send the token to an address that the user did not name.
        .redirect(Policy::none());
    // A second client in the same process finds the provider installed; both are the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if root.scheme() == "http" {
        // Without TLS the host's certificates are not needed; reading them takes longer than a whole call, and a small
        // container has none.
        builder = builder.tls_certs_only([]);
    } else if !route.authorities.is_empty() {
        builder = builder.tls_certs_only(route.authorities.clone());
    }
    if let Some(path) = &route.socket {
        builder = builder.unix_socket(path.clone());
    }
    if is_loopback(root) {
        builder = builder.no_proxy();
    }
    kind(builder).build().map_err(|fault| ClientError::Setup {
        reason: error::chain(&fault),
    })
}

fn is_loopback(url: &Url) -> bool {
    let host = url
        .host_str()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_work_are_refused_with_a_reason() {
        for (address, reason) in [
            ("127.0.0.1:7717", "cannot be used"),
            ("ftp://host", "http:// or https://"),
            ("http://user:pw@host", "token separately"),
            ("http://host?x=1", "`?`"),
        ] {
            let text = Client::new(address, "").unwrap_err().to_string();
            assert!(text.contains(reason), "{address}: {text}");
            assert!(!text.contains("pw"), "{text}");
        }
    }

    #[test]
    fn a_path_before_the_api_is_kept() {
        let client = Client::new("https://example.org/hearth/", "t").unwrap();
        assert_eq!(client.base.as_str(), "https://example.org/hearth/api/v1");
        assert_eq!(client.address(), "https://example.org/hearth");
    }

    #[test]
    fn neither_the_client_nor_a_refusal_shows_the_token() {
        let client = Client::new("http://localhost:1", "hearth_secret").unwrap();
        assert!(!format!("{client:?}").contains("hearth_secret"));
        let refusal = Client::new("http://localhost:1", "hearth_secret\n").unwrap_err();
        assert!(!refusal.to_string().contains("hearth_secret"));
    }
}
