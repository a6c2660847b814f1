//! The recipe: everything that decides what a ready VM holds. Its hash names it; two VMs of one recipe are interchangeable.
//!
//! A name has two halves: what a person set up, and its resolved inputs (commits, image, host). Recipes of one set-up differ only
//! in their resolved inputs.

use std::collections::BTreeMap;

use hearth_api::pool::SetupCommand;
use hearth_api::project::{GitIdentity, VmSize};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Counts up when Hearth changes what it does with the same inputs.
const RECIPE_VERSION: u32 = 4;

/// Hexadecimal digits of each half of a name: 48 bits, enough to tell a project's recipes apart.
const HALF_DIGITS: usize = 12;

/// Everything that decides what a ready VM holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recipe<'a> {
    /// The image as the project names it; the newest one when absent.
    pub image: Option<&'a str>,
    pub size: VmSize,
    /// Repositories in order.
    pub repositories: Vec<RecipeRepo<'a>>,
    /// Counts up with every change of the project's shared variables; their values stay out of the recipe.
    pub variables_version: i64,
    /// Who makes commits while it is set up.
    pub git_identity: Option<&'a GitIdentity>,
    /// Commands of the step `project_setup`.
    pub project_setup: &'a [SetupCommand],
    /// Whether hooks in `.capy/settings.json` run: a saved setup object replaces them.
    pub legacy_hooks: bool,
    /// Commands of the step `warm_pool_setup`.
    pub pool_setup: &'a [SetupCommand],
    /// Nothing is set up: the repositories' own files are read, by the rules of this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imports: Option<u32>,
    /// What the set-up is carried out with.
    #[serde(skip)]
    pub resolved: ResolvedInputs<'a>,
}

/// What a set-up is carried out with: the commits, image and host that its names stand for at that time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ResolvedInputs<'a> {
    /// What the host gives to VMs, image and all; nothing while that is not known.
    pub environment: Option<&'a str>,
    /// The commit of each repository, in order; nothing for one that was never seen.
    pub commits: Vec<Option<&'a str>>,
    /// Counts up when the template is renewed without anything having changed.
    pub epoch: i64,
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
    /// Whether what Git LFS keeps of it comes along.
    pub lfs: bool,
    /// Whether its submodules come along.
    pub submodules: bool,
    /// Its script of the step `repo_setup`.
    pub initialize: Option<&'a str>,
    /// Its script that starts services.
    pub startup: Option<&'a str>,
}

impl Recipe<'_> {
    /// The recipe's name.
    #[must_use]
    pub fn name(&self) -> String {
        let set_up = half(&(RECIPE_VERSION, self));
        let whole = half(&(&set_up, &self.resolved));
        set_up + &whole
    }
}

impl Recipe<'_> {
    /// A digest of each part of the set-up, by the part's name: for telling what differs between two set-ups, and never what they hold.
    #[must_use]
    pub fn parts(&self) -> BTreeMap<String, String> {
        let repositories: Vec<_> = self
            .repositories
            .iter()
            .map(|repo| (repo.url, repo.branch, repo.path, repo.lfs, repo.submodules))
            .collect();
        let scripts: Vec<_> = self
            .repositories
            .iter()
            .map(|repo| (repo.path, repo.initialize, repo.startup))
            .filter(|(_, initialize, startup)| initialize.is_some() || startup.is_some())
            .collect();
        let parts = [
            ("gitIdentity", half(&self.git_identity)),
            ("hearth", half(&RECIPE_VERSION)),
            ("image", half(&self.image)),
            ("legacyHooks", half(&self.legacy_hooks)),
            ("projectSetup", half(&self.project_setup)),
            ("repositories", half(&repositories)),
            ("scripts", half(&scripts)),
            ("setupCommands", half(&self.pool_setup)),
            ("variables", half(&self.variables_version)),
            ("vmSize", half(&self.size)),
        ];
        parts.map(|(name, digest)| (name.to_owned(), digest)).into()
    }
}

/// The name of the set-up that a recipe carries out: what a person set up, without its resolved inputs.
#[must_use]
pub fn set_up_of(recipe: &str) -> &str {
    recipe.get(..HALF_DIGITS).unwrap_or(recipe)
}

fn half(of: &impl Serialize) -> String {
    // Serialising plain structs with string keys into memory cannot fail; an empty text would only make recipes equal.
    let mut name = hex::encode(Sha256::digest(serde_json::to_vec(of).unwrap_or_default()));
    name.truncate(HALF_DIGITS);
    name
}

/// Whether two recipes are of one set-up: only commits, image or host moved between them.
#[must_use]
pub fn same_set_up(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.get(..HALF_DIGITS) == other.get(..HALF_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(one: &Recipe<'_>, other: &Recipe<'_>) -> Vec<String> {
        let other = other.parts();
        let differs = |(name, digest): &(String, String)| other.get(name) != Some(digest);
        one.parts().into_iter().filter(differs).map(|(name, _)| name).collect()
    }

    #[test]
    fn every_input_changes_the_name() {
        let command = SetupCommand {
            name: "a".parse().unwrap(),
            command: "true".parse().unwrap(),
            background: None,
            timeout_seconds: None,
        };
        let commands = [command];
        let base = Recipe {
            image: None,
            size: VmSize::Small,
            repositories: vec![RecipeRepo {
                url: "file:///r",
                branch: "main",
                path: "/home/r",
                lfs: true,
                submodules: true,
                initialize: None,
                startup: None,
            }],
            variables_version: 0,
            git_identity: None,
            project_setup: &[],
            legacy_hooks: true,
            pool_setup: &[],
            imports: None,
            resolved: ResolvedInputs::default(),
        };
        let identity = GitIdentity {
            name: "a".parse().unwrap(),
            email: "a@b".parse().unwrap(),
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
                repositories: vec![RecipeRepo {
                    lfs: false,
                    ..base.repositories[0].clone()
                }],
                ..base.clone()
            },
            Recipe {
                repositories: vec![RecipeRepo {
                    submodules: false,
                    ..base.repositories[0].clone()
                }],
                ..base.clone()
            },
            Recipe {
                git_identity: Some(&identity),
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
        let imports = Recipe {
            imports: Some(1),
            ..base.clone()
        };
        assert!(names.insert(imports.name()));
        let parts: Vec<_> = variants.iter().skip(1).map(|variant| changed(&base, variant)).collect();
        let expected: [&[&str]; 12] = [
            &["image"],
            &["vmSize"],
            &["repositories"],
            &["legacyHooks"],
            &["scripts"],
            &["scripts"],
            &["repositories"],
            &["repositories"],
            &["gitIdentity"],
            &["variables"],
            &["projectSetup"],
            &["setupCommands"],
        ];
        assert_eq!(parts, expected);
        for variant in &variants {
            assert!(names.insert(variant.name()));
            assert_eq!(variant.name(), variant.clone().name());
            assert_eq!(same_set_up(&variant.name(), &base.name()), *variant == base);
        }
        let meetings = [
            ResolvedInputs {
                epoch: 1,
                ..ResolvedInputs::default()
            },
            ResolvedInputs {
                environment: Some("x"),
                ..ResolvedInputs::default()
            },
            ResolvedInputs {
                commits: vec![None],
                ..ResolvedInputs::default()
            },
            ResolvedInputs {
                commits: vec![Some("c")],
                ..ResolvedInputs::default()
            },
        ];
        for resolved in meetings {
            let variant = Recipe {
                resolved,
                ..base.clone()
            };
            assert!(names.insert(variant.name()));
            assert!(same_set_up(&variant.name(), &base.name()));
        }
    }
}
