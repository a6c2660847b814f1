//! What the published schema cannot say about fields. Collects all faults, so that a client can mend them in one go.

use std::collections::BTreeSet;

use hearth_api::error::FieldError;
use hearth_api::project::RepoInput;

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
    pub fn check(&mut self, holds: bool, path: &str, message: &str) {
        if !holds {
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

    /// The repositories of a project; those without a URL come from `base`. `lfs` and `submodules`: what holds for those that do
    /// not say it themselves.
    pub fn repos(
        &mut self,
        path: &str,
        inputs: &[RepoInput],
        base: &str,
        (lfs, submodules): (Option<bool>, Option<bool>),
    ) -> Vec<RepoSource> {
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
                RepoSource {
                    repo_full_name: name.clone(),
                    branch: input.branch.clone(),
                    url: input.url.clone().unwrap_or_else(from_base),
                    lfs: input.lfs.or(lfs).unwrap_or(true),
                    submodules: input.submodules.or(submodules).unwrap_or(true),
                }
            })
            .collect()
    }
}
