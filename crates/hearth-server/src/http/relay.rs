//! Requests for what another server of the same database looks after: they are passed on to it as they came, with the client's own token, and
//! its answer is passed back. A request that is passed on says so, signed with the key that all servers have, and is not passed on again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::{ErrorCode, chain};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::port::INSTANCE_HEADER;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::auth::Caller;
use super::error::ApiError;
use super::ports::{self, Proxied};
use super::{AppState, BASE};
use crate::secrets::links::LinkKey;
use crate::servers::{Place, Servers};
use crate::store::ServerRow;

/// Says that a request was passed on: for which client, signed.
const RELAYED: HeaderName = HeaderName::from_static("x-hearth-relayed");
/// How long that is believed.
const BELIEVED: SignedDuration = SignedDuration::from_secs(60);
/// What the signature is for.
const PURPOSE: &str = "relayed for";
const MOVED_PURPOSE: &str = "it moved";
/// Says in an answer that the server that was asked is not the one to ask any more, signed: what a program in a VM answers says nothing.
const MOVED: HeaderName = HeaderName::from_static("x-hearth-moved");
/// How long a server is looked for that takes the request: as long as another one needs to take over.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a connection to another server may take.
const CONNECT: Duration = Duration::from_secs(2);
/// A body of at most this size is kept, so that the request can be sent again when a server did not take it.
const KEPT_BYTES: usize = 1 << 20;
/// What is of one connection, and not of the request.
const OF_THE_CONNECTION: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    HeaderName::from_static("keep-alive"),
];
/// Of an instance whose server is silent these can still be done: they are about its row alone.
const ROW_ALONE: [(&str, &[&str]); 2] = [("GET", &[""]), ("POST", &["release", "heartbeat", "extend"])];

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Project(ProjectId),
    Instance(InstanceId),
}

/// A request that another server has passed on.
#[derive(Debug, Clone, Copy)]
pub struct Relayed;

/// Passes requests on.
#[derive(Debug, Clone)]
pub struct Relay {
    servers: Servers,
    peers: reqwest::Client,
    links: LinkKey,
    /// Names below it are ports of VMs.
    ports_domain: Option<String>,
    /// What requests of other products' protocols are about.
    doors: fn(&Parts) -> Option<Subject>,
}

/// What became of a request.
enum Passed {
    /// It is for this server.
    Here(Request),
    Answered(Response),
}

/// Why a server gave no answer.
enum NoAnswer {
    /// It did not get the request.
    NotSent,
    /// What became of it is not known.
    Broken(String),
}

/// A body that can be sent more than once, or one that cannot.
enum Carried {
    Kept(Bytes),
    Once(Body),
    Spent,
}

impl Carried {
    async fn of(parts: &Parts, body: Body) -> Result<Self, ApiError> {
        let length = parts.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let is_empty = length.is_none() && !parts.headers.contains_key(header::TRANSFER_ENCODING);
        if !is_empty && length.is_none_or(|length| length > KEPT_BYTES) {
            return Ok(Self::Once(body));
        }
        let bytes = to_bytes(body, KEPT_BYTES).await;
        bytes
            .map(Self::Kept)
            .map_err(|_| ApiError::field(".", "the request's body did not arrive"))
    }

    fn take(&mut self) -> Option<reqwest::Body> {
        match self {
            Self::Kept(bytes) => Some(bytes.clone().into()),
            Self::Once(_) => match std::mem::replace(self, Self::Spent) {
                Self::Once(body) => Some(reqwest::Body::wrap_stream(body.into_data_stream())),
                _ => None,
            },
            Self::Spent => None,
        }
    }

    /// `None`: it is on its way to a server that did not take it.
    fn into_body(self) -> Option<Body> {
        match self {
            Self::Kept(bytes) => Some(Body::from(bytes)),
            Self::Once(body) => Some(body),
            Self::Spent => None,
        }
    }
}

/// The layer around everything that is about a project or an instance.
pub async fn to_its_server(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let relay = &state.relay;
    // The pages ask for whom they have signed in, and were passed on themselves.
    if !relay.servers.are_several() || request.extensions().get::<Caller>().is_some() {
        return next.run(request).await;
    }
    relay.read_mark(&mut request);
    match relay.pass(request).await {
        Ok(Passed::Here(request)) => next.run(request).await,
        Ok(Passed::Answered(response)) => response,
        Err(error) => error.into_response(),
    }
}

impl Relay {
    /// `doors`: what requests of other products' protocols are about. Fails where no HTTP client can be made.
    pub fn new(
        servers: Servers,
        links: LinkKey,
        ports_domain: Option<String>,
        authority: Option<&[u8]>,
        doors: fn(&Parts) -> Option<Subject>,
    ) -> reqwest::Result<Self> {
        // The second call in a process is refused, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut peers = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .http1_only();
        if let Some(pem) = authority {
            for certificate in reqwest::Certificate::from_pem_bundle(pem)? {
                peers = peers.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            servers,
            peers: peers.build()?,
            links,
            ports_domain,
            doors,
        })
    }

    /// The mark of another server becomes what it says; one that nobody has signed is as none.
    fn read_mark(&self, request: &mut Request) {
        let Some(mark) = request.headers_mut().remove(RELAYED) else {
            return;
        };
        let read = || {
            let (client, signature) = mark.to_str().ok()?.split_once(' ')?;
            let what = format!("{PURPOSE} {client}");
            self.links.check(&what, signature, Timestamp::now()).ok()?;
            Some(client.parse::<IpAddr>().ok())
        };
        if let Some(client) = read() {
            request.extensions_mut().insert(Relayed);
            if let Some(client) = client {
                request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, 0)));
            }
        }
    }

    async fn pass(&self, mut request: Request) -> Result<Passed, ApiError> {
        let upgraded = request.extensions_mut().remove::<OnUpgrade>();
        let (mut parts, body) = request.into_parts();
        let Some(about) = self.about(&parts) else {
            return Ok(here(parts, body, upgraded));
        };
        let place = self.place(&about).await?;
        if place == Place::Here {
            return Ok(here(parts, body, upgraded));
        }
        let relayed = parts.extensions.get::<Relayed>().is_some();
        let mut carried = Carried::of(&parts, body).await?;
        let deadline = Instant::now() + PATIENCE;
        let mut place = Some(place);
        loop {
            let now = match place.take() {
                Some(place) => place,
                None => self.place(&about).await?,
            };
            match now {
                Place::Here => {
                    let body = carried.into_body().ok_or_else(spent)?;
                    return Ok(here(parts, body, upgraded));
                }
                Place::Silent(row) if matches!(about, Subject::Instance(_)) => {
                    return match carried.into_body().filter(|_| is_about_the_row(&parts)) {
                        Some(body) => Ok(here(parts, body, upgraded)),
                        None => Err(silent(&row)),
                    };
                }
                Place::There(_) if relayed => {
                    let mut moved =
                        ApiError::unavailable("another server looks after this since a moment ago; ask again")
                            .into_response();
                    let signed = self.links.sign(MOVED_PURPOSE, Timestamp::now() + BELIEVED);
                    if let Ok(signed) = HeaderValue::from_str(&signed) {
                        moved.headers_mut().insert(MOVED, signed);
                    }
                    // Nothing has failed here: the server that asked looks again.
                    moved.extensions_mut().insert(Proxied);
                    return Ok(Passed::Answered(moved));
                }
                Place::There(row) => {
                    let Some(body) = carried.take() else {
                        return Err(not_taken(&row));
                    };
                    match self.send(&row, &mut parts, body, &upgraded).await {
                        Ok(answer) if self.says_moved(&answer) => self.servers.doubt(),
                        Ok(answer) => return Ok(Passed::Answered(passed_back(answer, upgraded))),
                        Err(NoAnswer::NotSent) => self.servers.doubt(),
                        Err(NoAnswer::Broken(_)) if parts.method.is_safe() => self.servers.doubt(),
                        Err(NoAnswer::Broken(why)) => return Err(broken(&row, &why)),
                    }
                    if Instant::now() > deadline {
                        return Err(not_taken(&row));
                    }
                }
                Place::Silent(row) => {
                    if Instant::now() > deadline {
                        return Err(silent(&row));
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Passes a request on that is about a project whose home is elsewhere, with this body; `None` where it is here. For protocols whose
    /// requests say in their bodies what they are about.
    pub async fn to_home(
        &self,
        project: &ProjectId,
        path: &str,
        headers: &HeaderMap,
        relayed: Option<Relayed>,
        body: Bytes,
    ) -> Result<Option<Response>, ApiError> {
        if !self.servers.are_several() {
            return Ok(None);
        }
        let request_length = body.len();
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path
            .parse()
            .map_err(|_| ApiError::field("path", "is none that can be passed on"))?;
        let length = HeaderValue::from(request_length);
        let sent = request.headers_mut();
        *sent = headers.clone();
        // It is read, and written anew.
        sent.remove(header::CONTENT_ENCODING);
        sent.remove(header::TRANSFER_ENCODING);
        sent.insert(header::CONTENT_LENGTH, length);
        sent.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(Subject::Project(project.clone()));
        if let Some(relayed) = relayed {
            parts.extensions.insert(relayed);
        }
        match self.pass(Request::from_parts(parts, body)).await? {
            Passed::Here(_) => Ok(None),
            Passed::Answered(response) => Ok(Some(response)),
        }
    }

    /// Tells all others what a git host said: a branch may be followed by any of them.
    pub async fn tell_others(&self, path: &'static str, headers: &HeaderMap, body: &Bytes) {
        let others = match self.servers.others().await {
            Ok(others) => others,
            Err(error) => return tracing::warn!(%error, "other servers could not be told of a webhook; they poll"),
        };
        for other in others {
            let Some(url) = other.url.as_deref() else { continue };
            let told = self.peers.post(format!("{}{path}", url.trim_end_matches('/')));
            let mut headers = headers.clone();
            OF_THE_CONNECTION.iter().for_each(|name| drop(headers.remove(name)));
            headers.remove(header::HOST);
            headers.remove(header::CONTENT_LENGTH);
            let Ok(mark) = HeaderValue::from_str(&self.mark(None)) else {
                continue;
            };
            headers.insert(RELAYED, mark);
            let told = told.headers(headers).body(body.clone()).timeout(CONNECT * 5);
            tokio::spawn(async move {
                if let Err(error) = told.send().await {
                    tracing::debug!(%error, server = other.id, "a server could not be told of a webhook; it polls");
                }
            });
        }
    }

    fn says_moved(&self, answer: &reqwest::Response) -> bool {
        let signed = answer.headers().get(MOVED).and_then(|signed| signed.to_str().ok());
        signed.is_some_and(|signed| self.links.check(MOVED_PURPOSE, signed, Timestamp::now()).is_ok())
    }

    async fn place(&self, about: &Subject) -> Result<Place, ApiError> {
        Ok(match about {
            Subject::Project(project) => self.servers.of_project(project).await?,
            Subject::Instance(instance) => self.servers.of_instance(instance).await?,
        })
    }

    fn about(&self, parts: &Parts) -> Option<Subject> {
        if let Some(about) = parts.extensions.get::<Subject>() {
            return Some(about.clone());
        }
        if let Some(id) = parts.headers.get(INSTANCE_HEADER).and_then(|id| id.to_str().ok()) {
            return id.trim().parse().ok().map(Subject::Instance);
        }
        let host = ports::outer_host(&parts.headers).zip(self.ports_domain.as_deref());
        if let Some((_, id)) = host.and_then(|(host, domain)| ports::named(host, domain)) {
            return Some(Subject::Instance(id));
        }
        (self.doors)(parts).or_else(|| by_path(parts.uri.path()))
    }

    fn mark(&self, client: Option<IpAddr>) -> String {
        let client = client.map_or_else(|| "-".to_owned(), |client| client.to_string());
        let signature = self
            .links
            .sign(&format!("{PURPOSE} {client}"), Timestamp::now() + BELIEVED);
        format!("{client} {signature}")
    }

    async fn send(
        &self,
        row: &ServerRow,
        parts: &mut Parts,
        body: reqwest::Body,
        upgraded: &Option<OnUpgrade>,
    ) -> Result<reqwest::Response, NoAnswer> {
        // It may have said meanwhile where it is.
        let Some(url) = &row.url else {
            return Err(NoAnswer::NotSent);
        };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = format!("{}{path}", url.trim_end_matches('/'));
        let upgrade = upgraded
            .is_some()
            .then(|| parts.headers.get(header::UPGRADE).cloned())
            .flatten();
        let mut headers = parts.headers.clone();
        OF_THE_CONNECTION.iter().for_each(|name| drop(headers.remove(name)));
        if body.as_bytes().is_some() {
            headers.remove(header::CONTENT_LENGTH);
        }
        if let Some(upgrade) = upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, upgrade);
        }
        let client = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let mark = self.mark(client.map(|ConnectInfo(address)| address.ip()));
        if let Ok(mark) = HeaderValue::from_str(&mark) {
            headers.insert(RELAYED, mark);
        }
        let sent = self
            .peers
            .request(parts.method.clone(), url)
            .headers(headers)
            .body(body)
            .send()
            .await;
        sent.map_err(|error| {
            if error.is_connect() || error.is_builder() {
                tracing::debug!(%error, server = row.id, "a request could not be passed on");
                NoAnswer::NotSent
            } else {
                NoAnswer::Broken(chain(&error))
            }
        })
    }
}

fn here(mut parts: Parts, body: Body, upgraded: Option<OnUpgrade>) -> Passed {
    if let Some(upgraded) = upgraded {
        parts.extensions.insert(upgraded);
    }
    Passed::Here(Request::from_parts(parts, body))
}

/// An answer of another server. A connection that changes its protocol becomes two byte streams that are joined.
fn passed_back(answer: reqwest::Response, upgraded: Option<OnUpgrade>) -> Response {
    let changes = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    // It is as the other server made it.
    response.extensions_mut().insert(Proxied);
    if changes {
        if let Some(client) = upgraded {
            tokio::spawn(async move {
                let (Ok(client), Ok(mut server)) = tokio::join!(client, answer.upgrade()) else {
                    return;
                };
                // Either end closes when it likes.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut server).await;
            });
        }
        return response;
    }
    let headers = response.headers_mut();
    OF_THE_CONNECTION.iter().for_each(|name| drop(headers.remove(name)));
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    response
}

/// What a path of the API, or of a page, is about.
fn by_path(path: &str) -> Option<Subject> {
    let rest = path.strip_prefix(BASE).unwrap_or(path);
    let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
    // The instance first: its VM is where it is.
    let after = |name: &str| {
        parts
            .iter()
            .position(|part| *part == name)
            .and_then(|at| parts.get(at + 1))
    };
    let instance = after("instances").or_else(|| after("boots"));
    if let Some(id) = instance.and_then(|id| id.parse().ok()) {
        return Some(Subject::Instance(id));
    }
    let project = (parts.first() == Some(&"projects")).then(|| parts.get(1)).flatten()?;
    project.parse().ok().map(Subject::Project)
}

fn is_about_the_row(parts: &Parts) -> bool {
    let path = parts.uri.path();
    let Some(rest) = path
        .strip_prefix(BASE)
        .and_then(|rest| rest.strip_prefix("/instances/"))
    else {
        return false;
    };
    let what = rest.split_once('/').map_or("", |(_, what)| what);
    let is_one = |(method, operations): &(&str, &[&str])| parts.method == *method && operations.contains(&what);
    ROW_ALONE.iter().any(is_one)
}

fn silent(row: &ServerRow) -> ApiError {
    ApiError::unavailable(format!(
        "this is on the server {}, which has not been heard of since {}; a VM stays its claim's, and is reached again when that server is back",
        row.id, row.alive_until
    ))
}

fn not_taken(row: &ServerRow) -> ApiError {
    let why = match &row.url {
        None => "it has said no address where other servers reach it: start it with --advertise URL",
        Some(_) => "it could not be reached",
    };
    ApiError::unavailable(format!("the server {} looks after this, and {why}; ask again", row.id))
}

/// Its body is gone with the attempt.
fn spent() -> ApiError {
    ApiError::unavailable("another server looks after this since a moment ago; ask again")
}

fn broken(row: &ServerRow, why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        format!(
            "the server {} ended while it answered this ({why}); whether it was done is not known: ask again, a claim with the same task",
            row.id
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_says_what_it_is_about_and_an_instance_counts_before_its_project() {
        let project = "prj_0123456789abcdef0123456789abcdef";
        let instance = "wpi_0123456789abcdef0123456789abcdef";
        let about = |path: String| by_path(&path);
        let is_project = Some(Subject::Project(project.parse().unwrap()));
        let is_instance = Some(Subject::Instance(instance.parse().unwrap()));
        assert_eq!(about(format!("{BASE}/projects/{project}")), is_project);
        assert_eq!(about(format!("/projects/{project}/setup")), is_project);
        assert_eq!(about(format!("{BASE}/instances/{instance}/files/content")), is_instance);
        assert_eq!(
            about(format!("/projects/{project}/boots/{instance}/steps")),
            is_instance
        );
        assert_eq!(
            about(format!("{BASE}/projects/{project}/instances/{instance}")),
            is_instance
        );
        for nothing in ["/", "/healthz", "/api/v1/projects", "/api/v1/instances"] {
            assert_eq!(by_path(nothing), None, "{nothing}");
        }
    }
}
