//! The setup object of a project.

use reqwest::Method;

use super::{Client, ClientError};
use crate::ids::ProjectId;
use crate::setup::{SetupBody, SetupView};

impl Client {
    /// The setup object, and what future VMs are set up by.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_setup(&self, id: &ProjectId) -> Result<SetupView, ClientError> {
        self.get(&["projects", id.as_str(), "setup"]).read().await
    }

    /// Saves the setup object. While hooks in the repositories' `.capy/settings.json` are active, only
    /// `replace_legacy_hooks` lets it replace them.
    ///
    /// # Errors
    /// As every call.
    pub async fn patch_setup(
        &self,
        id: &ProjectId,
        body: &SetupBody,
        replace_legacy_hooks: bool,
    ) -> Result<SetupView, ClientError> {
        let mut call = self
            .call(Method::PATCH, &["projects", id.as_str(), "setup"])
            .json(body)?;
        if replace_legacy_hooks {
            call = call.query("replaceLegacyHooks", "true");
        }
        call.read().await
    }
}
