//! Git with a project's credential for one host: a token reaches git through a credential helper that reads its environment, a key
//! through an agent that ends with the run. Nothing of them stands in an argument or in a file.

use std::path::Path;

use hearth_api::credential::CredentialKind;
use hearth_core::checkout::Remote;
use hearth_core::redact::Redactor;

use super::Sources;
use super::location::{Location, Scheme};
use crate::repos::git::GitError;
use crate::secrets::git_credentials::{self, Place, Protocol};
use crate::secrets::key_agent::KeyAgent;
use crate::store::CredentialRow;

/// Git's helper: a shell's function that prints what is in the environment. `printf` is the shell's own: no argument of a process
/// holds the secret.
const HELPER: &str = "!f() { if test \"$1\" = get; then printf 'username=%s\\npassword=%s\\n' \"$HEARTH_GIT_USERNAME\" \
                      \"$HEARTH_GIT_PASSWORD\"; fi; }; f";

/// What is to be looked at when a fetch fails that was made with a project's credential.
#[must_use]
pub fn advice(host: &str) -> String {
    format!(
        "check the address, and that the project's credential for {host} may read it and has not expired; `hearth credential set \
         PROJECT {host}` sets another"
    )
}

/// A credential that one run of git has. It is good until it is dropped.
pub(super) struct Lent {
    pub(super) row: CredentialRow,
    /// The address that git is told it is for: of one host and no other.
    scope: String,
    agent: Option<KeyAgent>,
}

impl Sources {
    /// The project's own credential for where this is, if there is one.
    pub(super) async fn credential(&self, remote: &Remote) -> Result<Option<Lent>, GitError> {
        let (Some(store), Some(project)) = (&self.credentials, &remote.project) else {
            return Ok(None);
        };
        let Some(Location { scheme, host, port, .. }) = Location::of(&remote.url) else {
            return Ok(None);
        };
        let protocol = match scheme {
            Scheme::File => return Ok(None),
            Scheme::Http => Protocol::Http,
            Scheme::Https => Protocol::Https,
            Scheme::Ssh => Protocol::Ssh,
        };
        let place = Place { protocol, host, port };
        let unreadable = |error: String| GitError::NoCredential(error);
        let all = store.credentials(project).await;
        let all = all.map_err(|error| unreadable(error.to_string()))?;
        let Some(row) = git_credentials::find(all, &place) else {
            return Ok(None);
        };
        let agent = match row.kind {
            CredentialKind::Token => None,
            CredentialKind::Key => Some(
                KeyAgent::start([row.secret.as_str()])
                    .await
                    .map_err(|error| unreadable(error.to_string()))?,
            ),
        };
        let scope = place.url();
        Ok(Some(Lent { row, scope, agent }))
    }
}

impl Lent {
    /// Settings for git's command line. None holds a secret.
    pub(super) fn settings(&self) -> Vec<String> {
        if self.row.kind == CredentialKind::Key {
            return Vec::new();
        }
        // Whatever helpers the server's user has are not asked for this host: the empty one takes them away.
        ["", HELPER]
            .into_iter()
            .flat_map(|helper| ["-c".to_owned(), format!("credential.{}.helper={helper}", self.scope)])
            .collect()
    }

    /// What the helper reads.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        if self.row.kind == CredentialKind::Key {
            return Vec::new();
        }
        vec![
            ("HEARTH_GIT_USERNAME", git_credentials::username(&self.row).to_owned()),
            ("HEARTH_GIT_PASSWORD", self.row.secret.clone()),
        ]
    }

    /// Where SSH finds the key.
    pub(super) fn agent(&self) -> Option<&Path> {
        self.agent.as_ref().map(KeyAgent::socket)
    }

    /// A server may say what it was sent.
    pub(super) fn redact(&self, text: &str) -> String {
        Redactor::new([self.row.secret.trim()]).redact(text).as_str().to_owned()
    }
}
