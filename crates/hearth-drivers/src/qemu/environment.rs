//! What a checkpoint holds for: the same devices' state and memory mean something only to the same QEMU with the same
//! command line, on a processor that can do the same. As one digest.

use hearth_api::ids::VmId;
use hearth_image::Image;
use sha2::{Digest, Sha256};

use super::command::{self, Accelerator, Memory, Spec, Start};
use super::{Inner, images, launch, start};
use crate::{DriverError, VmShape};

/// Counts up when something changes that the command line does not show, as the meaning of a template's files.
/// 2: a guest gets the rate of its clock; in templates from before it may be wrong.
const VERSION: u32 = 2;

/// Everything that the environment depends on, found out.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) digest: String,
    pub(super) image: Image,
    pub(super) qemu: String,
    pub(super) accelerator: Accelerator,
}

/// Looks at image, QEMU and accelerator as they are now. Cheap, but for the first time on a host with `/dev/kvm`.
pub(super) async fn describe(inner: &Inner, image: Option<&str>, shape: VmShape) -> Result<Environment, DriverError> {
    let image = images::find(&inner.stores, image).await?;
    let qemu = start::version().await?;
    let accelerator = start::accelerator(inner, &qemu, &image.manifest.digest).await?;
    // A placeholder id: only what is the same in all VMs counts.
    let placeholder: VmId = "vm-environment"
        .parse()
        .map_err(|_| DriverError::permanent("an id of our own is none: this is a mistake in Hearth"))?;
    let arguments = command::arguments(&Spec {
        installation: "environment",
        id: &placeholder,
        shape,
        accelerator: &accelerator,
        image: &image.manifest.digest,
        folder: "",
        kernel: images::kernel_file(&inner.options.images_dir, &image.manifest.digest),
        kernel_arguments: launch::KERNEL_ARGUMENTS,
        memory: Memory::Own(String::new()),
        layers: Vec::new(),
        disks: &[0],
        start: Start::Boot,
    });
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&VERSION.to_string());
    add(&qemu);
    add(&shape.disk_gib.to_string());
    add(&image.manifest.agent_sha256);
    if matches!(accelerator, Accelerator::Kvm { .. }) {
        add(&processor());
    }
    for word in &arguments {
        add(word);
    }
    Ok(Environment {
        digest: hex::encode(hash.finalize()),
        image,
        qemu,
        accelerator,
    })
}

/// The host's processor, which a guest under KVM sees: its model and what it can do.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|line| {
        ["vendor_id", "cpu family", "model", "stepping", "flags"]
            .iter()
            .any(|key| line.starts_with(key))
    });
    lines.collect::<Vec<_>>().join("\n")
}
