//! As whom the processes of VMs run, and who may use /dev/kvm.

/// The user id (and group id) that QEMU and the uplink run as when the server is root. No account has it: it is in the range
/// 60578 to 61183, which systemd's table of user ids calls unused and Debian's policy keeps free of dynamic accounts.
const VM_USER: u32 = 60907;

/// As whom the VMs' processes run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VmUser {
    /// The server is an ordinary user and so are they.
    Same,
    /// The server is root; they run as this id instead, with these supplementary groups.
    Other { id: u32, groups: Vec<u32> },
}

impl VmUser {
    /// The one that fits the current process. `wanted` replaces the default id when the server is root.
    pub(crate) fn detect(wanted: Option<u32>) -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self::Same;
        }
        Self::Other {
            id: wanted.unwrap_or(VM_USER),
            groups: kvm_group().into_iter().collect(),
        }
    }

    /// The id that files for QEMU must belong to, when it is not ours.
    pub(crate) fn owner(&self) -> Option<u32> {
        match self {
            Self::Same => None,
            Self::Other { id, .. } => Some(*id),
        }
    }

    /// The id that their processes have.
    pub(crate) fn id(&self) -> u32 {
        self.owner().unwrap_or_else(|| nix::unistd::geteuid().as_raw())
    }

    /// The words to put before a command so that it runs as this user; none for [`VmUser::Same`].
    pub(crate) fn prefix(&self) -> Vec<String> {
        let Self::Other { id, groups } = self else {
            return Vec::new();
        };
        let mut words: Vec<String> = vec![
            "setpriv".into(),
            "--reuid".into(),
            id.to_string(),
            "--regid".into(),
            id.to_string(),
        ];
        if groups.is_empty() {
            words.push("--clear-groups".into());
        } else {
            words.push("--groups".into());
            words.push(groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
        }
        words
    }
}

/// The group that may use /dev/kvm, when a group may.
fn kvm_group() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060 && device.gid() != 0).then_some(device.gid())
}

/// Whether there is a /dev/kvm that only root may open, as on hosts without udev.
pub(crate) fn kvm_is_roots_alone() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/dev/kvm").is_ok_and(|device| device.mode() & 0o006 != 0o006) && kvm_group().is_none()
}
