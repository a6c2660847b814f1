//! The span of a request: what its log records and its trace have in common. Method, path and id, and nothing else of the request: no
//! header, no query, no body.

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use opentelemetry::global;
use opentelemetry::propagation::Extractor;
use tower_http::request_id::RequestId;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The span. A client that has a trace of its own (W3C `traceparent`) finds the request in it.
pub(super) fn of_request(request: &Request) -> Span {
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok());
    let (method, path) = (request.method(), request.uri().path());
    // Few names: the path with its ids would be one for each VM.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{method} {}", route.unwrap_or_default()).trim_end(),
        otel.kind = "server",
        %method,
        path,
        id,
        project = Empty,
        instance = Empty,
    );
    if let Some(project) = behind(path, "projects") {
        span.record("project", project);
    }
    if let Some(instance) = behind(path, "instances") {
        span.record("instance", instance);
    }
    let outer = global::get_text_map_propagator(|propagator| propagator.extract(&Headers(request.headers())));
    // Where traces go nowhere, there is nothing to be a part of.
    let _ = span.set_parent(outer);
    span
}

/// The id behind a noun in a path.
fn behind<'a>(path: &'a str, noun: &str) -> Option<&'a str> {
    let mut parts = path.split('/');
    parts.by_ref().find(|part| *part == noun)?;
    parts.next().filter(|id| id.contains('_'))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_paths() {
        let path = "/api/v1/projects/prj_1/warm-pool/instances/wpi_2/x";
        assert_eq!(behind(path, "projects"), Some("prj_1"));
        assert_eq!(behind(path, "instances"), Some("wpi_2"));
        assert_eq!(behind("/api/v1/find/projects", "projects"), None);
        assert_eq!(behind("/api/v1/projects/find", "projects"), None);
    }
}
