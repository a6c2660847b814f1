//! The stages of a build: in order, each with the key of the checkpoint after it. A key is a hash over
//! the key before and over everything this stage depends on, so equal keys mean equal VMs. Pure.

use hearth_api::ids::ProjectId;
use hearth_api::pool::SetupCommand;
use hearth_api::project::GitIdentity;
use hearth_api::settings::Settings;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::checkout::Checkout;
use crate::checkpoint::CheckpointKey;
use crate::scripts::Phase;

/// Counts up when Hearth changes what a stage does with the same inputs.
const CHAIN_VERSION: u32 = 2;

/// What one stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The image, booted and idle: `create_vm` and `ensure_server`.
    Base,
    /// The project's own git identity.
    Identity,
    /// `set_env_vars`.
    Variables,
    /// `clone_repo` of the repository at this place.
    Clone(usize),
    /// `init_repo` of the repository at this place, where no hook of it can run.
    Hooks(usize),
    /// `init_repo`: of the repository at this place, the hook at that place.
    Hook(usize, usize),
    /// The command of `project_setup` at this place.
    Project(usize),
    /// `repo_setup`: the scripts of all repositories.
    Initialize,
    /// The command of `warm_pool_setup` at this place.
    Pool(usize),
    /// `repo_setup`: the scripts that start services.
    Startup,
}

impl std::fmt::Display for Work {
    /// Its name in a checkpoint's labels and in the log; places count from 1.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Identity => f.write_str("git_identity"),
            Self::Variables => f.write_str("set_env_vars"),
            Self::Clone(at) => write!(f, "clone_repo {}", at + 1),
            Self::Hooks(at) => write!(f, "init_repo {}", at + 1),
            Self::Hook(repo, at) => write!(f, "init_repo {} {}", repo + 1, at + 1),
            Self::Project(at) => write!(f, "project_setup {}", at + 1),
            Self::Initialize => f.write_str("repo_setup initialize"),
            Self::Pool(at) => write!(f, "warm_pool_setup {}", at + 1),
            Self::Startup => f.write_str("repo_setup startup"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub work: Work,
    /// The checkpoint after it; `None` when something it depends on is not known (a repository that cannot be fetched).
    pub key: Option<CheckpointKey>,
}

/// What is known of a repository before the run.
#[derive(Debug, Clone, Default)]
pub struct Known<'a> {
    /// The commit that will be checked out.
    pub commit: Option<&'a str>,
    /// What its settings file says; an error when it is broken.
    pub settings: Option<Result<&'a Settings, ()>>,
    /// What is to be told of the files that it was read from, where it was not written for Hearth.
    pub told: Option<&'a str>,
}

/// What decides the stages of a build, besides what is known of its repositories.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub project: &'a ProjectId,
    /// Counts up when the template is renewed without its inputs having changed.
    pub epoch: i64,
    /// Who makes commits, where the project says it.
    pub git_identity: Option<&'a GitIdentity>,
    /// Counts up with every change of the shared variables; `None` when there are none.
    pub variables: Option<i64>,
    /// Repositories in order.
    pub checkouts: &'a [Checkout],
    /// Commands of `project_setup`.
    pub project_setup: &'a [SetupCommand],
    /// Commands of `warm_pool_setup`.
    pub pool_setup: &'a [SetupCommand],
}

/// The stages of a build. `environment` is what the driver's checkpoints hold for (`None`: nothing can be frozen), `timeout` the
/// time limit of a command in seconds, `known` what is known of each repository, in order.
pub fn stages(environment: Option<&str>, timeout: u64, inputs: &Inputs<'_>, known: &[Known<'_>]) -> Vec<Stage> {
    let mut chain = Chain {
        stages: Vec::new(),
        key: environment.and_then(|environment| digest(None, &(CHAIN_VERSION, environment))),
    };
    chain.push(Work::Base, Some(&"base"));
    // From here on nothing is shared between projects: the VM holds what is one project's own.
    chain.fold(&("project", inputs.project, inputs.epoch));
    if let Some(identity) = inputs.git_identity {
        chain.push(Work::Identity, Some(&("identity", identity)));
    }
    if let Some(version) = inputs.variables {
        chain.push(Work::Variables, Some(&("variables", version)));
    }
    for (at, (checkout, known)) in inputs.checkouts.iter().zip(known).enumerate() {
        let along = (checkout.lfs, checkout.submodules);
        let inputs = known
            .commit
            .map(|commit| ("clone", &checkout.url, &checkout.branch, &checkout.path, commit, along));
        chain.push(Work::Clone(at), inputs.as_ref());
    }
    for (at, (checkout, known)) in inputs.checkouts.iter().zip(known).enumerate() {
        match known.settings {
            Some(Ok(settings)) if !settings.hooks.setup.is_empty() => {
                for (hook, command) in settings.hooks.setup.iter().map(|hook| hook.command()).enumerate() {
                    // What is told stands in the first one's log.
                    let told = known.told.filter(|_| hook == 0);
                    chain.push(
                        Work::Hook(at, hook),
                        Some(&("hook", &checkout.path, command, timeout, told)),
                    );
                }
            }
            Some(Ok(_)) if known.told.is_some() => {
                chain.push(Work::Hooks(at), Some(&("told", &checkout.path, known.told)));
            }
            Some(Err(())) => chain.push::<()>(Work::Hooks(at), None),
            _ => {}
        }
    }
    chain.commands(Work::Project, "project", inputs.project_setup, timeout);
    chain.scripts(Work::Initialize, Phase::Initialize, inputs);
    chain.commands(Work::Pool, "pool", inputs.pool_setup, timeout);
    chain.scripts(Work::Startup, Phase::Startup, inputs);
    chain.stages
}

struct Chain {
    stages: Vec<Stage>,
    key: Option<CheckpointKey>,
}

impl Chain {
    fn fold(&mut self, inputs: &impl Serialize) {
        self.key = self.key.take().and_then(|key| digest(Some(&key), inputs));
    }

    fn push<T: Serialize>(&mut self, work: Work, inputs: Option<&T>) {
        match inputs {
            Some(inputs) => self.fold(inputs),
            None => self.key = None,
        }
        self.stages.push(Stage {
            work,
            key: self.key.clone(),
        });
    }

    fn commands(&mut self, work: fn(usize) -> Work, what: &str, commands: &[SetupCommand], timeout: u64) {
        for (at, command) in commands.iter().enumerate() {
            self.push(work(at), Some(&(what, command, timeout)));
        }
    }

    fn scripts(&mut self, work: Work, phase: Phase, inputs: &Inputs<'_>) {
        let specs: Vec<_> = inputs
            .checkouts
            .iter()
            .filter_map(|checkout| Some((checkout.scripts.run(phase)?, &checkout.path)))
            .map(|(run, path)| {
                (
                    run.shell,
                    path,
                    u64::try_from(run.limit.as_millis()).unwrap_or(u64::MAX),
                )
            })
            .collect();
        if !specs.is_empty() {
            self.push(work, Some(&(phase.as_str(), specs)));
        }
    }
}

fn digest(before: Option<&CheckpointKey>, inputs: &impl Serialize) -> Option<CheckpointKey> {
    let mut hash = Sha256::new();
    hash.update(before.map_or("", CheckpointKey::as_str));
    // Tuples of texts and numbers do not fail to serialise; a text that is no key would only mean that nothing is cached.
    hash.update(serde_json::to_vec(inputs).ok()?);
    hex::encode(hash.finalize()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> SetupCommand {
        SetupCommand {
            name: "setup".parse().unwrap(),
            command: text.parse().unwrap(),
            background: None,
            timeout_seconds: None,
        }
    }

    fn checkout(commit_path: &str) -> Checkout {
        Checkout {
            repo_full_name: "org/app".to_owned(),
            url: "https://git.example/org/app.git".to_owned(),
            tenant: "first".to_owned(),
            project: None,
            branch: "main".to_owned(),
            path: commit_path.to_owned(),
            lfs: true,
            submodules: true,
            scripts: crate::scripts::RepoScripts::default(),
        }
    }

    fn keys(environment: Option<&str>, commands: &[SetupCommand], commit: Option<&str>) -> Vec<Option<CheckpointKey>> {
        let project: ProjectId = "prj_a1111111".parse().unwrap();
        let inputs = Inputs {
            project: &project,
            epoch: 0,
            git_identity: None,
            variables: Some(1),
            checkouts: &[checkout("/home/app")],
            project_setup: commands,
            pool_setup: &[command("make warm")],
        };
        let known = Known {
            commit,
            ..Known::default()
        };
        let stages = stages(environment, 600, &inputs, &[known]);
        let works: Vec<_> = stages.iter().map(|stage| stage.work).collect();
        let projects = (0..commands.len()).map(Work::Project);
        let expected = [Work::Base, Work::Variables, Work::Clone(0)].into_iter();
        assert_eq!(
            works,
            expected.chain(projects).chain([Work::Pool(0)]).collect::<Vec<_>>()
        );
        stages.into_iter().map(|stage| stage.key).collect()
    }

    #[test]
    fn changed_command_changes_its_key_and_the_later_ones_only() {
        let one = keys(Some("host"), &[command("a"), command("b")], Some("c0ffee"));
        let other = keys(Some("host"), &[command("a"), command("c")], Some("c0ffee"));
        assert_eq!(one[..4], other[..4]);
        assert!(one[4..].iter().zip(&other[4..]).all(|(one, other)| one != other));
        assert_eq!(one, keys(Some("host"), &[command("a"), command("b")], Some("c0ffee")));
    }

    #[test]
    fn names_of_stages_are_pinned() {
        let (clone, project, pool) = (Work::Clone(0), Work::Project(2), Work::Pool(0));
        let (hooks, hook) = (Work::Hooks(1), Work::Hook(0, 2));
        let (scripts, startup) = (Work::Initialize, Work::Startup);
        let all = [
            Work::Base,
            Work::Identity,
            Work::Variables,
            clone,
            hooks,
            hook,
            project,
            scripts,
            pool,
            startup,
        ];
        assert_eq!(
            all.map(|work| work.to_string()).join(", "),
            "base, git_identity, set_env_vars, clone_repo 1, init_repo 2, init_repo 1 3, project_setup 3, repo_setup initialize, \
             warm_pool_setup 1, repo_setup startup"
        );
    }

    #[test]
    fn unknown_commit_or_environment_leaves_nothing_to_freeze_from_there_on() {
        let frozen = |keys: Vec<Option<CheckpointKey>>| keys.iter().map(Option::is_some).collect::<Vec<_>>();
        assert_eq!(frozen(keys(Some("host"), &[], None)), [true, true, false, false]);
        assert_eq!(frozen(keys(None, &[], Some("c0ffee"))), [false; 4]);
    }
}
