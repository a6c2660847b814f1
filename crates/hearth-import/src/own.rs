//! What was read, as a project's own set-up: its commands as the pool's, the other scripts as the setup object's.

use hearth_api::pool::SetupCommand;
use hearth_api::project::VmSize;
use hearth_api::setup::Scripts;
use hearth_api::values::{CommandText, Name};

use crate::{Imported, Needs};

/// Characters that a command's name may have.
const MAX_NAME: usize = 200;
/// vCPUs and MiB of the sizes, smallest first, as they are unless the server was told otherwise.
const SIZES: [(u64, u64); 5] = [(1, 1024), (2, 2048), (4, 8192), (8, 16384), (16, 32768)];

/// A set-up that a project can save.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnSetUp {
    /// The pool's commands, in their order. Each enters the checkout first.
    pub commands: Vec<SetupCommand>,
    /// The repository's scripts.
    pub scripts: Scripts,
    /// What the VM must be at least; `None` where no file says it.
    pub vm_size: Option<VmSize>,
}

impl Imported {
    /// The same as a project's own. `workspace`: the checkout in VMs. The error says which command cannot be one.
    pub fn own_set_up(&self, workspace: &str) -> Result<OwnSetUp, String> {
        let hooks = &self.settings.hooks;
        let mut commands = Vec::new();
        for (hook, source) in hooks.setup.iter().zip(&self.sources) {
            let name = source.to_string();
            let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
            let invalid = |error: hearth_api::values::Invalid| format!("{source}: {error}");
            commands.push(SetupCommand {
                name: Name::try_from(name).map_err(invalid)?,
                command: CommandText::try_from(format!("cd {workspace}\n{}", hook.command())).map_err(invalid)?,
                background: None,
                timeout_seconds: None,
            });
        }
        Ok(OwnSetUp {
            commands,
            scripts: Scripts {
                initialize: None,
                update_after_checkout: hooks.update_after_checkout.clone(),
                startup: hooks.startup.clone(),
            },
            vm_size: self.needs.vm_size(),
        })
    }
}

impl Needs {
    /// The smallest size that has what the files ask for.
    #[must_use]
    pub fn vm_size(&self) -> Option<VmSize> {
        if self.cpus.is_none() && self.memory_mib.is_none() {
            return None;
        }
        let (cpus, memory) = (self.cpus.unwrap_or_default(), self.memory_mib.unwrap_or_default());
        let enough = SIZES
            .iter()
            .zip(VmSize::ALL)
            .find(|((has_cpus, has_mib), _)| *has_cpus >= cpus && *has_mib >= memory);
        Some(enough.map_or(VmSize::Hyper, |(_, size)| size))
    }
}
