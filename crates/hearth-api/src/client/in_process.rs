//! A client of the server in whose process it is: its requests go to the server's own routes, without a connection. Scopes, checks, limits and
//! the audit log are then the same as for a request from outside. It opens no WebSocket.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::{RequestBuilder, Response};

use super::{Client, ClientError, SOCKET_HOST};

/// The body of such a request, and of its answer.
pub type InProcessBody = reqwest::Body;

/// What answers a request.
pub type AnswerInProcess = Arc<
    dyn Fn(http::Request<InProcessBody>) -> BoxFuture<'static, http::Response<InProcessBody>> + Send + Sync + 'static,
>;

impl Client {
    /// A client whose requests this answers. An empty token sends none.
    ///
    /// # Errors
    /// [`ClientError::Setup`] when the token cannot be used.
    pub fn in_process(token: &str, answer: AnswerInProcess) -> Result<Self, ClientError> {
        let client = Self::new(SOCKET_HOST, token)?;
        Ok(Self {
            in_process: Some(answer),
            ..client
        })
    }
}

/// Sends one. The time that it had when it is up, or `None` when there is no such request.
pub(super) async fn send(
    answer: &AnswerInProcess,
    request: RequestBuilder,
    timeout: Option<Duration>,
) -> Result<Response, Option<Duration>> {
    let request = request.build().map_err(|_| None)?;
    let request = http::Request::try_from(request).map_err(|_| None)?;
    let answered = answer(request);
    let response = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, answered).await.map_err(|_| timeout)?,
        None => answered.await,
    };
    Ok(Response::from(response))
}
