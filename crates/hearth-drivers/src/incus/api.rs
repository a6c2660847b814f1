//! Incus' REST API: one call, its envelope, and the operation that a call may begin. Knows nothing of what instances are for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Client, Method, StatusCode, Upgraded};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::options::{IncusAddress, IncusSettings, IncusTls};
use super::tls;
use crate::{CALL_TIMEOUT, DriverError};

/// A daemon on this machine or in this network accepts at once, or is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an operation may take: unpacking an image, or copying a whole disk to another machine.
pub(super) const OPERATION_TIMEOUT: Duration = Duration::from_secs(600);
/// How long one question about an operation waits for its end.
const WAIT_SECONDS: u64 = 15;
/// As much of an answer is read.
const MOST_BYTES: usize = 64 << 20;
/// What stays as it is in a part of a path or a query.
const KEEP: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// No daemon could be asked: nothing has happened.
    #[error("Incus does not answer at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    /// The question was sent, and no answer came: it may have happened.
    #[error("Incus gave no answer: {0}")]
    Silent(String),
    /// It said no.
    #[error("Incus said ({code}): {message}")]
    Refused { code: u16, message: String },
    /// The operation began, and failed.
    #[error("Incus could not do it: {0}")]
    Failed(String),
    /// It is not known any more how the operation ended.
    #[error("Incus has forgotten how it ended")]
    Forgotten,
}

impl ApiError {
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// What Incus said.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Refused { message, .. } | Self::Failed(message) | Self::Silent(message) => message,
            Self::Unreachable { reason, .. } => reason,
            Self::Forgotten => "",
        }
    }

    /// As the caller of a driver sees it.
    pub(super) fn into_driver(self, what: impl std::fmt::Display) -> DriverError {
        let reason = format!("{what}: {self}");
        match &self {
            Self::Unreachable { .. } => DriverError::retry(reason),
            Self::Silent(_) | Self::Forgotten => DriverError::unknown(reason),
            Self::Refused {
                code: 400 | 403 | 404 | 412,
                message,
            } if !is_passing(message) => DriverError::permanent(reason),
            Self::Refused { .. } | Self::Failed(_) => DriverError::retry(reason),
        }
        .caused_by(self)
    }
}

/// Whether the reason is the cluster's state and not what was asked.
fn is_passing(message: &str) -> bool {
    ["evacuated", "isn't ready", "Unable to connect", "in use", "busy"]
        .iter()
        .any(|word| message.contains(word))
}

/// What every answer is wrapped in.
#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_code: u16,
    #[serde(default)]
    metadata: Value,
}

/// An operation, as far as we read it.
#[derive(Debug, Deserialize)]
struct Operation {
    #[serde(default)]
    status: String,
    #[serde(default)]
    err: String,
    #[serde(default)]
    metadata: Value,
}

/// What a call gave.
#[derive(Debug)]
pub(super) enum Answer {
    Now(Value),
    /// It takes longer: the operation's path, and what it says of itself.
    Later(String, Value),
}

/// A body that is no JSON.
pub(super) struct Raw {
    pub(super) body: reqwest::Body,
    pub(super) headers: HeaderMap,
}

struct Daemon {
    client: Client,
    base: String,
    name: String,
}

/// Speaks to the daemons. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api(Arc<Inner>);

struct Inner {
    daemons: Vec<Daemon>,
    /// The one that answered last.
    current: AtomicUsize,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.daemons.iter().map(|daemon| &daemon.name))
            .finish()
    }
}

/// A part of a path or a query, safe to put there.
pub(super) fn part(text: &str) -> String {
    utf8_percent_encode(text, KEEP).to_string()
}

impl Api {
    pub(super) fn new(settings: &IncusSettings) -> Result<Self, DriverError> {
        let daemons = settings
            .addresses
            .iter()
            .map(|address| daemon(address, settings.tls.as_ref()));
        let daemons: Vec<Daemon> = daemons.collect::<Result<_, _>>()?;
        if daemons.is_empty() {
            return Err(DriverError::permanent("no address of Incus is given"));
        }
        Ok(Self(Arc::new(Inner {
            daemons,
            current: AtomicUsize::new(0),
        })))
    }

    /// One call with its envelope taken off.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, ApiError> {
        let reply = self
            .send(|daemon| {
                let request = daemon
                    .client
                    .request(method.clone(), format!("{}{path}", daemon.base))
                    .timeout(CALL_TIMEOUT);
                match body {
                    Some(body) => request.json(body),
                    None => request,
                }
            })
            .await?;
        unwrap(reply).await
    }

    /// A call that is answered at once.
    pub(super) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        match self.call(Method::GET, path, None).await? {
            Answer::Now(value) | Answer::Later(_, value) => {
                serde_json::from_value(value).map_err(|error| ApiError::Silent(format!("{path}: {error}")))
            }
        }
    }

    /// A call, to the end of the operation that it begins; what that has left as its metadata.
    pub(super) async fn run(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        match self.call(method, path, body).await? {
            Answer::Now(value) => Ok(value),
            Answer::Later(operation, _) => self.end_of(&operation).await,
        }
    }

    /// The same with a body that is no JSON, which can be sent once only: to the daemon that answered last.
    pub(super) async fn upload(&self, path: &str, raw: Raw) -> Result<Value, ApiError> {
        let daemon = self.current();
        let request = daemon
            .client
            .post(format!("{}{path}", daemon.base))
            .headers(raw.headers)
            .timeout(OPERATION_TIMEOUT)
            .body(raw.body);
        let reply = request.send().await.map_err(|error| daemon.fault(&error))?;
        match unwrap(reply).await? {
            Answer::Now(value) => Ok(value),
            Answer::Later(operation, _) => self.end_of(&operation).await,
        }
    }

    /// An answer that is no JSON.
    pub(super) async fn bytes(&self, path: &str) -> Result<Vec<u8>, ApiError> {
        let reply = self
            .send(|daemon| {
                daemon
                    .client
                    .get(format!("{}{path}", daemon.base))
                    .timeout(CALL_TIMEOUT)
            })
            .await?;
        if !reply.status().is_success() {
            return unwrap(reply).await.map(|_| Vec::new());
        }
        read(reply).await
    }

    /// Waits for an operation; what it has left.
    pub(super) async fn end_of(&self, operation: &str) -> Result<Value, ApiError> {
        // A forwarded one has a query, which does not belong before `/wait`.
        let path = operation.split('?').next().unwrap_or(operation);
        let path = format!("{path}/wait?timeout={WAIT_SECONDS}");
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        loop {
            let asked = self.get::<Operation>(&path).await;
            match asked {
                Ok(done) if done.status == "Success" => return Ok(done.metadata),
                Ok(done) if matches!(done.status.as_str(), "Failure" | "Cancelled") => {
                    return Err(ApiError::Failed(done.err));
                }
                // A failed operation is told like a failed call, and so is a wait whose time is up.
                Err(ApiError::Refused { message, .. }) if message.contains("deadline exceeded") => {}
                Err(ApiError::Refused { code: 404, message }) if message.contains("Operation not found") => {
                    return Err(ApiError::Forgotten);
                }
                Err(ApiError::Refused { code: 503, message }) => return Err(ApiError::Silent(message)),
                Err(ApiError::Refused { message, .. }) => return Err(ApiError::Failed(message)),
                // The daemon went away meanwhile: whether it happened is to be looked at.
                Err(ApiError::Unreachable { reason, .. }) => return Err(ApiError::Silent(reason)),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(ApiError::Silent("the operation takes too long".to_owned()));
            }
        }
    }

    /// Opens a WebSocket.
    pub(super) async fn websocket(&self, path: &str) -> Result<WebSocketStream<Upgraded>, ApiError> {
        let key = HeaderValue::from_str(&generate_key()).map_err(|error| ApiError::Silent(error.to_string()))?;
        let reply = self
            .send(|daemon| {
                daemon
                    .client
                    .get(format!("{}{path}", daemon.base))
                    .header(CONNECTION, "Upgrade")
                    .header(UPGRADE, "websocket")
                    .header(SEC_WEBSOCKET_VERSION, "13")
                    .header(SEC_WEBSOCKET_KEY, &key)
            })
            .await?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = reply.status().as_u16();
            return Err(match unwrap(reply).await {
                Err(error) => error,
                Ok(_) => ApiError::Silent(format!("a stream was answered with status {status}")),
            });
        }
        let stream = reply.upgrade().await;
        let stream = stream.map_err(|error| ApiError::Silent(format!("a stream could not be opened: {error}")))?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    fn current(&self) -> &Daemon {
        let at = self.0.current.load(Ordering::Relaxed) % self.0.daemons.len();
        &self.0.daemons[at]
    }

    /// Sends to the daemon that answered last; while none takes the connection, to the next.
    async fn send(&self, request: impl Fn(&Daemon) -> reqwest::RequestBuilder) -> Result<reqwest::Response, ApiError> {
        let (daemons, first) = (&self.0.daemons, self.0.current.load(Ordering::Relaxed));
        let mut last = None;
        for at in 0..daemons.len() {
            let at = (first + at) % daemons.len();
            let daemon = &daemons[at];
            match request(daemon).send().await {
                Ok(reply) => {
                    self.0.current.store(at, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(error) => match daemon.fault(&error) {
                    unreachable @ ApiError::Unreachable { .. } => last = Some(unreachable),
                    other => {
                        // It may be cut off from the others: they are asked the next time.
                        self.0.current.store((at + 1) % daemons.len(), Ordering::Relaxed);
                        return Err(other);
                    }
                },
            }
        }
        Err(last.unwrap_or(ApiError::Forgotten))
    }
}

impl Daemon {
    fn fault(&self, error: &reqwest::Error) -> ApiError {
        let reason = hearth_api::error::chain(&error);
        if error.is_connect() || error.is_builder() {
            ApiError::Unreachable {
                address: self.name.clone(),
                reason,
            }
        } else {
            ApiError::Silent(reason)
        }
    }
}

fn daemon(address: &IncusAddress, files: Option<&IncusTls>) -> Result<Daemon, DriverError> {
    let builder = Client::builder()
        .no_proxy()
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none());
    let (builder, base) = match address {
        // The name means nothing there.
        IncusAddress::Socket(path) => (
            builder
                .unix_socket(path.as_path())
                .tls_backend_preconfigured(tls::none()?),
            "http://incus".to_owned(),
        ),
        IncusAddress::Url(url) => {
            let files = files.ok_or_else(|| {
                DriverError::permanent(format!(
                    "{address} takes only clients with a certificate: name one with --incus-cert and --incus-key"
                ))
            })?;
            let base = url.as_str().trim_end_matches('/').to_owned();
            (builder.tls_backend_preconfigured(tls::config(files)?), base)
        }
    };
    let client = builder.build();
    Ok(Daemon {
        client: client
            .map_err(|error| DriverError::permanent(format!("no client for {address} can be made: {error}")))?,
        base,
        name: address.to_string(),
    })
}

/// A header of an upload.
pub(super) fn header(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), ApiError> {
    let value = HeaderValue::from_str(value).map_err(|error| ApiError::Failed(format!("{name}: {error}")))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

async fn read(mut reply: reqwest::Response) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = reply
        .chunk()
        .await
        .map_err(|error| ApiError::Silent(hearth_api::error::chain(&error)))?
    {
        if bytes.len() + chunk.len() > MOST_BYTES {
            return Err(ApiError::Silent("the answer is too long".to_owned()));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn unwrap(reply: reqwest::Response) -> Result<Answer, ApiError> {
    let status = reply.status().as_u16();
    let bytes = read(reply).await?;
    let envelope: Envelope = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::Silent(format!("an answer (status {status}) is none of Incus': {error}")))?;
    match envelope.kind.as_str() {
        "sync" => Ok(Answer::Now(envelope.metadata)),
        "async" => Ok(Answer::Later(envelope.operation, envelope.metadata)),
        _ => Err(ApiError::Refused {
            // A failed operation is told with status 200.
            code: if envelope.error_code == 0 {
                status
            } else {
                envelope.error_code
            },
            message: envelope.error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_told_from_what_the_cluster_is_in() {
        let kind = |code, message: &str| {
            let message = message.to_owned();
            ApiError::Refused { code, message }.into_driver("x")
        };
        assert!(matches!(
            kind(400, "Unknown configuration key: a"),
            DriverError::Permanent { .. }
        ));
        assert!(matches!(
            kind(403, "Cluster member is evacuated"),
            DriverError::Retry { .. }
        ));
        assert!(matches!(kind(500, "Server isn't ready yet"), DriverError::Retry { .. }));
        assert!(matches!(
            ApiError::Silent("t".to_owned()).into_driver("x"),
            DriverError::Unknown { .. }
        ));
    }

    #[test]
    fn parts_of_paths_stay_parts() {
        assert_eq!(part("a/b?c=d&e f"), "a%2Fb%3Fc%3Dd%26e%20f");
        assert_eq!(part("vm-0123_x.y~z"), "vm-0123_x.y~z");
    }
}
