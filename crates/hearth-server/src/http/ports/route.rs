//! Which requests are for a server in a VM: those below a port's path, those that name it in headers, and those for its host name.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use hearth_api::ids::InstanceId;
use hearth_api::port::{INSTANCE_HEADER, PORT_HEADER};

use super::rewrite::Outside;
use super::visitor::{self, Admitted};
use super::{Proxied, address, proxy};
use crate::http::error::ApiError;
use crate::http::{AppState, BASE};

/// How many parts of a path lie before what the server in the VM gets: `api`, `v1`, `instances`, the id, `ports`, the port.
const OUR_PARTS: usize = 6;

/// The paths below which ports are reached; all methods. They are not in the published document: what lies below is not ours.
pub fn routes() -> Router<AppState> {
    let path = format!("{BASE}/instances/{{id}}/ports/{{port}}");
    Router::new()
        .route(&path, any(by_path))
        .route(&format!("{path}/"), any(by_path))
        .route(&format!("{path}/{{*rest}}"), any(by_path))
}

/// A request below a port's path.
pub async fn by_path(State(state): State<AppState>, parameters: RawPathParams, request: Request) -> Response {
    let page = crate::http::wants_page(request.headers());
    let find = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let named = find("id")
        .and_then(|id| id.parse().ok())
        .zip(find("port").and_then(parse_port));
    let Some((id, port)) = named else {
        let error = ApiError::field("port", "the path must name a port from 1 to 65535 of an instance");
        return visitor::refusal(error, page);
    };
    let (ours, rest) = split(request.uri());
    if !rest.starts_with('/') {
        // Without the slash, what a page names relative to itself would be looked for one folder too high.
        let to = match request.uri().query() {
            Some(query) => format!("{ours}/?{query}"),
            None => format!("{ours}/"),
        };
        return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, to)]).into_response();
    }
    let prefix = address::path(&id, port);
    answer(&state, request, &id, port, prefix, &rest).await
}

/// A request that names a port in its headers or by its host; every other one passes.
pub async fn by_name_or_header(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let named = match by_header(request.headers()) {
        Some(Ok(named)) => Some(named),
        Some(Err(error)) => return error.into_response(),
        None => {
            let host = address::outer_host(request.headers());
            let domain = state.ports.domain.as_deref();
            host.zip(domain).and_then(|(host, domain)| address::named(host, domain))
        }
    };
    let Some((port, id)) = named else {
        return next.run(request).await;
    };
    let rest = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    answer(&state, request, &id, port, String::new(), &rest).await
}

fn by_header(headers: &HeaderMap) -> Option<Result<(u16, InstanceId), ApiError>> {
    let (id, port) = (headers.get(INSTANCE_HEADER), headers.get(PORT_HEADER));
    if id.is_none() && port.is_none() {
        return None;
    }
    let text = |value: Option<&HeaderValue>| {
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let id = text(id)
        .parse()
        .map_err(|_| ApiError::field(INSTANCE_HEADER, "must be the id of an instance, beside `x-hearth-port`"));
    let port = parse_port(&text(port)).ok_or_else(|| {
        ApiError::field(
            PORT_HEADER,
            "must be a port from 1 to 65535, beside `x-hearth-instance`",
        )
    });
    Some(id.and_then(|id| Ok((port?, id))))
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

/// What of a path is ours, and what the server in the VM gets: byte for byte as the client wrote it, with its query.
fn split(uri: &Uri) -> (String, String) {
    let path = uri.path();
    let end = path.match_indices('/').nth(OUR_PARTS).map_or(path.len(), |(at, _)| at);
    let (ours, rest) = path.split_at(end);
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    (ours.to_owned(), format!("{rest}{query}"))
}

/// Answers a request for a port of a VM that comes with a token or a link, or refuses it.
pub async fn answer(
    state: &AppState,
    request: Request,
    id: &InstanceId,
    port: u16,
    prefix: String,
    rest: &str,
) -> Response {
    let page = crate::http::wants_page(request.headers());
    match admitted(state, request, id, port, prefix, rest).await {
        Ok(response) => response,
        Err(error) => visitor::refusal(error, page),
    }
}

async fn admitted(
    state: &AppState,
    request: Request,
    id: &InstanceId,
    port: u16,
    prefix: String,
    rest: &str,
) -> Result<Response, ApiError> {
    let client = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|ConnectInfo(address)| address.ip().to_string());
    let (mut parts, body) = request.into_parts();
    let outside = Outside {
        port,
        host: address::outer_host(&parts.headers).map(str::to_owned),
        scheme: address::outer_scheme(&parts.headers),
        client,
        prefix,
    };
    parts.uri = rest
        .parse()
        .map_err(|_| ApiError::field("path", "is not a path that a server can be asked for"))?;
    let Admitted {
        row,
        by_link,
        cookie,
        redirect,
    } = visitor::admit(state, &mut parts.headers, &mut parts.uri, id, port, &outside.prefix).await?;
    let mut response = match redirect {
        Some(to) => (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response(),
        None => {
            proxy::pass(
                state,
                &row,
                by_link,
                Request::from_parts(parts, Body::new(body)),
                &outside,
            )
            .await?
        }
    };
    response.extensions_mut().insert(Proxied);
    if let Some(cookie) = cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_the_port_is_passed_on_byte_for_byte() {
        for (given, ours, rest) in [
            (
                "/api/v1/instances/wpi_1/ports/80",
                "/api/v1/instances/wpi_1/ports/80",
                "",
            ),
            (
                "/api/v1/instances/wpi_1/ports/80/",
                "/api/v1/instances/wpi_1/ports/80",
                "/",
            ),
            (
                "/api/v1/instances/wpi_1/ports/80?a",
                "/api/v1/instances/wpi_1/ports/80",
                "?a",
            ),
            (
                "/api/v1/instances/wpi_1/ports/80/a%2Fb//c/?x=%20",
                "/api/v1/instances/wpi_1/ports/80",
                "/a%2Fb//c/?x=%20",
            ),
        ] {
            let split = split(&given.parse().unwrap());
            assert_eq!((split.0.as_str(), split.1.as_str()), (ours, rest), "{given}");
        }
    }
}
