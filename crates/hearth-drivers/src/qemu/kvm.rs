//! Whether hardware virtualisation works. A `/dev/kvm` that opens, and even makes VMs, may still not work: on some hosts
//! an ordinary guest kernel then hangs for ever. So a tiny guest must have booted under it; the verdict is kept in a file.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hearth_host::{files, program};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use super::command::{self, Accelerator};
use crate::network::VmNetwork;
use crate::{DriverError, error, process};

/// How long the tiny guest may take. Working KVM needs 0.5 to 1 s; this leaves room for a busy host.
const BOOT_DEADLINE: Duration = Duration::from_secs(10);
/// Processor time after which the kernel ends the tiny guest: one that hangs would else do so for ever, at full
/// speed, when the server is killed while it waits.
const CPU_SECONDS: u32 = 30;
/// What the image's initrd prints when the kernel argument `hearth.probe` is set, before it powers off.
const SIGN: &[u8] = b"HEARTH-PROBE-OK";
/// Memory of the tiny guest: kernel and initrd with room to unpack.
const MEMORY: &str = "256M";
/// Tried in this order: the host's own model is fastest; where passing it through fails, an old model every 64-bit host can do.
const MODELS: [&str; 2] = ["host", "Nehalem"];
/// File in the data folder.
const FILE: &str = "kvm-verdict.json";

/// What was found out about KVM on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether VMs run on it.
    pub usable: bool,
    /// Why, for a person.
    pub reason: String,
    /// The processor model that booted.
    #[serde(default)]
    pub(super) cpu: Option<String>,
}

/// What a verdict holds for: with another kernel, QEMU or image it is tested again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) kernel: String,
    pub(super) qemu: String,
    pub(super) image: String,
    /// The user QEMU runs as: another one may not be allowed to open the device.
    pub(super) user: u32,
    /// The device's mode, group, and whether we can open it; `None` without a device. When these change, it is worth testing again.
    pub(super) device: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: Key,
    verdict: Verdict,
}

/// The host's kernel release.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What [`Key::device`] holds.
pub(super) fn device() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let path = Path::new("/dev/kvm");
    let metadata = std::fs::metadata(path).ok()?;
    let opens = std::fs::File::options().read(true).write(true).open(path).is_ok();
    Some(format!("{:o} {} {opens}", metadata.mode() & 0o777, metadata.gid()))
}

/// Whether there is anything to try.
pub(crate) fn device_exists() -> bool {
    Path::new("/dev/kvm").exists()
}

/// The verdict that was kept for the running kernel, whatever QEMU and image it was found with; for showing.
pub(crate) fn kept(data_dir: &Path) -> Option<Verdict> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(data_dir.join(FILE)).ok()?).ok()?;
    (kept.key.kernel == kernel_release() && kept.key.device == device()).then_some(kept.verdict)
}

/// The kept verdict if it holds for `key`, else a new one, found by booting a tiny guest, and kept.
pub(super) async fn decide(
    data_dir: &Path,
    key: Key,
    network: &VmNetwork,
    installation: &str,
) -> Result<Verdict, DriverError> {
    let path = data_dir.join(FILE);
    let kept: Option<Kept> = std::fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(kept) = kept.filter(|kept| kept.key == key) {
        return Ok(kept.verdict);
    }
    let verdict = if key.device.is_some() {
        try_models(&key.image, network, installation).await?
    } else {
        let reason = "this host has no /dev/kvm: no hardware virtualisation, or its kernel module is not loaded";
        Verdict {
            usable: false,
            reason: reason.into(),
            cpu: None,
        }
    };
    tracing::info!(usable = verdict.usable, reason = verdict.reason, "KVM verdict");
    files::write_json(
        &path,
        &Kept {
            key,
            verdict: verdict.clone(),
        },
    )
    .map_err(|error| error::io("cannot keep the KVM verdict", error))?;
    Ok(verdict)
}

/// The value after `-name` for tiny guests; no VM is called like that.
fn trial_name(installation: &str) -> String {
    format!("hearth-trial/{installation}")
}

/// Ends tiny guests that a killed server has left.
pub(super) async fn end_strays(installation: &str) {
    let name = trial_name(installation);
    let strays = process::find_by_argument("-name", |found| (found == name).then_some(()));
    for (stray, ()) in strays.unwrap_or_default() {
        let _ = stray.kill(BOOT_DEADLINE).await;
    }
}

async fn try_models(image: &str, network: &VmNetwork, installation: &str) -> Result<Verdict, DriverError> {
    end_strays(installation).await;
    let mut reasons = Vec::new();
    for model in MODELS {
        match boot(model, image, network, installation).await? {
            Ok(took) => {
                let reason = format!(
                    "a tiny guest booted under KVM (-cpu {model}) in {:.1} s",
                    took.as_secs_f64()
                );
                return Ok(Verdict {
                    usable: true,
                    reason,
                    cpu: Some(model.into()),
                });
            }
            Err(reason) => reasons.push(format!("-cpu {model}: {reason}")),
        }
    }
    let reason = format!("no guest boots under KVM here ({})", reasons.join("; "));
    Ok(Verdict {
        usable: false,
        reason,
        cpu: None,
    })
}

/// Boots the image's kernel under KVM. The inner error says why it did not come up.
async fn boot(
    model: &str,
    image: &str,
    network: &VmNetwork,
    installation: &str,
) -> Result<Result<Duration, String>, DriverError> {
    let image = command::image_inside(image);
    let mut arguments = network.enter(network.ensure().await?);
    arguments.extend([
        "prlimit".into(),
        format!("--cpu={CPU_SECONDS}:{CPU_SECONDS}"),
        "--".into(),
    ]);
    arguments.extend(command::WITHOUT_RIGHTS.map(str::to_owned));
    arguments.extend(command::base(&Accelerator::Kvm { cpu: model.into() }));
    arguments.extend(["-name".into(), trial_name(installation)]);
    let rest = [
        "-m",
        MEMORY,
        "-no-reboot",
        "-chardev",
        "stdio,id=console",
        "-serial",
        "chardev:console",
    ];
    arguments.extend(rest.map(str::to_owned));
    arguments.extend([
        "-kernel".into(),
        format!("{image}/vmlinuz"),
        "-initrd".into(),
        format!("{image}/initrd"),
    ]);
    arguments.extend(["-append".into(), "console=ttyS0 panic=-1 hearth.probe".into()]);
    let mut command = program::clean(arguments.first().map_or("nsenter", String::as_str));
    command
        .args(arguments.iter().skip(1))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let begin = Instant::now();
    let mut child = command.spawn().map_err(|error| error::io("cannot start QEMU", error))?;
    let (Some(mut console), Some(mut complaints)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(DriverError::retry("cannot read what QEMU prints"));
    };
    let reading = async {
        let mut text = Vec::new();
        let mut part = [0; 4096];
        loop {
            let count = console.read(&mut part).await.unwrap_or(0);
            text.extend_from_slice(&part[..count]);
            if text.windows(SIGN.len()).any(|window| window == SIGN) {
                return Ok(begin.elapsed());
            }
            if count == 0 {
                let mut stderr = Vec::new();
                let _ = complaints.read_to_end(&mut stderr).await;
                return Err(program::last_output(&stderr));
            }
        }
    };
    let silent = || format!("the guest did not come up within {} s", BOOT_DEADLINE.as_secs());
    let result = tokio::time::timeout(BOOT_DEADLINE, reading)
        .await
        .unwrap_or_else(|_| Err(silent()));
    // It is powering off or hangs: either way it is not needed any more.
    let _ = child.kill().await;
    Ok(result)
}
