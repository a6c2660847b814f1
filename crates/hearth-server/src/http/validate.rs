//! What the published schema cannot say about fields. Collects all faults, so that a client can mend them in one go.

use std::collections::BTreeSet;

use hearth_api::error::FieldError;
use hearth_api::project::RepoInput;
use hearth_api::variables::refusal;
use hearth_core::checkout::Remote;

use super::AppState;
use super::error::ApiError;
use crate::store::RepoSource;

/// Collects faults.
#[derive(Debug, Default)]
pub struct Faults(Vec<FieldError>);

impl Faults {
    /// Adds one.
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError {
            path: path.into(),
            message: message.into(),
        });
    }

    /// Adds one unless this holds.
    pub fn check(&mut self, is_valid: bool, path: &str, message: &str) {
        if !is_valid {
            self.add(path, message);
        }
    }

    /// 422 if there are any.
    pub fn finish(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ApiError::fields(self.0))
        }
    }

    /// Names of environment variables, each beside its path.
    pub fn variable_names<'a>(&mut self, names: impl IntoIterator<Item = (String, &'a str)>) {
        for (path, name) in names {
            if let Some(refusal) = refusal(name) {
                self.add(path, refusal);
            }
        }
    }

    /// An image that VMs are to be made of. Not one that the project names already: it may have gone since, and the pool says so.
    pub async fn image(&mut self, path: &str, wanted: Option<&str>, before: Option<&str>, state: &AppState) {
        if let Some(wanted) = wanted.filter(|wanted| Some(*wanted) != before)
            && let Some(refusal) = state.images.refusal(wanted).await
        {
            self.add(path, refusal);
        }
    }

    /// The repositories of a tenant's project; those without a URL come from the server's base. What the policy refuses by the
    /// address's text is a fault. `lfs` and `submodules`: what holds for those that do not say it themselves.
    pub fn repos(
        &mut self,
        path: &str,
        inputs: &[RepoInput],
        tenant: &str,
        state: &AppState,
        (lfs, submodules): (Option<bool>, Option<bool>),
    ) -> Vec<RepoSource> {
        let base = &state.git_base_url;
        let sources = state.mirrors.sources();
        let mut seen = BTreeSet::new();
        inputs
            .iter()
            .enumerate()
            .map(|(at, input)| {
                let name = &input.repo_full_name;
                self.check(
                    seen.insert(name.clone()),
                    &format!("{path}[{at}].repoFullName"),
                    "is in the list twice",
                );
                let from_base = || format!("{}/{name}.git", base.trim_end_matches('/'));
                let url = input.url.as_ref().map_or_else(from_base, ToString::to_string);
                let tenant = tenant.to_owned();
                if let Err(refusal) = sources.admit(&Remote {
                    tenant,
                    project: None,
                    url: url.clone(),
                }) {
                    self.add(format!("{path}[{at}].url"), refusal.to_string());
                }
                RepoSource {
                    repo_full_name: name.clone(),
                    branch: input.branch.clone(),
                    url,
                    lfs: input.lfs.or(lfs).unwrap_or(true),
                    submodules: input.submodules.or(submodules).unwrap_or(true),
                }
            })
            .collect()
    }
}
