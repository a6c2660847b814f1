//! OpenAI's Agents API with self-hosted environments: a receiver of its webhooks. A session that waits for its environment gets a VM in which
//! `codex exec-server` runs. A delivery is answered with success when the worker runs, and else with 503, so that it is delivered again: nothing
//! is kept here that a restart would lose.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hearth_api::client::Client;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::order::Order;
use super::outcome::Outcome;
use super::signature::{Signed, Verifier};
use super::{RelayOptions, needed};
use crate::args::Globals;
use crate::failure::{EXIT_USAGE, Failure};
use crate::{connect, output};

/// The webhook endpoint's secret.
const WEBHOOK_SECRET: &str = "OPENAI_WEBHOOK_SECRET";
/// Reads sessions. It stays here.
const API_KEY: &str = "OPENAI_API_KEY";
/// May connect environments and nothing else; the worker gets it, as [`WORKER_KEY`].
const EXECUTOR_KEY: &str = "OPENAI_EXECUTOR_API_KEY";
const WORKER_KEY: &str = "CODEX_API_KEY";
/// The beta that sessions belong to.
const BETA: (&str, &str) = ("openai-beta", "agents=v1");
/// Events say little.
const MOST_BYTES: usize = 256 * 1024;
/// How long the API has to say what a session is.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// How long headers may take to arrive.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a whole request may.
const BODY_PATIENCE: Duration = Duration::from_secs(20);
/// After so long a delivery may be tried again, seconds.
const RETRY_AFTER: &str = "10";

/// `hearth relay openai`.
#[derive(Debug, Args)]
#[command(after_help = "\
It needs OPENAI_WEBHOOK_SECRET (of the endpoint), OPENAI_API_KEY (reads sessions, stays here) and OPENAI_EXECUTOR_API_KEY (may connect environments
only; the worker gets it). Register its address, behind a proxy with TLS, for agent.session.action_required and agent.session.failed.")]
pub(crate) struct OpenaiArgs {
    #[command(flatten)]
    options: RelayOptions,
    /// Where webhooks are received
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7727")]
    listen: SocketAddr,
    /// Where sessions are read
    #[arg(
        long,
        value_name = "URL",
        env = "OPENAI_BASE_URL",
        default_value = "https://api.openai.com/v1"
    )]
    api: String,
    /// The worker's program and first arguments, instead of `codex exec-server`; `--remote URL --environment-id ID` follow
    #[arg(last = true, value_name = "COMMAND")]
    worker: Vec<String>,
}

/// What every delivery is answered with.
struct Receiver {
    hearth: Client,
    options: RelayOptions,
    verifier: Verifier,
    http: reqwest::Client,
    api: String,
    api_key: SecretString,
    executor_key: SecretString,
    worker: Vec<String>,
}

/// A webhook event.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    data: EventData,
}

#[derive(Debug, Deserialize)]
struct EventData {
    /// The session's.
    id: String,
    required_action: Option<Action>,
}

#[derive(Debug, Deserialize)]
struct Action {
    #[serde(rename = "type")]
    kind: String,
}

impl Action {
    fn connects(&self) -> bool {
        self.kind == "environment_connection"
    }
}

/// A session as the API shows it.
#[derive(Debug, Deserialize)]
struct Session {
    environment: Option<Environment>,
    #[serde(default)]
    required_actions: Vec<Action>,
    metadata: Option<Metadata>,
}

#[derive(Debug, Deserialize)]
struct Environment {
    #[serde(rename = "type")]
    kind: String,
    id: Option<String>,
    remote_url: Option<String>,
}

/// What the application that made the session says about it.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    repository: Option<String>,
    revision: Option<String>,
}

pub(super) async fn run(globals: &Globals, args: OpenaiArgs) -> Result<u8, Failure> {
    let usage = |outcome: Outcome| match outcome {
        Outcome::Done(text) | Outcome::Again(text) | Outcome::Blocked(text) => Failure::usage(text),
    };
    let verifier = Verifier::new(&needed(WEBHOOK_SECRET).map_err(usage)?)
        .ok_or_else(|| Failure::usage(format!("{WEBHOOK_SECRET} is no secret of a webhook endpoint: whsec_…")))?;
    // The client below uses what the process has installed; both are the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().timeout(API_TIMEOUT).build();
    let receiver = Arc::new(Receiver {
        hearth: connect::client(globals)?,
        options: args.options,
        verifier,
        http: http.map_err(|error| Failure::new(format!("no client of the API can be made: {error}")))?,
        api: args.api.trim_end_matches('/').to_owned(),
        api_key: needed(API_KEY).map_err(usage)?.into(),
        executor_key: needed(EXECUTOR_KEY).map_err(usage)?.into(),
        worker: match args.worker.is_empty() {
            true => ["codex", "exec-server"].map(str::to_owned).into(),
            false => args.worker,
        },
    });
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Failure::new(format!("nothing can be received at {}: {error}", args.listen)).with_code(EXIT_USAGE)
    })?;
    let address = listener.local_addr()?;
    output::note(&format!("receiving webhooks at http://{address}/"));
    let mut stop = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&receiver)))),
                // Too many files are open, say: the next one may work.
                Err(error) => {
                    output::note(&format!("a connection could not be taken: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = stop.recv() => return Ok(0),
            _ = tokio::signal::ctrl_c() => return Ok(0),
        }
    }
}

async fn serve(stream: tokio::net::TcpStream, receiver: Arc<Receiver>) {
    let service = service_fn(move |request| {
        let receiver = Arc::clone(&receiver);
        async move { Ok::<_, Infallible>(receiver.answer(request).await) }
    });
    // A client that goes away is no fault of ours.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn reply(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

impl Receiver {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() == Method::GET && request.uri().path() == "/healthz" {
            return reply(StatusCode::OK, "ok");
        }
        if request.method() != Method::POST {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "webhooks are posted");
        }
        let (head, body) = request.into_parts();
        let body = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, MOST_BYTES).collect());
        let Ok(Ok(body)) = body.await else {
            return reply(StatusCode::BAD_REQUEST, "the body is too long, or did not come");
        };
        let body = body.to_bytes();
        let signed = Signed {
            id: header_text(&head.headers, "webhook-id"),
            time: header_text(&head.headers, "webhook-timestamp"),
            signatures: header_text(&head.headers, "webhook-signature"),
        };
        if !self.verifier.accepts(signed, &body, Timestamp::now()) {
            return reply(
                StatusCode::BAD_REQUEST,
                "the signature is not of this endpoint's secret, or too old",
            );
        }
        let Ok(event) = serde_json::from_slice::<Event>(&body) else {
            // Of a kind that says other things.
            return reply(StatusCode::OK, "nothing to do");
        };
        let outcome = match (event.kind.as_str(), &event.data.required_action) {
            ("agent.session.action_required", Some(action)) if action.connects() => self.connect(&event.data.id).await,
            ("agent.session.failed", _) => self.release(&event.data.id).await,
            _ => return reply(StatusCode::OK, "nothing to do"),
        };
        outcome.say();
        match outcome {
            Outcome::Done(_) => reply(StatusCode::OK, "done"),
            // Also where a person has to do something: it is delivered again, and they may have done it by then.
            Outcome::Again(_) | Outcome::Blocked(_) => {
                reply(StatusCode::SERVICE_UNAVAILABLE, "not done; see the receiver's log")
            }
        }
    }

    /// Gives the session its environment, if it still waits for one.
    async fn connect(&self, id: &str) -> Outcome {
        let session = match self.session(id).await {
            Ok(Some(session)) => session,
            Ok(None) => return Outcome::Done(format!("the session {id} is gone")),
            Err(outcome) => return outcome,
        };
        let waits = session.required_actions.iter().any(Action::connects);
        let environment = session
            .environment
            .filter(|environment| environment.kind == "self_hosted" && waits);
        let Some(environment) = environment else {
            return Outcome::Done(format!("the session {id} waits for no environment of ours"));
        };
        let (Some(environment), Some(url)) = (environment.id, environment.remote_url) else {
            return Outcome::Again(format!("the session {id} does not say how its environment connects"));
        };
        let metadata = session.metadata.unwrap_or_default();
        let mut worker = self.worker.clone();
        worker.extend(["--remote".to_owned(), url, "--environment-id".to_owned(), environment]);
        let order = Order {
            key: id.to_owned(),
            // A session whose environment has ended asks for another one when it works again.
            once: false,
            repository: metadata.repository,
            revision: metadata.revision,
            env: vec![(WORKER_KEY, self.executor_key.expose_secret().to_owned())],
            worker,
        };
        order.submit(&self.hearth, &self.options).await
    }

    /// The session as it is now; `None` when there is none any more.
    async fn session(&self, id: &str) -> Result<Option<Session>, Outcome> {
        let mut url = reqwest::Url::parse(&self.api)
            .map_err(|error| Outcome::Blocked(format!("the API's address cannot be used: {error}")))?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["agents", "sessions", id]);
        }
        let again =
            |error: reqwest::Error| Outcome::Again(format!("the session {id} cannot be read: {}", error.without_url()));
        let asked = self
            .http
            .get(url)
            .header(BETA.0, BETA.1)
            .bearer_auth(self.api_key.expose_secret());
        let answer = asked.send().await.map_err(again)?;
        match answer.status().as_u16() {
            404 => Ok(None),
            200..=299 => Ok(Some(answer.json().await.map_err(again)?)),
            status @ (401 | 403) => Err(Outcome::Blocked(format!(
                "the session {id} cannot be read: {API_KEY} is refused ({status})"
            ))),
            status => Err(Outcome::Again(format!(
                "the session {id} cannot be read: HTTP {status}"
            ))),
        }
    }

    /// Gives the VM of a session back that has failed.
    async fn release(&self, id: &str) -> Outcome {
        let claims = match self.hearth.list_claims(None).await {
            Ok(claims) => claims.items,
            Err(error) => return error.into(),
        };
        let later = format!("{id}~");
        let of_session = claims.into_iter().filter(|claim| {
            let task = claim.task_id.as_deref().unwrap_or_default();
            task == id || task.starts_with(&later)
        });
        for claim in of_session {
            match self.hearth.release(&claim.id).await {
                Ok(_) => {}
                // Its worker ended at the same time.
                Err(error) if error.is_not_found() => {}
                Err(error) => return error.into(),
            }
        }
        Outcome::Done(format!("the failed session {id} has no VM any more"))
    }
}
