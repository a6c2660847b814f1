//! Metrics, for Prometheus: where the API is with a token of an admin of the installation, and on an address of their own without one.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper_util::rt::TokioTimer;
use tokio_util::sync::CancellationToken;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use crate::metrics::{CONTENT_TYPE, Metrics, MetricsError};

/// How long the headers of a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the API is. They tell of all tenants, so only who may see the whole host reads them.
pub async fn read_metrics(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    caller.need_host()?;
    let text = state.metrics.text().await;
    text.map(shown).map_err(|error| match error {
        MetricsError::Store(error) => error.into(),
        error @ MetricsError::Metrics(_) => ApiError::unavailable(error.to_string()),
    })
}

/// On an address of their own, until `stop`.
pub async fn answer_metrics(listener: std::net::TcpListener, metrics: Metrics, stop: CancellationToken) {
    let handle = axum_server::Handle::new();
    let served = async {
        let mut server = axum_server::from_tcp(listener)?
            .handle(handle.clone())
            .first_request_timeout(PATIENCE);
        let builder = server.http_builder();
        *builder = builder.clone().http1_only();
        builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let router = Router::new().route("/metrics", get(open_metrics)).with_state(metrics);
        server.serve(router.into_make_service()).await
    };
    tokio::select! {
        () = stop.cancelled() => {}
        ended = served => if let Err(error) = ended {
            tracing::error!(%error, "metrics cannot be read any more");
        }
    }
}

async fn open_metrics(State(metrics): State<Metrics>) -> Response {
    match metrics.text().await {
        Ok(text) => shown(text),
        Err(error) => {
            tracing::warn!(%error, "metrics could not be read");
            (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }
    }
}

fn shown(text: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
