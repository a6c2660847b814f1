//! What a test does to VMs from outside, and what it reads of them.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use hearth_api::ids::VmId;
use hearth_guest::requests::{GuestQuestion, HostAnswer};
use hearth_guest::{Activate, ExecSpec};

use super::{ExecRule, FREE_BYTES, FakeDriver, Verb};
use crate::CheckpointKey;

impl FakeDriver {
    /// Ends a VM as `kill -9` of its process would. False when it does not run.
    pub fn crash(&self, id: &VmId) -> bool {
        let mut state = self.world.state();
        let crashed = state.machines.crash(id);
        crashed.map(|inside| inside.connection.cancel()).is_some()
    }

    /// Stops a VM as `kill -STOP` of its process would: nothing in it answers. False when it does not run.
    pub fn halt(&self, id: &VmId) -> bool {
        self.hang(id, true);
        self.world.state().machines.set_halted(id, true)
    }

    /// Lets the guest of a VM hang, as a kernel that is stuck would: its processors run, and nothing in it answers; or lets it
    /// answer again. False when there is none.
    pub fn hang(&self, id: &VmId, hangs: bool) -> bool {
        self.guest(id).map(|guest| guest.set_hanging(hangs)).is_some()
    }

    /// Lets all agents answer so much later, as on a host whose processors are overloaded.
    pub fn answer_late(&self, by: Duration) {
        self.world.lateness.set(by);
    }

    /// Ends a VM as `poweroff` in it would. False when it does not run.
    pub fn power_off(&self, id: &VmId) -> bool {
        let guest = self.guest(id);
        if let Some(guest) = guest {
            guest.say("[   42.000000] reboot: Power down");
        }
        self.crash(id)
    }

    /// Lets the kernel of a VM panic, which restarts it. False when it does not run.
    pub fn panic(&self, id: &VmId) -> bool {
        self.restart(id, "[   42.000000] Kernel panic - not syncing: sysrq triggered crash")
    }

    /// Restarts the guest of a VM, as `reboot` in it would: another boot id, the same files. False when it does not run.
    pub fn reboot(&self, id: &VmId) -> bool {
        self.restart(id, "[   42.000000] reboot: Restarting system")
    }

    fn restart(&self, id: &VmId, last_line: &str) -> bool {
        let mut state = self.world.state();
        let boots = state.machines.inside_mut(id).map(|inside| {
            inside.guest.say(last_line);
            inside.guest.reboot();
            inside.connection.cancel();
        });
        boots.is_ok()
    }

    /// Lets the host's disk be full, and a VM write to it, which stops the VM. False when there is none.
    pub fn fill_disk(&self, id: &VmId) -> bool {
        {
            let mut disk = self.world.disk();
            disk.free_bytes = 0;
            disk.waiting.insert(id.clone());
        }
        self.hang(id, true)
    }

    /// Makes room on the host's disk. VMs that wait for it continue when they are resumed.
    pub fn free_disk(&self) {
        self.world.disk().free_bytes = FREE_BYTES;
    }

    /// Damages a checkpoint. False when there is none.
    pub fn damage(&self, key: &CheckpointKey) -> bool {
        self.world.state().machines.damage(key)
    }

    /// Adds a rule in front of all others.
    pub fn add_rule(&self, rule: ExecRule) {
        self.world
            .rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(0, rule);
    }

    /// Lets something listen on this port in every VM: connections lead to the server at this address.
    pub fn listen(&self, port: u16, server: std::net::SocketAddr) {
        self.world.ports.open(port, server);
    }

    /// The commands that a VM was asked to run, oldest first.
    #[must_use]
    pub fn commands(&self, id: &VmId) -> Vec<ExecSpec> {
        self.guest(id).map(|guest| guest.commands()).unwrap_or_default()
    }

    /// A file that was written into a VM.
    #[must_use]
    pub fn file(&self, id: &VmId, path: &str) -> Option<Bytes> {
        self.guest(id)?.file(path)
    }

    /// All files that were written into a VM, by their path.
    #[must_use]
    pub fn files(&self, id: &VmId) -> BTreeMap<String, Bytes> {
        self.guest(id).map(|guest| guest.files()).unwrap_or_default()
    }

    /// A program in a VM asks the host; `None` when no host reads its questions.
    pub async fn ask(&self, id: &VmId, question: GuestQuestion) -> Option<HostAnswer> {
        self.guest(id)?.questions.ask(question).await
    }

    /// The clock that was set in a VM, nanoseconds since the Unix epoch.
    #[must_use]
    pub fn clock(&self, id: &VmId) -> Option<i64> {
        self.guest(id)?.clock()
    }

    /// The identity that a VM was last given.
    #[must_use]
    pub fn activated(&self, id: &VmId) -> Option<Activate> {
        self.guest(id)?.activated()
    }

    /// How often a verb has been called.
    #[must_use]
    pub fn calls(&self, verb: Verb) -> u64 {
        self.world.state().calls.get(&verb).copied().unwrap_or_default()
    }

    /// The same of every verb.
    #[must_use]
    pub fn all_calls(&self) -> BTreeMap<Verb, u64> {
        self.world.state().calls.clone()
    }
}
