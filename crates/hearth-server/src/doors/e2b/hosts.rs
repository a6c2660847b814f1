//! Names: with a wildcard domain a client reaches the control plane at `api.<domain>` and a port of a sandbox at `{port}-{id}.<domain>`.
//! Both become paths below [`PREFIX`] before anything else sees the request. Ports of a sandbox that are not its daemon's are passed on.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, OriginalUri, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;
use tower::ServiceExt as _;

use super::PREFIX;
use super::access::{ACCESS, PORT, SANDBOX, Sandbox, TRAFFIC, instance_id, traffic_token};
use super::fault::{Code, Fault};
use crate::http::{AppState, LOCAL_DOMAIN, Outside, Proxied, outer_host, outer_scheme, pass_to_port};

/// The port of the daemon that this door stands for.
pub const ENVD_PORT: u16 = 49_983;
/// The control plane's name below a domain.
const API: &str = "api.";
/// Where signed links lead that were made without our prefix.
const FILES: &str = "/files";
/// What only such a link has.
const SIGNATURE: &str = "signature=";
/// Hexadecimal digits of a sandbox's id.
const ID_DIGITS: usize = 32;

/// The domain of a sandbox's ports, as the client of this request reaches them.
pub fn sandbox_domain(state: &AppState, headers: &HeaderMap) -> Option<String> {
    let domain = state.ports.domain.as_deref()?;
    let host = outer_host(headers)?;
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, Some(port)),
        _ => (host, None),
    };
    let is_here = ["127.0.0.1", "[::1]", LOCAL_DOMAIN].contains(&name) || name.ends_with(".localhost");
    // Names below `localhost` lead to the client's own machine.
    if domain == LOCAL_DOMAIN && !is_here {
        return None;
    }
    Some(match port {
        Some(port) => format!("{domain}:{port}"),
        None => domain.to_owned(),
    })
}

/// Around the whole server.
pub fn around(router: Router, domain: Option<String>) -> Router {
    Router::new().fallback(move |mut request: Request| {
        let router = router.clone();
        rewrite(&mut request, domain.as_deref());
        // Of this router; the next one notes its own.
        request.extensions_mut().remove::<OriginalUri>();
        async move {
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    })
}

/// What a host names below a domain.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Api,
    Port(u16, String),
}

fn named(host: &str, domain: &str) -> Option<Named> {
    let host = host
        .rsplit_once(':')
        .map_or(host, |(host, _)| host)
        .to_ascii_lowercase();
    let label = host.strip_suffix(&domain.to_ascii_lowercase())?;
    if label == API {
        return Some(Named::Api);
    }
    let (port, id) = label.strip_suffix('.')?.split_once('-')?;
    let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let port = port.parse().ok().filter(|port| *port > 0 && is_id)?;
    Some(Named::Port(port, id.to_owned()))
}

fn rewrite(request: &mut Request, domain: Option<&str>) {
    let host = outer_host(request.headers()).map(str::to_owned);
    let found = host
        .as_deref()
        .zip(domain)
        .and_then(|(host, domain)| named(host, domain));
    match found {
        None => {
            let signed = request.uri().query().is_some_and(|query| query.contains(SIGNATURE));
            if request.uri().path() == FILES && signed {
                below(request);
            }
        }
        Some(Named::Api) => {
            below(request);
            rename(request, domain);
        }
        Some(Named::Port(port, id)) => {
            let headers = request.headers_mut();
            let secret = headers.contains_key(ACCESS) || headers.contains_key(TRAFFIC);
            if port != ENVD_PORT && !secret {
                // As every port of a claim: by a token or a link of Hearth's, or because its client opened it to everybody.
                headers.insert(BY_NAME, HeaderValue::from_static("1"));
            }
            for (name, value) in [(SANDBOX, id), (PORT, port.to_string())] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(name, value);
                }
            }
            below(request);
            rename(request, domain);
        }
    }
}

/// Said by [`around`] of requests that came by a sandbox's name.
const BY_NAME: &str = "x-hearth-by-name";

fn below(request: &mut Request) {
    let rest = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    if let Ok(uri) = format!("{PREFIX}{rest}").parse::<Uri>() {
        *request.uri_mut() = uri;
    }
}

/// The name has said what it says: nothing else is to read it.
fn rename(request: &mut Request, domain: Option<&str>) {
    let headers = request.headers_mut();
    let port = outer_host(headers).and_then(|host| host.rsplit_once(':').map(|(_, port)| port.to_owned()));
    let own = match (domain.unwrap_or_default(), port) {
        (domain, Some(port)) => format!("{domain}:{port}"),
        (domain, None) => domain.to_owned(),
    };
    if let Ok(own) = HeaderValue::from_str(&own)
        && let Some(before) = headers.insert(header::HOST, own)
    {
        headers.insert(THEIR_HOST, before);
    }
}

/// The name that the client used.
const THEIR_HOST: &str = "x-hearth-host";

/// Passes requests on that are for another port than the daemon's.
pub async fn ports(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let headers = request.headers_mut();
    let by_name = headers.remove(BY_NAME).is_some();
    let host = headers.remove(THEIR_HOST);
    let port = headers.get(PORT).map(|port| {
        let number = port.to_str().ok().and_then(|port| port.trim().parse::<u16>().ok());
        number.filter(|number| *number > 0)
    });
    match port {
        Some(None) => Fault::wrong(format!("`{PORT}` must be a port, 1 to 65535")).into_plain(),
        Some(Some(port)) if port != ENVD_PORT => {
            let passed = pass(&state, request, port, by_name, host).await;
            let mut response = passed.unwrap_or_else(Fault::into_plain);
            response.extensions_mut().insert(Proxied);
            response
        }
        _ => next.run(request).await,
    }
}

async fn pass(
    state: &AppState,
    mut request: Request,
    port: u16,
    by_name: bool,
    host: Option<HeaderValue>,
) -> Result<Response, Fault> {
    let uri = request
        .extensions()
        .get::<OriginalUri>()
        .map_or_else(|| request.uri(), |OriginalUri(uri)| uri);
    let rest = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = rest.strip_prefix(PREFIX).unwrap_or(rest);
    let rest = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    let [name, access, traffic] = [SANDBOX, ACCESS, TRAFFIC].map(|name| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    });
    let name =
        name.ok_or_else(|| Fault::wrong("the header E2b-Sandbox-Id names the sandbox, and this request has none"))?;
    let sandbox = Sandbox::running(state, &name).await?;
    let is_open = sandbox.seen.kept.as_ref().is_some_and(|kept| kept.public_traffic);
    let opens = access.is_some_and(|token| sandbox.opens(state, &token))
        || traffic.is_some_and(|token| token == traffic_token(state, &sandbox.seen.id));
    if !opens && !is_open && by_name {
        return by_hearth(state, request, &sandbox, port, host, &rest).await;
    }
    if !opens && !is_open {
        let why = "this port needs the sandbox's X-Access-Token or E2B-Traffic-Access-Token; `allowPublicTraffic` opens it to everybody";
        return Err(Fault::new(Code::Unauthenticated, why));
    }
    sandbox.need_owner(state).await?;
    let inside = sandbox.enter(state).await?;
    for header in [ACCESS, TRAFFIC, SANDBOX, PORT] {
        request.headers_mut().remove(header);
    }
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let outside = Outside {
        port,
        host: host.as_ref().and_then(|host| host.to_str().ok()).map(str::to_owned),
        scheme: outer_scheme(request.headers()),
        client: client.map(|ConnectInfo(address)| address.ip().to_string()),
        prefix: String::new(),
    };
    *request.uri_mut() = rest
        .parse()
        .map_err(|_| Fault::wrong("this is not a path that a server can be asked for"))?;
    let answer = pass_to_port(state, &sandbox.row, true, request.map(Body::new), &outside).await;
    drop(inside.resumed);
    answer.map_err(|error| match error.code() {
        ErrorCode::BadGateway => Fault::NoPort(sandbox.name().to_owned(), port),
        _ => error.into(),
    })
}

/// A request by name without a secret of the sandbox: one with a token or a link of Hearth's.
async fn by_hearth(
    state: &AppState,
    mut request: Request,
    sandbox: &Sandbox,
    port: u16,
    host: Option<HeaderValue>,
    rest: &str,
) -> Result<Response, Fault> {
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    for header in [SANDBOX, PORT] {
        request.headers_mut().remove(header);
    }
    Ok(crate::http::answer_port(state, request, &sandbox.seen.id, port, String::new(), rest).await)
}

/// Nothing here, in the words that clients look for.
pub async fn nowhere(State(_): State<AppState>, request: Request) -> Response {
    let name = request.headers().get(SANDBOX).and_then(|name| name.to_str().ok());
    if name.and_then(instance_id).is_some() {
        return super::frames::unknown();
    }
    super::fault::Refusal::not_found(format!(
        "{} is no path of the E2B API that Hearth serves",
        request.uri().path()
    ))
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_the_domain_are_known() {
        let id = "0".repeat(ID_DIGITS);
        let of = |host: &str| named(host, "vm.example.net");
        assert_eq!(of("API.vm.example.net:443"), Some(Named::Api));
        assert_eq!(
            of(&format!("49983-{id}.vm.example.net")),
            Some(Named::Port(49983, id.clone()))
        );
        for other in [
            "vm.example.net".to_owned(),
            format!("0-{id}.vm.example.net"),
            format!("80-wpi-{id}.vm.example.net"),
            format!("80-{id}.evil.example.net"),
            "a.b.vm.example.net".to_owned(),
        ] {
            assert_eq!(of(&other), None, "{other}");
        }
    }
}
