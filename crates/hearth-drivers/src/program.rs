//! Running helper programs: where they are looked for, as whom they run, and how long they may take. Knows nothing of VMs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{CALL_TIMEOUT, DriverError};

/// Where programs are looked for besides PATH: an ordinary user's PATH often lacks the folders in which Debian keeps `nft`.
const EXTRA_PATHS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The user id (and group id) that QEMU and the uplink run as when the server is root. Nobody's: it lies in the range
/// 60578 to 61183, which systemd's table of user ids calls unused and Debian's policy keeps free of dynamic accounts.
const VM_USER: u32 = 60907;

/// PATH for helper programs: ours, and the folders of [`EXTRA_PATHS`].
pub(crate) fn search_path() -> OsString {
    let own = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let folders = std::env::split_paths(&own).chain(EXTRA_PATHS.iter().map(PathBuf::from));
    std::env::join_paths(folders).unwrap_or(own)
}

/// Where a program is, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The same, or an error that says which package to install.
pub(crate) fn need(name: &str, package: &str) -> Result<PathBuf, DriverError> {
    find(name).ok_or_else(|| {
        DriverError::permanent(format!(
            "{name} is not installed: run `apt-get install {package}` (as root)"
        ))
    })
}

/// A command with nothing of the server's environment but PATH: what the server was given (keys, tokens) is no helper's business.
pub(crate) fn clean(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// Runs a short helper to its end, with `input` on its standard input; past the deadline it is killed.
pub(crate) async fn run(mut command: Command, input: &[u8]) -> std::io::Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends without reading its input says why on stderr; that is the better message.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(output) => output,
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
        )),
    }
}

/// The last line a program wrote to stderr, for a person.
pub(crate) fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("it printed no reason").to_owned()
}

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
