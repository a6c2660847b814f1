//! Templates and other checkpoints.

use std::time::Duration;

use super::{Client, ClientError};
use crate::template::{TemplateList, TemplatesVerified};

/// Looking at every byte takes about a second per gigabyte of checkpoints.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl Client {
    /// Every checkpoint of the host.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_templates(&self) -> Result<TemplateList, ClientError> {
        self.get(&["templates"]).read().await
    }

    /// Checks every byte of every checkpoint.
    ///
    /// # Errors
    /// As every call.
    pub async fn verify_templates(&self) -> Result<TemplatesVerified, ClientError> {
        self.post(&["templates", "verify"])
            .timeout(Some(VERIFY_TIMEOUT))
            .read()
            .await
    }
}
