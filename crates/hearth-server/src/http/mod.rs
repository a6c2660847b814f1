//! The HTTP API. Only this module knows axum, and only [`error`] chooses a status.

mod advice;
mod audit;
mod auth;
mod branches;
mod claims;
mod classify;
mod credentials;
mod egress;
mod error;
mod events;
mod exec;
mod exec_end;
mod exec_socket;
mod explain;
mod extract;
mod files;
mod find;
mod forks;
mod history;
mod hooks;
mod imports;
mod instances;
mod logs;
mod metrics;
mod openapi;
mod pace;
mod pause;
mod pool;
mod ports;
mod projects;
mod relay;
mod root;
mod schedule;
mod schema;
mod servers;
mod sessions;
mod setup;
mod socket;
mod span;
mod ssh;
mod templates;
mod terminal;
mod tls;
mod tokens;
mod validate;
mod variables;
mod webhooks;

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use axum_server::Server;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::RustlsAcceptor;
use hearth_api::error::ErrorCode;
use hyper_util::rt::TokioTimer;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::classify::SharedClassifier;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::audit::AuditLog;
use crate::builds::live_log::LiveLogs;
use crate::claims::Claims;
use crate::events::Feed;
use crate::metrics::Metrics;
use crate::options::Listener;
use crate::pools::act::Actor;
use crate::pools::observe::Observer;
use crate::pools::orders::Orders;
use crate::recipes::set_ups::SetUps;
use crate::repos::mirror_gc::MirrorGc;
use crate::repos::mirrors::Mirrors;
use crate::repos::watch::Watch;
use crate::servers::Servers;
use crate::status::PoolStatus;
use crate::store::Store;
use crate::templates::gc::Gc;
use crate::templates::images::Images;
use crate::vms::connections::Connections;
use crate::vms::egress::Egress;
use crate::vms::pause::Pause;
use crate::vms::probe::Probes;
use crate::wake::Wake;
use crate::webhooks::Webhooks;

pub use audit::{About, Asked, Came};
pub use auth::{Caller, new_token};
pub use claims::own_claim;
pub use error::{ApiError, status_of};
pub use exec::{Inside, answered, reach};
pub use extract::{MAX_BODY_BYTES, read};
pub use files::content::{Incoming, describe, part_of, tag_of};
pub use forks::{after_stop, keep_checkpoint, need_owner};
pub use hooks::HookGate;
pub use metrics::answer_metrics;
pub use pace::Pace;
pub use pause::claimed_and_there;
pub use pool::need_allowed;
pub use ports::{LOCAL_DOMAIN, Outside, PortAccess, Proxied, VisitorLimit, outer_host, outer_scheme};
pub use ports::{answer as answer_port, pass as pass_to_port};
pub use relay::{Relay, Relayed, Subject};
pub use root::{places, wants_page};
pub use sessions::attach::Reading;
pub use tls::{Tls, TlsError};

/// Where the API is.
pub const BASE: &str = "/api/v1";
/// Names a request in the log and to the client.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long an ordinary request may take; those that wait, run or stream are not under it.
const REQUEST_PATIENCE: Duration = Duration::from_secs(120);

/// Everything that is wrong with a body by the published schema of this name.
#[must_use]
pub fn body_faults(schema: &str, body: &serde_json::Value) -> Vec<hearth_api::error::FieldError> {
    schema::faults(schema, body)
}

/// The published OpenAPI document.
#[must_use]
pub fn openapi_document() -> &'static serde_json::Value {
    &openapi::DOCUMENT
}

/// What every handler has.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The rows.
    pub store: Store,
    /// Wakes the pools' loop.
    pub wake: Wake,
    /// Orders instances: test boots and renewals.
    pub orders: Orders,
    /// Ends boots.
    pub boots: Actor,
    /// Looks at pools.
    pub pools: Observer,
    /// Says why pools are as they are.
    pub status: PoolStatus,
    /// Looks after checkpoints.
    pub gc: Gc,
    /// Which images there are.
    pub images: Images,
    /// Looks after mirrors.
    pub mirror_gc: MirrorGc,
    /// Connections to the agents.
    pub connections: Connections,
    /// Asks VMs whether they answer.
    pub probes: Probes,
    /// The clients that watch boots.
    pub live_logs: LiveLogs,
    /// The repositories on the host.
    pub mirrors: Mirrors,
    /// How long a repository may take to be fetched.
    pub command_timeout: Duration,
    /// Hands VMs over.
    pub claims: Claims,
    /// Pauses and resumes VMs.
    pub pause: Pause,
    /// Holds VMs to egress policies.
    pub egress: Egress,
    /// What VMs were made by.
    pub set_ups: SetUps,
    /// Follows branches.
    pub watch: Watch,
    /// What stands before the webhooks.
    pub hooks: HookGate,
    /// Where repositories without a URL come from.
    pub git_base_url: String,
    /// How often a token may ask.
    pub pace: Pace,
    /// Longest wait of a claim.
    pub longest_wait: Duration,
    /// How ports of VMs are reached.
    pub ports: PortAccess,
    /// What happens, for who watches.
    pub feed: Feed,
    /// What is counted.
    pub metrics: Metrics,
    /// Who did what.
    pub audit: AuditLog,
    /// Posts events.
    pub webhooks: Webhooks,
    /// The servers of this database.
    pub servers: Servers,
    /// Passes requests on to them.
    pub relay: Relay,
}

impl AppState {
    fn store(&self) -> &Store {
        &self.store
    }
}

/// An answer for people: it stays in the form that it has.
#[derive(Debug, Clone, Copy)]
pub struct ForPeople;

/// How a server answers.
#[derive(Debug, Clone)]
pub struct Answering {
    /// What ports are listened at with; unix sockets speak plain HTTP.
    pub tls: Option<Tls>,
    /// How long headers may take to arrive.
    pub patience: Duration,
    /// How long requests that are under way may take to end.
    pub drain: Duration,
}

/// Answers requests at all of these until `stop`, then lets those under way end. `pages` makes what is beside the API, from the API that it
/// is to call; `around` what sees a request first.
pub async fn answer(
    listeners: Vec<Listener>,
    state: AppState,
    pages: impl FnOnce(Router) -> Router<AppState> + Send,
    around: impl FnOnce(Router) -> Router + Send,
    stop: CancellationToken,
    answering: Answering,
) -> std::io::Result<()> {
    let router = around(router(state, pages));
    let all = listeners.into_iter().map(|listener| {
        let (router, stop, answering) = (router.clone(), stop.clone(), &answering);
        async move {
            // Output, terminals and ports are small messages one after the other: without this the second waits 40 ms for the
            // acknowledgement of the first.
            let at_once = NoDelayAcceptor::new();
            let served = match (listener, &answering.tls) {
                (Listener::Tcp(listener), None) => {
                    let make = router.into_make_service_with_connect_info::<SocketAddr>();
                    let server = axum_server::from_tcp(listener)?.acceptor(at_once);
                    set_up(server, &stop, answering).serve(make).await
                }
                (Listener::Tcp(listener), Some(tls)) => {
                    let router = router.layer(axum::middleware::map_request(came_by_tls));
                    let make = router.into_make_service_with_connect_info::<SocketAddr>();
                    let acceptor = RustlsAcceptor::new(tls.config()).acceptor(at_once);
                    let server = axum_server::from_tcp(listener)?.acceptor(acceptor);
                    set_up(server, &stop, answering).serve(make).await
                }
                (Listener::Unix(listener, _file), _) => {
                    // Who connects there is on this machine.
                    let here = SocketAddr::from(([127, 0, 0, 1], 0));
                    let make = router.layer(Extension(ConnectInfo(here))).into_make_service();
                    set_up(axum_server::from_unix(listener)?, &stop, answering)
                        .serve(make)
                        .await
                }
            };
            // Where one cannot be served any more, the others end too: a server that is half there is restarted by nobody.
            stop.cancel();
            served
        }
    });
    futures::future::join_all(all).await.into_iter().collect()
}

/// The limits of a connection, and its end.
fn set_up<A, C>(server: Server<A, C>, stop: &CancellationToken, answering: &Answering) -> Server<A, C>
where
    A: axum_server::Address + Send + 'static,
{
    let handle = axum_server::Handle::new();
    let (patience, drain) = (answering.patience, answering.drain);
    let mut server = server.handle(handle.clone()).first_request_timeout(patience);
    // HTTP/1 alone: HTTP/2 has many more things that need a limit, and no client of ours needs it. Not by axum-server's
    // own `http1_only`, which takes protocol upgrades away.
    let builder = server.http_builder();
    *builder = builder.clone().http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    let stop = stop.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        handle.graceful_shutdown(Some(drain));
    });
    server
}

/// What a proxy in front would say; a client's own word does not count here.
async fn came_by_tls(mut request: Request) -> Request {
    const HTTPS: HeaderValue = HeaderValue::from_static("https");
    request.headers_mut().insert(ports::FORWARDED_PROTO, HTTPS);
    request
}

/// The whole route table; each path stands at its handler.
fn routes() -> OpenApiRouter<AppState> {
    let quick = OpenApiRouter::new()
        .routes(routes!(projects::list_projects, projects::create_project))
        .routes(routes!(
            projects::get_project,
            projects::patch_project,
            projects::delete_project
        ))
        .routes(routes!(projects::view_project))
        .routes(routes!(branches::list_branches))
        .routes(routes!(setup::get_setup, setup::patch_setup))
        .routes(routes!(imports::import_setup))
        .routes(routes!(
            variables::list_shared_variables,
            variables::put_shared_variables
        ))
        .routes(routes!(variables::delete_shared_variable))
        .routes(routes!(
            variables::list_personal_variables,
            variables::put_personal_variables
        ))
        .routes(routes!(variables::delete_personal_variable))
        .routes(routes!(pool::get_pool, pool::patch_pool))
        .routes(routes!(pool::test_pool))
        .routes(routes!(pool::clear_pool))
        .routes(routes!(pool::retry_pool))
        .routes(routes!(instances::list_instances))
        .routes(routes!(instances::get_instance))
        .routes(routes!(instances::view_instance, instances::end_boot))
        .routes(routes!(claims::release_instance))
        .routes(routes!(claims::heartbeat_instance))
        .routes(routes!(claims::extend_claim))
        .routes(routes!(find::find_projects))
        .routes(routes!(find::find_instances))
        .routes(routes!(find::list_claims))
        .routes(routes!(explain::explain_pool))
        .routes(routes!(explain::explain_claim))
        .routes(routes!(templates::list_templates))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(credentials::list_credentials, credentials::put_credentials))
        .routes(routes!(credentials::delete_credential))
        .routes(routes!(forks::list_checkpoints))
        .routes(routes!(forks::delete_checkpoint))
        .routes(routes!(egress::get_egress, egress::put_egress))
        .routes(routes!(egress::get_instance_egress))
        .routes(routes!(schedule::get_pool_schedule, schedule::put_pool_schedule))
        .routes(routes!(audit::read_audit))
        .routes(routes!(history::get_history))
        .routes(routes!(history::get_history_boot))
        .routes(routes!(advice::advise_pool))
        .routes(routes!(webhooks::list_webhooks, webhooks::create_webhook))
        .routes(routes!(webhooks::delete_webhook))
        .routes(routes!(webhooks::list_deliveries))
        .routes(routes!(webhooks::replay_delivery))
        .routes(routes!(servers::list_servers))
        .routes(routes!(servers::put_pool_home))
        .layer(patience());
    let hooks = OpenApiRouter::new()
        .routes(routes!(hooks::take_git_hook))
        .layer(patience());
    let slow = OpenApiRouter::new()
        .routes(routes!(claims::claim_instance))
        .routes(routes!(templates::verify_templates))
        .routes(routes!(instances::follow_instance))
        .routes(routes!(exec::exec_in_instance, exec_socket::attach_exec))
        .routes(routes!(terminal::open_terminal))
        .routes(routes!(logs::list_instance_logs))
        .routes(routes!(logs::read_instance_log))
        .routes(routes!(
            files::content::read_file,
            files::content::write_file,
            files::remove_file
        ))
        .routes(routes!(files::stat_file))
        .routes(routes!(files::list_files))
        .routes(routes!(files::make_directory))
        .routes(routes!(files::move_file))
        .routes(routes!(files::watch::watch_files))
        .routes(routes!(files::tree::read_folder, files::tree::write_folder))
        .routes(routes!(sessions::list_sessions, sessions::start_session))
        .routes(routes!(sessions::get_session, sessions::remove_session))
        .routes(routes!(sessions::attach::attach_session))
        .routes(routes!(sessions::output::read_session_output))
        .routes(routes!(sessions::write_session_stdin))
        .routes(routes!(sessions::resize_session))
        .routes(routes!(sessions::signal_session))
        .routes(routes!(sessions::wait_session))
        .routes(routes!(sessions::list_processes))
        .routes(routes!(ports::list_ports))
        .routes(routes!(ports::share_port))
        .routes(routes!(ports::open_tunnel))
        .routes(routes!(ssh::allow_ssh))
        .routes(routes!(ssh::open_ssh))
        .routes(routes!(pause::pause_instance))
        .routes(routes!(pause::resume_instance))
        .routes(routes!(forks::fork_instance))
        .routes(routes!(forks::checkpoint_instance))
        .routes(routes!(forks::restore_instance))
        .routes(routes!(events::watch_events));
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .nest(BASE, quick.merge(slow))
        .merge(hooks)
        .routes(routes!(healthz))
        .routes(routes!(readyz))
}

fn patience() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_PATIENCE)
}

fn router(state: AppState, pages: impl FnOnce(Router) -> Router<AppState>) -> Router {
    let (api, _) = routes().split_for_parts();
    // Also what pages ask the API for.
    let api = api.layer(axum::middleware::from_fn_with_state(state.clone(), audit::write_down));
    let relay = axum::middleware::from_fn_with_state(state.clone(), relay::to_its_server);
    let pages = pages(api.clone().layer(relay.clone()).with_state(state.clone()));
    api.merge(pages)
        .route("/metrics", get(metrics::read_metrics))
        .route(openapi::PATH, get(async || Json(&*openapi::DOCUMENT)))
        .route(openapi::SETTINGS_PATH, get(async || Json(&*openapi::SETTINGS_SCHEMA)))
        .merge(documents_page())
        .merge(ports::routes())
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method")
        })
        .layer(axum::middleware::from_fn_with_state(
            state.clone(),
            ports::by_name_or_header,
        ))
        .layer(relay)
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::new(
                ErrorCode::InternalError,
                "the server has a bug here; its log says more, see the request id",
            )
            .into_response()
        }))
        .layer(axum::middleware::map_response(in_error_shape))
        .layer(TraceLayer::new(SharedClassifier::new(classify::OwnFailures)).make_span_with(span::of_request))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, NewRequestId))
        .layer(axum::middleware::map_request(without_bad_request_id))
        .with_state(state)
}

/// The page that shows the document. It loads nothing from elsewhere and sends the document nowhere.
fn documents_page() -> Router<AppState> {
    const POLICY: HeaderValue =
        HeaderValue::from_static("default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:");
    let config = utoipa_swagger_ui::Config::from(openapi::PATH).validator_url("none");
    Router::from(SwaggerUi::new("/docs").config(config)).layer(axum::middleware::map_response(
        async |mut response: Response| {
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
            response
        },
    ))
}

/// Longest request id that is taken from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// A client's own request id is taken when it can stand in a log as it is; otherwise the request gets a new one.
async fn without_bad_request_id(mut request: Request) -> Request {
    let is_good = |id: &HeaderValue| {
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(legal)
    };
    if request.headers().get(REQUEST_ID).is_some_and(|id| !is_good(id)) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

/// Whatever a layer below the handlers refuses leaves in the documented shape too.
async fn in_error_shape(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == "application/json");
    let proxied = response.extensions().get::<ports::Proxied>().is_some();
    let for_people = response.extensions().get::<ForPeople>().is_some();
    if proxied || for_people || is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let mut shaped = ApiError::of_status(status).into_response();
    if let Some(allowed) = response.headers().get(header::ALLOW) {
        shaped.headers_mut().insert(header::ALLOW, allowed.clone());
    }
    shaped
}

/// Request ids that sort by time.
#[derive(Clone)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        HeaderValue::from_str(&id).ok().map(RequestId::new)
    }
}

/// The process answers.
#[derive(serde::Serialize, utoipa::ToSchema)]
struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// The process answers
#[utoipa::path(get, path = "/healthz", tag = "server", responses((status = 200, body = Health, description = "It does")))]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The process can do its work
///
/// Its database answers.
#[utoipa::path(get, path = "/readyz", tag = "server", responses((status = 200, body = Health, description = "It can")))]
async fn readyz(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    state
        .store()
        .ping()
        .await
        .map_err(|error| ApiError::unavailable(error.to_string()))?;
    Ok(healthz().await)
}
