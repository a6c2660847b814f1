//! Who has signed in, and the API as they may use it: each call is an operation of the public API, in this process.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, FromRef, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use futures::StreamExt as _;
use hearth_api::error::ErrorCode;
use hearth_api::token::Scope;
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;
use tower_http::request_id::RequestId;

use super::Pages;
use super::form::Fields;
use super::refusal::Refusal;
use super::session::{PROOF_FIELD, PROOF_HEADER, Session, is_opened, is_own_origin};
use crate::http::{AppState, BASE, Caller, MAX_BODY_BYTES};

/// Headers that say how the client reaches us: links to ports are made by them.
const OUTER: [HeaderName; 2] = [header::HOST, HeaderName::from_static("x-forwarded-proto")];
/// What htmx says of its requests.
const HTMX: &str = "hx-request";
/// What it does then: it loads the whole page again, which leads to the sign-in.
const RELOAD: HeaderName = HeaderName::from_static("hx-refresh");

impl FromRef<Pages> for AppState {
    fn from_ref(pages: &Pages) -> Self {
        pages.state.clone()
    }
}

/// Somebody who has signed in.
#[derive(Clone)]
pub struct Visitor {
    pub caller: Caller,
    pub state: AppState,
    /// What their forms send along.
    pub proof: String,
    session: Session,
    api: Router,
    outer: HeaderMap,
    /// Where they ask from, and their request's id, for the audit log.
    address: Option<ConnectInfo<SocketAddr>>,
    request_id: Option<RequestId>,
}

impl Visitor {
    /// By the cookie alone: what else must be shown, the extractors know.
    pub async fn by_cookie(
        headers: &HeaderMap,
        extensions: &Extensions,
        pages: &Pages,
    ) -> Result<Option<Self>, Refusal> {
        let Some(session) = Session::of(headers) else {
            return Ok(None);
        };
        let Some(row) = session.token(&pages.state.store).await? else {
            return Ok(None);
        };
        let caller = match Caller::of_row(&pages.state, row).map_err(Refusal::from) {
            Ok(caller) => caller,
            Err(refusal) if refusal.code() == ErrorCode::Unauthorized => return Ok(None),
            Err(refusal) => return Err(refusal),
        };
        let outer = OUTER.into_iter().filter_map(|name| {
            let value = headers.get(&name)?.clone();
            Some((name, value))
        });
        Ok(Some(Self {
            caller,
            state: pages.state.clone(),
            proof: session.proof(),
            session,
            api: pages.api.clone(),
            outer: outer.collect(),
            address: extensions.get().copied(),
            request_id: extensions.get().cloned(),
        }))
    }

    /// The headers that say how they reach us.
    pub fn outer(&self) -> &HeaderMap {
        &self.outer
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// 403 unless this shows that one of our pages asks.
    pub fn check(&self, shown: Option<&str>, headers: &HeaderMap) -> Result<(), Refusal> {
        if is_own_origin(headers) && shown.is_some_and(|shown| self.session.is_proof(shown)) {
            return Ok(());
        }
        let why = "this request did not come from a page of this server; load the page again, and try once more";
        Err(Refusal::new(ErrorCode::Forbidden, why))
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.caller.has(scope)
    }

    /// Whether host and templates are shown to them.
    pub fn may_see_host(&self) -> bool {
        self.caller.need_host().is_ok()
    }

    /// A `GET` of the API; the path is below `/api/v1`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.ask(Method::GET, path, Body::empty()).await
    }

    /// Any other operation, with a JSON body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Refusal> {
        // Plain structs do not fail to serialise.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.ask(method, path, Body::from(body)).await
    }

    /// One without a body.
    pub async fn order<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Refusal> {
        self.ask(method, path, Body::empty()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, Refusal> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let response = self.pass(request, path).await?;
        let is_done = response.status().is_success();
        let broken = || Refusal::new(ErrorCode::InternalError, "the server could not read its own answer");
        let body = to_bytes(response.into_body(), MAX_BODY_BYTES)
            .await
            .map_err(|_| broken())?;
        if !is_done {
            return Err(Refusal::of_body(&body));
        }
        serde_json::from_slice(&body).map_err(|error| {
            tracing::error!(%error, path, "an answer of the API is not what a page takes it for");
            broken()
        })
    }

    /// A text that the API answers, its last bytes where it is long.
    pub async fn text(&self, path: &str, most: usize) -> Result<String, Refusal> {
        let response = self.pass(Request::new(Body::empty()), path).await?;
        if !response.status().is_success() {
            return Err(self.refusal_of(response).await);
        }
        let mut kept = Vec::new();
        let mut chunks = response.into_body().into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            kept.extend_from_slice(&chunk);
            if kept.len() > 2 * most {
                kept.drain(..kept.len() - most);
            }
        }
        let from = kept.len().saturating_sub(most);
        Ok(String::from_utf8_lossy(&kept[from..]).into_owned())
    }

    /// What an answer of the API refuses.
    pub async fn refusal_of(&self, response: Response) -> Refusal {
        let body = to_bytes(response.into_body(), MAX_BODY_BYTES).await.unwrap_or_default();
        Refusal::of_body(&body)
    }

    /// Passes a request on to the API, at this path: its body, its own headers and its upgrade come along.
    pub async fn pass(&self, request: Request, path: &str) -> Result<Response, Refusal> {
        let uri: Result<Uri, _> = format!("{BASE}{path}").parse();
        let (mut old, body) = request.into_parts();
        let mut request = Request::new(body);
        *request.method_mut() = old.method;
        *request.uri_mut() = uri.map_err(|_| Refusal::new(ErrorCode::NotFound, "there is no such page"))?;
        *request.headers_mut() = old.headers;
        let headers = request.headers_mut();
        for name in [header::COOKIE, header::AUTHORIZATION] {
            headers.remove(name);
        }
        for (name, value) in &self.outer {
            headers.insert(name, value.clone());
        }
        // What routing has left in the others is about our path, and not the API's.
        let extensions = request.extensions_mut();
        if let Some(upgrade) = old.extensions.remove::<OnUpgrade>() {
            extensions.insert(upgrade);
        }
        extensions.insert(self.caller.clone());
        if let Some(address) = self.address {
            extensions.insert(address);
        }
        if let Some(id) = &self.request_id {
            extensions.insert(id.clone());
        }
        let Ok(response) = self.api.clone().oneshot(request).await;
        Ok(response)
    }
}

impl FromRequestParts<Pages> for Visitor {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, pages: &Pages) -> Result<Self, Response> {
        let headers = &parts.headers;
        let visitor = Self::by_cookie(headers, &parts.extensions, pages)
            .await
            .map_err(Refusal::into_response)?;
        let Some(visitor) = visitor else {
            return Err(sign_in_first(parts));
        };
        // Over plain http browsers do not say who asks, but for the origin of what a script of another page opens: a socket, say.
        let is_page =
            is_opened(headers) && !headers.contains_key(header::UPGRADE) && !headers.contains_key(header::ORIGIN);
        if parts.method == Method::GET && is_page {
            return Ok(visitor);
        }
        let in_header = headers.get(PROOF_HEADER).and_then(|value| value.to_str().ok());
        let query = Fields::parse(parts.uri.query().unwrap_or_default());
        let shown = in_header.or_else(|| query.get(PROOF_FIELD));
        visitor.check(shown, headers).map_err(Refusal::into_response)?;
        Ok(visitor)
    }
}

/// To the sign-in, and back.
pub fn sign_in_first(parts: &Parts) -> Response {
    if parts.headers.contains_key(HTMX) {
        return (StatusCode::UNAUTHORIZED, [(RELOAD, HeaderValue::from_static("true"))]).into_response();
    }
    if !is_opened(&parts.headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let back = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    if back == "/" || parts.method != Method::GET {
        return Redirect::to("/sign-in").into_response();
    }
    let next = form_urlencoded::Serializer::new(String::new())
        .append_pair("next", back)
        .finish();
    Redirect::to(&format!("/sign-in?{next}")).into_response()
}
