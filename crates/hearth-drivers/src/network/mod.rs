//! The VM network: private network namespaces in which every QEMU runs, so that no guest reaches the
//! host's loopback, the host's own addresses or a private network behind it, and yet all of them reach the world, or what their
//! project's egress policy lets them reach of it.
//!
//! Four parts, none of which needs root: a **holder** (a sleeping process in a user, network and mount namespace of its own),
//! packet rules inside it, an **uplink** (slirp4netns), and the [**gateway**](gateway) between VMs and the uplink, which gives each VM
//! a namespace of its own. They are made in that order, so the network is never open.
//! They outlive the server; the next one adopts them. This module starts no VM and knows nothing of their files,
//! except that the holder's mount namespace shows them under the short path [`INSIDE`].

mod egress;
mod gateway;
mod rules;

pub use egress::{gateway_program, parse_resolver};
pub use gateway::{WORD as GATEWAY_WORD, run as run_gateway};
pub use rules::{closed_network, host_addresses, never_open, not_public};

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hearth_host::program;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::process::{self, ProcessId};
use crate::vm_user::{self, VmUser};
use crate::{DriverError, error};

/// Where the holder's mount namespace shows the data folder's `vms`, `templates` and `images`. Every Linux has this folder, and
/// covering it is not seen by other processes. It makes paths short (a socket's path must fit 108 bytes, data folders can lie deep)
/// and reachable for QEMU even when the data folder lies below a folder that only root may enter.
pub(crate) const INSIDE: &str = "/mnt";

/// The interface inside the namespace.
const INTERFACE: &str = "tap0";
/// As large as slirp4netns allows: packets of this link never touch a wire.
const MTU: u32 = 65520;
/// Longest wait for a helper to come up. They need about 50 ms; a machine busy booting VMs gets some more.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Longest wait for a killed helper to be gone.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Environment variable that marks our helpers, so that they are found even when their record was lost.
const MARKER: &str = "HEARTH_NETWORK";

/// Makes the short paths, then covers the rest of the data folder: QEMU may run as the user whose database and key lie there.
/// `$1` data folder, `$2` image folder.
const MOUNTS: &str = r#"
mount --bind "$1/vms" "$1/network/root/vms"
mount --bind "$1/templates" "$1/network/root/templates"
mount --bind "$2" "$1/network/root/images"
mount --rbind "$1/network/root" /mnt
mount --bind /mnt/gateway.conf /etc/resolv.conf
case "$1" in /mnt|/mnt/*) ;; *) mount -t tmpfs -o size=4k,mode=0555 none "$1" ;; esac
"#;
/// Says that the namespaces stand and sleeps for ever.
const HOLD: &str = "echo ready\nexec sleep infinity >/dev/null 2>&1\n";
/// Gives the VMs' user a device node that it may open, seen by the process and its children only; for hosts on which no user
/// has set the usual modes. `$device` an empty folder, `$name` below /dev, `$minor` its number among the miscellaneous devices.
const OWN_NODE: &str = r#"
mount -t tmpfs -o mode=0755 none "$device"
mknod -m 0666 "$device/node" c 10 "$minor"
mount --bind "$device/node" "/dev/$name"
umount -l "$device"
"#;
/// The numbers that Linux has given to the two devices for good.
const TUN: &str = "name=net/tun minor=200";
const KVM: &str = "name=kvm minor=232";

/// What root keeps while it makes namespaces as another user, in words for `setpriv`.
pub(crate) const KEEP_FOR_NAMESPACES: [&str; 4] = ["--inh-caps", "+sys_admin", "--ambient-caps", "+sys_admin"];

/// Counts up when [`MOUNTS`] changes: a holder that an older server has made does not show everything, and is replaced.
const LAYOUT: u32 = 2;

/// What stands, as written to `network/network.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// [`LAYOUT`] of the holder.
    #[serde(default)]
    layout: u32,
    holder: Option<ProcessId>,
    uplink: Option<ProcessId>,
    #[serde(default)]
    gateway: Option<ProcessId>,
    /// What the gateway was last told that holds for all VMs.
    #[serde(default)]
    configured: Option<String>,
    /// Uplinks and gateways of holders that died while VMs still ran in their namespace: those VMs keep their network until they end.
    #[serde(default)]
    retired: Vec<ProcessId>,
    /// The packet rules as last applied.
    rules: Option<String>,
}

/// The VM network of one installation.
#[derive(Debug)]
pub(crate) struct VmNetwork {
    data_dir: PathBuf,
    images_dir: PathBuf,
    marker: String,
    user: VmUser,
    /// What becomes the gateway.
    program: PathBuf,
    /// Who answers the VMs' name queries.
    upstream: SocketAddrV4,
    gate: Mutex<()>,
}

impl VmNetwork {
    /// Both folders must exist and be absolute.
    pub(crate) fn new(
        data_dir: PathBuf,
        images_dir: PathBuf,
        installation: &str,
        user: VmUser,
        program: PathBuf,
        upstream: Option<SocketAddrV4>,
    ) -> Self {
        Self {
            data_dir,
            images_dir,
            marker: format!("{MARKER}={installation}"),
            user,
            program,
            upstream: upstream.unwrap_or(rules::DNS),
            gate: Mutex::new(()),
        }
    }

    fn folder(&self) -> PathBuf {
        self.data_dir.join("network")
    }

    /// The words to put before a command so that it runs inside, as the VMs' user.
    pub(crate) fn enter(&self, holder: i32) -> Vec<String> {
        self.enter_by(holder, "--net")
    }

    /// The same in a VM's namespace.
    pub(crate) fn enter_namespace(&self, holder: i32, namespace: &str) -> Vec<String> {
        self.enter_by(holder, &format!("--net={namespace}"))
    }

    fn enter_by(&self, holder: i32, net: &str) -> Vec<String> {
        let mut arguments = self.user.prefix();
        let nsenter = [
            "nsenter",
            "--preserve-credentials",
            "--user",
            net,
            "--mount",
            "--target",
        ];
        arguments.extend(nsenter.map(str::to_owned));
        arguments.push(holder.to_string());
        arguments.push("--".into());
        arguments
    }

    /// Makes whatever is missing and gives the holder's process number. Cheap when all stands.
    pub(crate) async fn ensure(&self) -> Result<i32, DriverError> {
        let _one_at_a_time = self.gate.lock().await;
        for (name, package) in [
            ("unshare", "util-linux"),
            ("nsenter", "util-linux"),
            ("setpriv", "util-linux"),
            ("setsid", "util-linux"),
            ("slirp4netns", "slirp4netns"),
            ("nft", "nftables"),
        ] {
            error::need(name, package)?;
        }
        let before = self.load()?;
        let mut record = before.clone();
        let current = record.holder.as_ref().filter(|_| record.layout == LAYOUT);
        let holder = match living(current)? {
            Some(holder) => holder,
            None => {
                record.retired.extend(record.uplink.take());
                record.retired.extend(record.gateway.take());
                record.retired.retain(|uplink| uplink.is_alive().unwrap_or(true));
                record.rules = None;
                let holder = self.start_holder().await?;
                record.holder = Some(holder.clone());
                record.layout = LAYOUT;
                self.save(&record)?;
                holder
            }
        };
        let addresses =
            rules::host_addresses().map_err(|error| error::io("cannot list this host's addresses", error))?;
        let wanted = rules::text(&addresses, self.upstream);
        if record.rules.as_ref() != Some(&wanted) {
            self.apply_rules(holder.pid, &wanted).await?;
            record.rules = Some(wanted);
        }
        if living(record.uplink.as_ref())?.is_none() {
            record.uplink = Some(self.start_uplink(holder.pid).await?);
            // At once: one that no record names would keep the next one from starting, should the gateway fail.
            self.save(&record)?;
        }
        if living(record.gateway.as_ref())?.is_none() {
            record.gateway = Some(self.start_gateway(holder.pid).await?);
            record.configured = None;
            self.save(&record)?;
        }
        let closed = rules::closed(&addresses);
        let wanted = format!("{closed:?} {}", self.upstream);
        if record.configured.as_ref() != Some(&wanted) {
            self.configure(holder.pid, closed).await?;
            record.configured = Some(wanted);
        }
        if record != before {
            self.save(&record)?;
        }
        Ok(holder.pid)
    }

    /// Ends the holder and the uplinks. Call it only when no VM is left: their network ends with it.
    pub(crate) async fn shutdown(&self) -> Result<(), DriverError> {
        let _one_at_a_time = self.gate.lock().await;
        let record = self.load()?;
        let mut ours: Vec<ProcessId> = record
            .holder
            .into_iter()
            .chain(record.uplink)
            .chain(record.gateway)
            .chain(record.retired)
            .collect();
        // Those of a server that was killed between starting a helper and writing its record.
        ours.extend(self.find_marked()?);
        for helper in ours {
            helper
                .kill(END_DEADLINE)
                .await
                .map_err(|error| DriverError::unknown("a helper of the VM network did not end").caused_by(error))?;
        }
        self.remove_folder()
            .map_err(|error| error::io("cannot remove the VM network's folder", error))
    }

    /// Name by name and never recursively: should a mount ever have leaked out of the namespace, every VM and image would
    /// lie below this folder.
    fn remove_folder(&self) -> std::io::Result<()> {
        let folder = self.folder();
        let gone = |result: std::io::Result<()>| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        for file in [
            "network.json",
            "holder.log",
            "uplink.log",
            "gateway.log",
            "root/resolv.conf",
            "root/gateway.conf",
        ] {
            gone(std::fs::remove_file(folder.join(file)))?;
        }
        self.remove_places()?;
        for empty in ["root/vms", "root/templates", "root/images", "root", "device", ""] {
            gone(std::fs::remove_dir(folder.join(empty)))?;
        }
        Ok(())
    }

    fn load(&self) -> Result<Record, DriverError> {
        match std::fs::read(self.folder().join("network.json")) {
            // A record that was torn by a crash is as good as none: helpers are then found by their marker.
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error::io("cannot read the VM network's record", error)),
        }
    }

    fn save(&self, record: &Record) -> Result<(), DriverError> {
        hearth_host::files::write_json(&self.folder().join("network.json"), record)
            .map_err(|error| error::io("cannot write the VM network's record", error))
    }

    /// A command whose process stays what it becomes: every word of the chain replaces the one before, so the process
    /// number is the final program's. `setsid` frees it from our terminal and our process group.
    fn helper(&self, arguments: &[String], log: &Path) -> Result<Command, DriverError> {
        let log =
            std::fs::File::create(log).map_err(|error| error::io(format!("cannot write {}", log.display()), error))?;
        let mut command = program::clean("setsid");
        if let Some((name, value)) = self.marker.split_once('=') {
            command.env(name, value);
        }
        command.args(arguments).stdout(Stdio::piped()).stderr(log);
        Ok(command)
    }

    async fn start_holder(&self) -> Result<ProcessId, DriverError> {
        let retired = self.load()?.retired;
        for stray in self.find_marked()? {
            if !retired.contains(&stray) && !self.serves_vms(&stray) {
                tracing::warn!(pid = stray.pid, "ending a stray holder of the VM network");
                let _ = stray.kill(END_DEADLINE).await;
            }
        }
        self.prepare_folder()
            .map_err(|error| error::io("cannot prepare the VM network's folder", error))?;
        let unshare_user = "unshare --user --map-root-user --net --mount --propagation private --";
        let script = match &self.user {
            // An ordinary user owns the right to mount only inside the new user namespace.
            VmUser::Same => format!("set -eu\n{MOUNTS}\n{HOLD}"),
            // Root mounts first (an ordinary user could not reach below a closed folder), then gives root up. The one right
            // kept until the namespace is made is what hosts with restricted user namespaces ask for; `unshare` loses it.
            VmUser::Other { .. } => {
                let drop = self.user.prefix().join(" ");
                let keep = KEEP_FOR_NAMESPACES.join(" ");
                let kvm = if vm_user::kvm_is_roots_alone() {
                    format!("device=$1/network/device {KVM}{OWN_NODE}")
                } else {
                    String::new()
                };
                format!("set -eu\n{kvm}{MOUNTS}\nexec {drop} {keep} {unshare_user} sh -c '{HOLD}'\n")
            }
        };
        let isolate = match &self.user {
            VmUser::Same => unshare_user.to_owned(),
            VmUser::Other { .. } => "unshare --mount --propagation private --".to_owned(),
        };
        let mut arguments: Vec<String> = isolate.split(' ').map(str::to_owned).collect();
        arguments.extend(["sh".into(), "-c".into(), script, "hearth-network".into()]);
        arguments.push(self.data_dir.display().to_string());
        arguments.push(self.images_dir.display().to_string());
        let log = self.folder().join("holder.log");
        start(self.helper(&arguments, &log)?, "ready")
            .await
            .map_err(|failure| holder_error(&failure, &log))
    }

    /// Our helpers, recorded or not.
    fn find_marked(&self) -> Result<Vec<ProcessId>, DriverError> {
        process::find_by_environment(&self.marker)
            .map_err(|error| error::io("cannot look for the VM network's helpers", error))
    }

    /// Whether a marked process is an uplink or a gateway rather than a holder.
    fn serves_vms(&self, process: &ProcessId) -> bool {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        line.starts_with(b"slirp4netns") || words.any(|word| word == gateway::WORD.as_bytes())
    }

    fn prepare_folder(&self) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = self.folder();
        let root = folder.join("root");
        for path in [
            root.join("vms"),
            root.join("templates"),
            root.join("images"),
            folder.join("device"),
        ] {
            std::fs::create_dir_all(path)?;
        }
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))?;
        // Not the file that holders of older servers show: the VMs in those have no gateway.
        let resolver = root.join("gateway.conf");
        std::fs::write(&resolver, format!("nameserver {}\n", gateway::ADDRESS))?;
        std::fs::set_permissions(&resolver, std::fs::Permissions::from_mode(0o644))
    }

    async fn apply_rules(&self, holder: i32, rules: &str) -> Result<(), DriverError> {
        let arguments = self.enter(holder);
        let mut command = program::clean(arguments.first().map_or("nsenter", String::as_str));
        command.args(arguments.iter().skip(1)).args(["nft", "--file", "-"]);
        let output = program::run(command, rules.as_bytes())
            .await
            .map_err(|error| DriverError::retry("cannot run nft inside the VM network").caused_by(error))?;
        if output.status.success() {
            return Ok(());
        }
        Err(DriverError::permanent(format!(
            "the VM network's packet rules were refused by nft ({}); VMs are not started without them. If the kernel lacks \
             nf_tables, load it: `modprobe nf_tables` (as root)",
            program::last_output(&output.stderr)
        )))
    }

    async fn start_uplink(&self, holder: i32) -> Result<ProcessId, DriverError> {
        let drop = self.user.prefix().join(" ");
        let tun = Tun::inspect(&self.user)?;
        let mounts = if tun == Tun::NeedsOwnNode {
            format!("device=$1 {TUN}{OWN_NODE}")
        } else {
            String::new()
        };
        let script = format!(
            "set -eu\n{mounts}\nexec {drop} slirp4netns --configure --mtu={MTU} --cidr={} --disable-host-loopback \
             --enable-sandbox --enable-seccomp --ready-fd=3 \"$2\" {INTERFACE} 3>&1 1>/dev/null\n",
            rules::CIDR
        );
        let mut arguments: Vec<String> = Vec::new();
        if tun == Tun::NeedsOwnNode {
            arguments.extend(["unshare", "--mount", "--propagation", "private", "--"].map(str::to_owned));
        }
        arguments.extend(["sh".into(), "-c".into(), script, "hearth-uplink".into()]);
        arguments.push(self.folder().join("device").display().to_string());
        arguments.push(holder.to_string());
        let log = self.folder().join("uplink.log");
        start(self.helper(&arguments, &log)?, "1").await.map_err(|failure| {
            DriverError::retry(format!(
                "slirp4netns, the VM network's way out, did not start: {}",
                failure.text(&log)
            ))
        })
    }
}

/// The process, if it still lives.
fn living(process: Option<&ProcessId>) -> Result<Option<ProcessId>, DriverError> {
    let alive = process.map(ProcessId::is_alive).transpose();
    let alive = alive.map_err(|error| error::io("cannot look at the VM network's helpers", error))?;
    Ok(process.filter(|_| alive == Some(true)).cloned())
}

/// Whether the uplink's user can open /dev/net/tun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tun {
    Open,
    /// Only root may open it, and we are root: the uplink gets a node of its own.
    NeedsOwnNode,
}

impl Tun {
    pub(crate) fn inspect(user: &VmUser) -> Result<Self, DriverError> {
        use std::os::unix::fs::PermissionsExt;
        let device = Path::new("/dev/net/tun");
        let Ok(metadata) = std::fs::metadata(device) else {
            return Err(DriverError::permanent(
                "this host has no /dev/net/tun, which the VM network needs: run `modprobe tun` (as root)",
            ));
        };
        if metadata.permissions().mode() & 0o006 == 0o006 {
            return Ok(Self::Open);
        }
        match user {
            VmUser::Other { .. } => Ok(Self::NeedsOwnNode),
            VmUser::Same if std::fs::File::options().read(true).write(true).open(device).is_ok() => Ok(Self::Open),
            VmUser::Same => Err(DriverError::permanent(
                "this user may not open /dev/net/tun, which the VM network needs: run `chmod 0666 /dev/net/tun` (as root; it \
                 is what udev does on an ordinary system)",
            )),
        }
    }
}

/// Why a helper did not come up.
#[derive(Debug)]
enum Failure {
    Spawn(std::io::Error),
    Ended,
    Silent,
}

impl Failure {
    fn text(&self, log: &Path) -> String {
        match self {
            Self::Spawn(error) => error.to_string(),
            Self::Ended => program::last_output(&std::fs::read(log).unwrap_or_default()),
            Self::Silent => format!("no sign of life within {} s", START_DEADLINE.as_secs()),
        }
    }
}

/// Starts a helper and waits until it has written a line (or text) that starts with `sign`.
async fn start(mut command: Command, sign: &str) -> Result<ProcessId, Failure> {
    let mut child = command.spawn().map_err(Failure::Spawn)?;
    let output = child.stdout.take();
    let process = ProcessId::of_child(&child);
    // Collects the exit status whenever it ends, so that no zombie stays while we live.
    tokio::spawn(async move { child.wait().await });
    let (Some(output), Ok(process)) = (output, process) else {
        return Err(Failure::Ended);
    };
    let first = async {
        let mut line = Vec::new();
        let mut reader = BufReader::new(output);
        while line.len() < sign.len() {
            let part = reader.fill_buf().await.unwrap_or_default().to_vec();
            if part.is_empty() {
                break;
            }
            reader.consume(part.len());
            line.extend(part);
        }
        line.starts_with(sign.as_bytes())
    };
    match tokio::time::timeout(START_DEADLINE, first).await {
        Ok(true) => Ok(process),
        Ok(false) => Err(Failure::Ended),
        Err(_) => {
            let _ = process.kill(END_DEADLINE).await;
            Err(Failure::Silent)
        }
    }
}

fn holder_error(failure: &Failure, log: &Path) -> DriverError {
    let text = failure.text(log);
    let refused = text.contains("unshare") || text.contains("not permitted") || text.contains("ermission denied");
    if matches!(failure, Failure::Ended) && refused {
        return DriverError::permanent(format!(
            "this host does not let Hearth make the namespaces that keep VMs away from it ({text}). {}",
            namespace_advice()
        ));
    }
    DriverError::retry(format!("the VM network's holder did not start: {text}"))
}

/// What to do when user namespaces are refused; looks at the switches this host has.
pub(crate) fn namespace_advice() -> String {
    let is = |path: &str, value: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor restricts user namespaces here: run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (as root; put \
         it into /etc/sysctl.d to keep it), or run Hearth as root"
            .into()
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "User namespaces are switched off here: run `sysctl -w kernel.unprivileged_userns_clone=1` (as root; put it into \
         /etc/sysctl.d to keep it)"
            .into()
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "User namespaces are switched off here: run `sysctl -w user.max_user_namespaces=65536` (as root; put it into \
         /etc/sysctl.d to keep it)"
            .into()
    } else {
        "In a container, allow user namespaces and mounts (for Docker: `--security-opt seccomp=unconfined --cap-add SYS_ADMIN`)"
            .into()
    }
}
