//! The chain of a provisioning run: its stages in order, each with the key of the checkpoint after it. A key is a hash over
//! the key before and over everything this stage depends on, so equal keys mean equal VMs. Pure.

use hearth_api::pool::SetupCommand;
use hearth_api::settings::Settings;
use hearth_drivers::CheckpointKey;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::blueprint::Blueprint;
use super::scripts::Phase;

/// Counts up when Hearth changes what a stage does with the same inputs.
const CHAIN_VERSION: u32 = 2;

/// What one stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The image, booted and settled: `create_vm` and `ensure_server`.
    Base,
    /// The project's own git identity.
    Identity,
    /// `set_env_vars`.
    Variables,
    /// `clone_repo` of the repository at this place.
    Clone(usize),
    /// `init_repo` of the repository at this place.
    Hooks(usize),
    /// The command of `project_setup` at this place.
    Project(usize),
    /// `repo_setup`: the scripts of all repositories.
    Initialize,
    /// The command of `warm_pool_setup` at this place.
    Pool(usize),
    /// `repo_setup`: the scripts that start services.
    Startup,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// What it does.
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
}

/// The stages of a run. `environment` is what the driver's checkpoints hold for (`None`: nothing can be frozen), `timeout` the
/// time limit of a command in seconds, `known` what is known of each repository, in order.
pub fn stages(environment: Option<&str>, timeout: u64, blueprint: &Blueprint, known: &[Known<'_>]) -> Vec<Stage> {
    let mut chain = Chain {
        stages: Vec::new(),
        key: environment.and_then(|environment| digest(None, &(CHAIN_VERSION, environment))),
    };
    let project = &blueprint.project;
    chain.push(Work::Base, Some(&"base"));
    // From here on nothing is shared between projects: the VM holds what is one project's own.
    chain.fold(&("project", project, blueprint.epoch));
    if let Some(identity) = &blueprint.git_identity {
        chain.push(Work::Identity, Some(&("identity", identity)));
    }
    if !blueprint.variables.is_empty() {
        chain.push(Work::Variables, Some(&("variables", blueprint.variables_version)));
    }
    for (at, (checkout, known)) in blueprint.checkouts.iter().zip(known).enumerate() {
        let along = (checkout.lfs, checkout.submodules);
        let inputs = known
            .commit
            .map(|commit| ("clone", &checkout.url, &checkout.branch, &checkout.path, commit, along));
        chain.push(Work::Clone(at), inputs.as_ref());
    }
    for (at, (checkout, known)) in blueprint.checkouts.iter().zip(known).enumerate() {
        match known.settings {
            Some(Ok(settings)) if !settings.hooks.setup.is_empty() => {
                let commands: Vec<_> = settings.hooks.setup.iter().map(|hook| hook.command()).collect();
                chain.push(Work::Hooks(at), Some(&("hooks", &checkout.path, commands, timeout)));
            }
            Some(Err(())) => chain.push::<()>(Work::Hooks(at), None),
            _ => {}
        }
    }
    chain.commands(Work::Project, "project", &blueprint.project_setup, timeout);
    chain.scripts(Work::Initialize, Phase::Initialize, blueprint);
    chain.commands(Work::Pool, "pool", &blueprint.pool_setup, timeout);
    chain.scripts(Work::Startup, Phase::Startup, blueprint);
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

    fn scripts(&mut self, work: Work, phase: Phase, blueprint: &Blueprint) {
        let specs: Vec<_> = blueprint
            .checkouts
            .iter()
            .filter_map(|checkout| checkout.scripts.spec(phase, &checkout.path))
            .map(|spec| (spec.shell, spec.cwd, spec.timeout_ms))
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
