//! Provisioning: from a row in the state `provisioning` to a VM that is ready, in eight steps. Every step's entry is in the
//! store when the step has ended. Nothing here decides *whether* a VM is made (the planner does), and nothing here writes
//! a state (the pools' controller does).

pub mod advice;
pub mod cause;
pub mod checkpoints;
mod commands;
pub mod end_request;
mod hooks;
pub mod live_log;
pub mod lost;
pub mod output;
pub mod plan;
pub mod repositories;
pub mod run;
pub mod scripts;
pub mod step_log;
pub mod vm;

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::{Driver, Locks};

use crate::recipes::target::Recipes;
use crate::repos::mirrors::Mirrors;
use crate::store::Store;
use crate::vms::connections::Connections;
use crate::vms::host_keys::HostKeys;
use live_log::LiveLogs;

/// How long a build waits for its VM.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Time limit of one set-up command.
    pub command: Duration,
    /// Time a VM has to boot until its agent answers.
    pub boot: Duration,
}

/// What builds and forks VMs for instances. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Builder {
    /// Where entries go.
    store: Store,
    driver: Arc<dyn Driver>,
    connections: Connections,
    /// The repositories on the host.
    mirrors: Mirrors,
    /// Who is watching.
    live_logs: LiveLogs,
    recipes: Recipes,
    /// RSA keys for VMs with an SSH server.
    host_keys: HostKeys,
    /// One build per project, and one per base, at a time.
    locks: Locks<String>,
    timeouts: Timeouts,
}

impl Builder {
    /// No build is under way.
    #[must_use]
    pub fn new(
        store: Store,
        driver: Arc<dyn Driver>,
        connections: Connections,
        mirrors: Mirrors,
        live_logs: LiveLogs,
        recipes: Recipes,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            store,
            driver,
            connections,
            mirrors,
            live_logs,
            recipes,
            host_keys: HostKeys::default(),
            locks: Locks::default(),
            timeouts,
        }
    }

    /// RSA keys for VMs with an SSH server: others that make VMs take from the same.
    #[must_use]
    pub fn host_keys(&self) -> HostKeys {
        self.host_keys.clone()
    }
}
