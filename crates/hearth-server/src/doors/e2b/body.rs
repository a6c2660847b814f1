//! Bodies of the control plane.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::fault::Refusal;
use crate::http::read;

/// Longest body.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How long it may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// A JSON body; a missing one is `{}`.
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;
    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let bytes = read(request, MAX_BYTES, PATIENCE).await?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let mut parser = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize(&mut parser)
            .map(Self)
            .map_err(|error| {
                // The parser's own message would quote the value.
                Refusal::wrong(format!("the body is not what this call takes: `{}`", error.path()))
            })
    }
}
