//! The tools for agents over the Model Context Protocol, at `/mcp`. They are those of `hearth mcp`, and reach the API in this process with the token
//! of the request, so that scopes, limits, checks and the audit log are the API's own.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, header};
use axum::response::Response;
use axum::routing::any;
use hearth_api::client::{Client, ClientError, InProcessBody};
use hearth_mcp::Connect;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tower_http::request_id::RequestId;

use crate::http::{AppState, Caller, ForPeople};

/// Where it is.
const PATH: &str = "/mcp";
/// What of a call's request goes along: the token, and how the client reaches us, which addresses of ports are made by.
const PASSED: [HeaderName; 3] = [
    header::AUTHORIZATION,
    header::HOST,
    HeaderName::from_static("x-forwarded-proto"),
];

/// The route, around the API that the tools call. It ends what is under way when `stop` is cancelled.
pub fn routes(api: &Router, stop: CancellationToken) -> Router<AppState> {
    let service = hearth_mcp::http_service(ThisServer { api: api.clone() }, stop);
    let answer = move |_: Caller, request: Request| {
        let service = service.clone();
        async move {
            let mut response = service.handle(request).await.map(Body::new);
            // What it refuses is said as the protocol says it.
            response.extensions_mut().insert(ForPeople);
            response
        }
    };
    Router::new().route(PATH, any(answer))
}

/// The API in this process.
#[derive(Debug, Clone)]
struct ThisServer {
    api: Router,
}

impl Connect for ThisServer {
    fn client(&self, request: Option<&Parts>) -> Result<Client, ClientError> {
        let from = Arc::new(From::of(request));
        let api = self.api.clone();
        let answer = move |request: http::Request<InProcessBody>| {
            let (api, from) = (api.clone(), Arc::clone(&from));
            Box::pin(async move {
                let Ok(response) = api.oneshot(from.request(request)).await;
                answered(response)
            }) as futures::future::BoxFuture<'static, http::Response<InProcessBody>>
        };
        Client::in_process("", Arc::new(answer))
    }
}

/// Where a call came from.
#[derive(Debug, Default)]
struct From {
    headers: HeaderMap,
    extensions: Extensions,
}

impl From {
    fn of(request: Option<&Parts>) -> Self {
        let mut from = Self::default();
        let Some(request) = request else { return from };
        for name in PASSED {
            if let Some(value) = request.headers.get(&name) {
                from.headers.insert(name, value.clone());
            }
        }
        // For the audit log.
        if let Some(address) = request.extensions.get::<ConnectInfo<SocketAddr>>() {
            from.extensions.insert(*address);
        }
        if let Some(id) = request.extensions.get::<RequestId>() {
            from.extensions.insert(id.clone());
        }
        from
    }

    fn request(&self, request: http::Request<InProcessBody>) -> Request {
        let (mut parts, body) = request.into_parts();
        parts.headers.extend(self.headers.clone());
        parts.extensions.extend(self.extensions.clone());
        Request::from_parts(parts, Body::new(body))
    }
}

fn answered(response: Response) -> http::Response<InProcessBody> {
    response.map(|body| InProcessBody::wrap_stream(body.into_data_stream()))
}
