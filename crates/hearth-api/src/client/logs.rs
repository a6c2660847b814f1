//! Logs inside a VM.

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};

use super::Client;
use super::error::{self, ClientError};
use crate::ids::InstanceId;
use crate::log::InstanceLog;
use crate::page::Items;

/// A log's bytes as they come.
pub type LogStream = BoxStream<'static, Result<Bytes, ClientError>>;

impl Client {
    /// The logs in an instance's VM.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_logs(&self, id: &InstanceId) -> Result<Vec<InstanceLog>, ClientError> {
        let list: Items<InstanceLog> = self.get(&["instances", id.as_str(), "logs"]).read().await?;
        Ok(list.items)
    }

    /// A log's text; with `follow` also what will be written to it.
    ///
    /// # Errors
    /// As every call.
    pub async fn read_log(&self, id: &InstanceId, name: &str, follow: bool) -> Result<LogStream, ClientError> {
        let mut call = self.get(&["instances", id.as_str(), "logs", name]).timeout(None);
        if follow {
            call = call.query("follow", "true");
        }
        let url = self.address();
        let response = call.open().await?;
        let chunks = response.bytes_stream().map(move |chunk| {
            chunk.map_err(|fault| ClientError::Interrupted {
                url: url.clone(),
                reason: error::chain(&fault.without_url()),
            })
        });
        Ok(chunks.boxed())
    }
}
