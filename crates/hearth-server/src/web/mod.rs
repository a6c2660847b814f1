//! The pages for people. They do nothing that the API does not: each calls the API's operations in this process, for the token that has
//! signed in ([`visitor`]), so that scopes, tenants, checks and messages are the API's own. They are whole without scripts but for what
//! moves (counts, a boot's output, a terminal).
//!
//! What a page shows may be hostile: names, commands, output, branches. maud escapes all of it, and the policy below lets no script or
//! style run that is not a file of ours.

mod advice;
mod assets;
mod audit;
mod boot;
mod charts;
mod claims;
mod course;
mod done;
mod drawing;
mod files;
mod form;
mod frame;
mod history;
mod host;
mod instance;
mod openid;
mod parts;
mod pool;
mod project;
mod projects;
mod refusal;
mod session;
mod setup;
mod sign_in;
mod terminal;
mod tokens;
mod variables;
mod visitor;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hearth_api::error::ErrorCode;
use hearth_image::Stores;
use tower_http::compression::CompressionLayer;

pub use self::openid::Provider;
use self::refusal::Refusal;
use crate::http::{ApiError, AppState, BASE, ForPeople, wants_page};
use crate::options::ServeOptions;

/// What may be loaded, run, asked and framed: files and answers of this server alone.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; frame-ancestors 'none'; \
     form-action 'self'; base-uri 'none'",
);

/// What every page has.
#[derive(Clone)]
struct Pages {
    state: AppState,
    /// The API, without what is around it.
    api: Router,
    /// What `hearth doctor` would check.
    data_dir: PathBuf,
    images: Stores,
    /// Where people may sign in without a token.
    openid: Option<Arc<Provider>>,
}

impl Pages {
    /// 404 where nobody signs in so.
    fn provider(&self) -> Result<&Provider, Refusal> {
        let why = "no one signs in by OpenID Connect here: the server was started without `--openid-issuer`";
        self.openid
            .as_deref()
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound, why))
    }
}

/// The pages, around the API that they call.
pub fn pages(state: AppState, api: Router, openid: Option<Arc<Provider>>, options: &ServeOptions) -> Router<AppState> {
    let pages = Pages {
        state,
        api,
        data_dir: options.data_dir.clone(),
        images: Stores::new(&options.data_dir, options.shared_images.clone()),
        openid,
    };
    let shown = Router::new()
        .route("/", get(projects::list))
        .route("/sign-in", get(sign_in::show).post(sign_in::sign_in))
        .route("/sign-in/openid", get(openid::begin))
        .route("/sign-in/openid/back", get(openid::come_back))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/projects", post(project::create))
        .route("/projects/new", get(project::new))
        .route("/projects/{project}", get(pool::show).post(pool::change))
        .route("/projects/{project}/pool", get(pool::live))
        .route("/projects/{project}/retry", post(pool::retry))
        .route("/projects/{project}/clear", post(pool::clear))
        .route("/projects/{project}/delete", post(project::delete))
        .route("/projects/{project}/claim", post(claims::claim))
        .route("/projects/{project}/test", post(boot::start))
        .route("/projects/{project}/boots/{instance}", get(boot::show))
        .route("/projects/{project}/boots/{instance}/steps", get(boot::live))
        .route("/projects/{project}/boots/{instance}/events", get(boot::events))
        .route("/projects/{project}/boots/{instance}/cancel", post(boot::cancel))
        .route("/projects/{project}/setup", get(setup::show))
        .route("/projects/{project}/setup/commands", post(setup::save_commands))
        .route("/projects/{project}/setup/project", post(setup::save_project_commands))
        .route("/projects/{project}/setup/object", post(setup::save_object))
        .route("/projects/{project}/setup/variables", post(variables::save))
        .route("/projects/{project}/setup/variables/delete", post(variables::delete))
        .route("/projects/{project}/history", get(history::show))
        .route("/projects/{project}/history/{instance}", get(history::boot))
        .route("/projects/{project}/advice", get(advice::show))
        .route("/claims", get(claims::list))
        .route("/charts", get(charts::show))
        .route("/host", get(host::show))
        .route("/host/doctor", get(host::doctor))
        .route("/audit", get(audit::show))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{token}/revoke", post(tokens::revoke))
        .route("/instances/{instance}", get(instance::show))
        .route("/instances/{instance}/inside", get(instance::inside))
        .route("/instances/{instance}/ports/{port}", get(instance::preview))
        .route("/instances/{instance}/logs/{log}", get(instance::log))
        .route("/instances/{instance}/sessions/{session}", get(instance::session))
        .route("/instances/{instance}/{action}", post(instance::act))
        .route("/instances/{instance}/files", get(files::list))
        .route("/instances/{instance}/file", get(files::download).put(files::upload))
        .route("/instances/{instance}/terminal", get(terminal::show))
        .route("/instances/{instance}/terminal/socket", get(terminal::socket))
        .layer(map_response(never_kept));
    shown
        .route(assets::PATH, get(assets::file))
        .fallback(nowhere)
        .layer(CompressionLayer::new())
        .layer(map_response(guarded))
        .with_state(pages)
}

/// What leads nowhere: a page for people, a refusal of the API for programs.
async fn nowhere(request: Request) -> Response {
    if wants_page(request.headers()) && !request.uri().path().starts_with(BASE) {
        Refusal::new(ErrorCode::NotFound, "there is no such page").into_response()
    } else {
        ApiError::not_found("path").into_response()
    }
}

/// What is shown to one is not kept for another.
async fn never_kept(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What every answer says to a browser.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ] {
        headers.insert(name, value);
    }
    response.extensions_mut().insert(ForPeople);
    response
}
