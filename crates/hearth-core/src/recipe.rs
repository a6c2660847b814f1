//! The recipe: everything that decides what a ready VM holds. Its hash names it; two VMs of one recipe are interchangeable.

use hearth_api::pool::SetupCommand;
use hearth_api::project::VmSize;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Counts up when Hearth changes what it does with the same inputs.
const RECIPE_VERSION: u32 = 2;

/// Length of a recipe's short name in hexadecimal digits: 64 bits, enough to tell a project's recipes apart.
const SHORT_DIGITS: usize = 16;

/// Everything that decides what a ready VM holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recipe<'a> {
    /// The image as the project names it; the newest one when absent.
    pub image: Option<&'a str>,
    /// VM size.
    pub size: VmSize,
    /// Repositories in order.
    pub repositories: Vec<RecipeRepo<'a>>,
    /// Counts up when the template is renewed without its inputs having changed.
    pub epoch: i64,
    /// Counts up with every change of the project's shared variables; their values stay out of the recipe.
    pub variables_version: i64,
    /// Commands of the step `project_setup`.
    pub project_setup: &'a [SetupCommand],
    /// Whether hooks in `.capy/settings.json` run: a saved setup object replaces them.
    pub legacy_hooks: bool,
    /// Commands of the step `warm_pool_setup`.
    pub pool_setup: &'a [SetupCommand],
}

/// One repository of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecipeRepo<'a> {
    /// Where it is fetched from.
    pub url: &'a str,
    /// The branch that is checked out.
    pub branch: &'a str,
    /// The folder in the VM.
    pub path: &'a str,
    /// Its script of the step `repo_setup`.
    pub initialize: Option<&'a str>,
    /// Its script that starts services.
    pub startup: Option<&'a str>,
}

impl Recipe<'_> {
    /// The recipe's name.
    #[must_use]
    pub fn name(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(RECIPE_VERSION.to_be_bytes());
        // Serialising plain structs with string keys into memory cannot fail; an empty text would only make recipes equal.
        hash.update(serde_json::to_vec(self).unwrap_or_default());
        let mut name = hex::encode(hash.finalize());
        name.truncate(SHORT_DIGITS);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_changes_the_name() {
        let command = SetupCommand {
            name: "a".into(),
            command: "true".into(),
            background: None,
        };
        let commands = [command];
        let base = Recipe {
            image: None,
            size: VmSize::Small,
            repositories: vec![RecipeRepo {
                url: "file:///r",
                branch: "main",
                path: "/home/r",
                initialize: None,
                startup: None,
            }],
            epoch: 0,
            variables_version: 0,
            project_setup: &[],
            legacy_hooks: true,
            pool_setup: &[],
        };
        let mut names = std::collections::BTreeSet::new();
        let variants = [
            base.clone(),
            Recipe {
                image: Some("x"),
                ..base.clone()
            },
            Recipe {
                size: VmSize::Large,
                ..base.clone()
            },
            Recipe {
                repositories: vec![],
                ..base.clone()
            },
            Recipe {
                legacy_hooks: false,
                ..base.clone()
            },
            Recipe {
                repositories: vec![RecipeRepo {
                    initialize: Some("x"),
                    ..base.repositories[0].clone()
                }],
                ..base.clone()
            },
            Recipe {
                repositories: vec![RecipeRepo {
                    startup: Some("x"),
                    ..base.repositories[0].clone()
                }],
                ..base.clone()
            },
            Recipe {
                epoch: 1,
                ..base.clone()
            },
            Recipe {
                variables_version: 1,
                ..base.clone()
            },
            Recipe {
                project_setup: &commands,
                ..base.clone()
            },
            Recipe {
                pool_setup: &commands,
                ..base.clone()
            },
        ];
        for variant in &variants {
            assert!(names.insert(variant.name()));
            assert_eq!(variant.name(), variant.clone().name());
        }
    }
}
