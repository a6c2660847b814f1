//! The driver's side of the [gateway](super::gateway): starts it, asks it, and keeps where each VM is and what it may reach, so that
//! another gateway can take over.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hearth_api::egress::{EgressPolicy, RefusedAttempt};
use hearth_api::ids::VmId;
use hearth_host::program;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::gateway::{Known, Reply, Request, WORD};
use super::{VmNetwork, start};
use crate::process::ProcessId;
use crate::{DriverError, error};

/// How long the gateway may take: a change of many packet rules on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);
/// The name of the program that can become the gateway.
const PROGRAM: &str = "hearth";

/// The slot of a VM that has no namespace, because it is paused to the disk. The gateway counts from one.
const NOWHERE: u16 = 0;

/// Where a VM is in the VM network, and what it may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The holder whose gateway serves it.
    holder: i32,
    slot: u16,
    pub(crate) policy: EgressPolicy,
}

/// The program that becomes the gateway: this one, or in a test the one that was built beside it.
#[must_use]
pub fn gateway_program() -> PathBuf {
    // Also when the file was replaced since.
    let own = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let Ok(path) = std::env::current_exe() else { return own };
    let is_it = |name: &str| name == PROGRAM || name.starts_with("hearth ");
    if path.file_name().and_then(|name| name.to_str()).is_some_and(is_it) {
        return own;
    }
    let beside = path.ancestors().skip(1).take(2).map(|folder| folder.join(PROGRAM));
    let mut found = beside.filter(|path| path.is_file());
    found.next().or_else(|| program::find(PROGRAM)).unwrap_or(own)
}

impl VmNetwork {
    fn places(&self) -> PathBuf {
        self.folder().join("places")
    }

    fn place_file(&self, vm: &VmId) -> PathBuf {
        self.places().join(format!("{vm}.json"))
    }

    /// Where a VM is; `None` for one that an older Hearth has made.
    pub(crate) fn place(&self, vm: &VmId) -> Result<Option<Place>, DriverError> {
        match fs::read(self.place_file(vm)) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error::io(format!("cannot read the network place of {vm}"), error)),
        }
    }

    fn write_place(&self, vm: &VmId, place: &Place) -> Result<(), DriverError> {
        fs::create_dir_all(self.places())
            .and_then(|()| hearth_host::files::write_json(&self.place_file(vm), place))
            .map_err(|error| error::io(format!("cannot write the network place of {vm}"), error))
    }

    /// A VM is gone.
    pub(crate) fn forget(&self, vm: &VmId) {
        if let Err(error) = fs::remove_file(self.place_file(vm))
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%vm, %error, "the network place of a VM that is gone could not be removed");
        }
    }

    /// Removes what is left of places and of sockets.
    pub(super) fn remove_places(&self) -> io::Result<()> {
        let sockets = |path: &Path| path.extension().is_some_and(|extension| extension == "sock");
        for (folder, which) in [(self.places(), None), (self.folder(), Some(&sockets))] {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let path = entry?.path();
                if which.is_none_or(|is_one| is_one(&path)) {
                    fs::remove_file(path)?;
                }
            }
        }
        match fs::remove_dir(self.places()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn vms_with_places(&self) -> Vec<VmId> {
        let entries = fs::read_dir(self.places()).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok());
        ids.collect()
    }

    fn known(&self, holder: i32) -> Vec<Known> {
        let vms = self.vms_with_places().into_iter();
        vms.filter_map(|vm| {
            let is_there = |place: &Place| place.holder == holder && place.slot != NOWHERE;
            let place = self.place(&vm).ok().flatten().filter(is_there)?;
            Some(Known {
                vm,
                slot: place.slot,
                policy: place.policy,
            })
        })
        .collect()
    }

    /// The socket of a holder's gateway, by a path that is short wherever the data folder lies; it holds for as long as the folder is open.
    fn socket(&self, holder: i32) -> io::Result<(File, PathBuf)> {
        let folder = File::open(self.folder())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/gateway-{holder}.sock", folder.as_raw_fd()));
        Ok((folder, path))
    }

    pub(super) async fn start_gateway(&self, holder: i32) -> Result<ProcessId, DriverError> {
        let listen = || {
            let (_folder, path) = self.socket(holder)?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::os::unix::net::UnixListener::bind(&path)
        };
        let listener =
            listen().map_err(|error| error::io("cannot make the socket of the VM network's gateway", error))?;
        // Opened before rights are dropped: the VMs' user need not be able to reach the program's folder.
        let drop = self.user.prefix().join(" ");
        let script = format!(
            "set -eu\nexec 3<\"$1\"\nexec {drop} nsenter --preserve-credentials --user --net --target \"$2\" -- /proc/self/fd/3 {WORD}\n"
        );
        let arguments = ["sh", "-c", &script, "hearth-gateway"].map(str::to_owned);
        let mut arguments = arguments.to_vec();
        arguments.push(self.program.display().to_string());
        arguments.push(holder.to_string());
        let log = self.folder().join("gateway.log");
        let mut command = self.helper(&arguments, &log)?;
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        start(command, "ready").await.map_err(|failure| {
            let text = failure.text(&log);
            let advice = match text.contains("ermission denied") {
                true => "; every user must be able to execute the program `hearth` (mode 0755)",
                false => "",
            };
            DriverError::retry(format!("the VM network's gateway did not start: {text}{advice}"))
        })
    }

    /// Tells the gateway what holds for all VMs.
    pub(super) async fn configure(&self, holder: i32, closed: Vec<Ipv4Net>) -> Result<(), DriverError> {
        let request = Request::Configure {
            closed,
            upstream: self.upstream,
            vms: self.known(holder),
        };
        match self.ask(holder, &request).await? {
            Reply::Done => Ok(()),
            other => Err(refused(other)),
        }
    }

    /// A namespace for a VM that is about to start: the words to put before its command.
    pub(crate) async fn take(&self, holder: i32, vm: &VmId) -> Result<Vec<String>, DriverError> {
        let request = Request::Take { vm: vm.clone() };
        match self.ask(holder, &request).await? {
            Reply::Taken { slot, namespace } => {
                // One that was paused to the disk continues with what it may reach.
                let policy = self.place(vm)?.map(|before| before.policy).unwrap_or_default();
                let place = Place { holder, slot, policy };
                self.leave_to(vm, &place)?;
                self.write_place(vm, &place)?;
                if place.policy != EgressPolicy::default() {
                    self.ask_to_hold(vm, &place).await?;
                }
                Ok(self.enter_namespace(holder, &namespace))
            }
            other => Err(refused(other)),
        }
    }

    /// The VM that had this slot before has ended; its record may still be there, and must not be taken for who is in it now.
    fn leave_to(&self, vm: &VmId, taken: &Place) -> Result<(), DriverError> {
        for other in self.vms_with_places() {
            if other != *vm
                && let Some(place) = self.place(&other)?
                && (place.holder, place.slot) == (taken.holder, taken.slot)
            {
                self.leave(&other)?;
            }
        }
        Ok(())
    }

    /// A VM was paused to the disk: its namespace is gone, and what it may reach is kept.
    pub(crate) fn leave(&self, vm: &VmId) -> Result<(), DriverError> {
        match self.place(vm)? {
            Some(place) => self.write_place(vm, &Place { slot: NOWHERE, ..place }),
            None => Ok(()),
        }
    }

    /// A VM that is paused to the disk is to be held to a policy when it is resumed.
    pub(crate) fn hold_later(&self, vm: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        let holder = self.place(vm)?.map_or(0, |place| place.holder);
        let place = Place {
            holder,
            slot: NOWHERE,
            policy: policy.clone(),
        };
        self.write_place(vm, &place)
    }

    async fn ask_to_hold(&self, vm: &VmId, place: &Place) -> Result<(), DriverError> {
        let request = Request::Hold {
            vm: vm.clone(),
            policy: place.policy.clone(),
        };
        match self.ask(place.holder, &request).await? {
            Reply::Done => Ok(()),
            other => Err(refused(other)),
        }
    }

    /// Holds a VM to a policy.
    pub(crate) async fn hold(&self, vm: &VmId, policy: &EgressPolicy) -> Result<(), DriverError> {
        let Some(mut place) = self.place(vm)? else {
            // It reaches everything public and nothing else, and that cannot be changed.
            if *policy == EgressPolicy::default() {
                return Ok(());
            }
            return Err(DriverError::permanent(
                "an older Hearth has made this VM, so it cannot be held to an egress policy: release it, and claim another one",
            ));
        };
        // A gateway that died is made anew.
        self.ensure().await?;
        // Written first: another gateway that takes over must not open what is to be closed.
        place.policy = policy.clone();
        self.write_place(vm, &place)?;
        self.ask_to_hold(vm, &place).await
    }

    /// What a VM was refused, and whether there was more.
    pub(crate) async fn refused(&self, vm: &VmId) -> Result<(Vec<RefusedAttempt>, bool), DriverError> {
        let Some(place) = self.place(vm)? else {
            return Ok((Vec::new(), false));
        };
        if place.slot == NOWHERE {
            return Ok((Vec::new(), false));
        }
        self.ensure().await?;
        match self.ask(place.holder, &Request::Refused { vm: vm.clone() }).await? {
            Reply::Refused { attempts, more } => Ok((attempts, more)),
            other => Err(refused(other)),
        }
    }

    async fn ask(&self, holder: i32, request: &Request) -> Result<Reply, DriverError> {
        let asked = async {
            let (_folder, path) = self.socket(holder)?;
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(&serde_json::to_vec(request)?).await?;
            stream.shutdown().await?;
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await?;
            Ok::<Reply, io::Error>(serde_json::from_slice(&text)?)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                Err(DriverError::retry(format!("the VM network's gateway does not answer: {error}")).caused_by(error))
            }
            Err(_) => Err(DriverError::unknown("the VM network's gateway did not answer in time")),
        }
    }
}

fn refused(reply: Reply) -> DriverError {
    match reply {
        Reply::Failed { reason } => DriverError::retry(format!("the VM network's gateway could not do it: {reason}")),
        Reply::NoSuchVm => DriverError::permanent("the VM network's gateway serves no such VM: it has ended"),
        _ => DriverError::retry("the VM network's gateway gave another answer than it was asked for"),
    }
}

/// An address with a port, or without: the usual one.
pub fn parse_resolver(text: &str) -> Result<SocketAddrV4, String> {
    const PORT: u16 = 53;
    let address = text
        .parse()
        .or_else(|_| text.parse().map(|ip| SocketAddrV4::new(ip, PORT)));
    address.map_err(|_| "write the IPv4 address of a resolver, like 192.168.1.1 or 192.168.1.1:5353".to_owned())
}

#[cfg(test)]
mod tests {
    use hearth_api::egress::EgressMode;

    use super::*;
    use crate::vm_user::VmUser;

    #[test]
    fn slot_belongs_to_the_vm_that_took_it_last() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_owned();
        let network = VmNetwork::new(data.clone(), data, "test", VmUser::detect(None), "hearth".into(), None);
        let place = |holder, mode| Place {
            holder,
            slot: 7,
            policy: EgressPolicy {
                mode,
                ..EgressPolicy::default()
            },
        };
        let (dead, lives, elsewhere) = (VmId::generate(), VmId::generate(), VmId::generate());
        network.write_place(&dead, &place(1, EgressMode::Open)).unwrap();
        network.write_place(&elsewhere, &place(2, EgressMode::Open)).unwrap();
        let taken = place(1, EgressMode::Allow);
        network.leave_to(&lives, &taken).unwrap();
        network.write_place(&lives, &taken).unwrap();
        let known = network.known(1);
        assert_eq!(
            known.iter().map(|known| (&known.vm, known.slot)).collect::<Vec<_>>(),
            [(&lives, 7)]
        );
        assert_eq!(known[0].policy, taken.policy);
        assert_eq!(network.known(2).len(), 1, "a slot of another holder is another one");
    }
}
