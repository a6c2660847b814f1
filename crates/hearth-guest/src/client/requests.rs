//! What programs in the VM ask of the host.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::Method;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::{AgentClient, AgentError, Download};
use crate::paths;
use crate::requests::{GuestRequest, HostReply, MAX_LINE};

impl AgentClient {
    /// Questions as they are asked, until another host reads them or the connection is lost. An agent before protocol 10 refuses it
    /// with 404.
    pub async fn guest_requests(&self) -> Result<BoxStream<'static, Result<GuestRequest, AgentError>>, AgentError> {
        let reply = self.call(Method::GET, paths::GUEST_REQUESTS, None).await?;
        let body = Download::new(reply.into_body()).map(|chunk| chunk.map_err(std::io::Error::other));
        let lines = FramedRead::new(StreamReader::new(body), LinesCodec::new_with_max_length(MAX_LINE));
        let requests = lines.map(|line| {
            let line = line.map_err(|error| AgentError::Lost {
                reason: error.to_string(),
            })?;
            serde_json::from_str(&line).map_err(|error| AgentError::Protocol(error.to_string()))
        });
        Ok(requests.boxed())
    }

    /// Answers one of them.
    pub async fn answer_request(&self, reply: &HostReply) -> Result<(), AgentError> {
        self.post(paths::GUEST_REQUESTS, reply).await.map(drop)
    }
}
