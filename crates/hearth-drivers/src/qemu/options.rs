//! How the driver is opened.

use std::net::SocketAddrV4;
use std::path::PathBuf;

/// Hardware virtualisation: found out, or prescribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM if a tiny guest boots under it, else software.
    #[default]
    Auto,
    /// Software, always.
    Tcg,
    /// KVM or an error.
    Kvm,
}

/// How to open a [`QemuDriver`](super::QemuDriver).
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// VMs, the VM network's record and the KVM verdict lie below it. Made if missing.
    pub data_dir: PathBuf,
    /// The data folder's own images.
    pub images_dir: PathBuf,
    /// Folders of images that all data folders share: an image that is only there is brought into our own when it is needed.
    pub shared_images: Vec<PathBuf>,
    /// Tells this installation's processes from those of another on the same host. 1 to 32 of a-z, 0-9, `-`, `_`.
    pub installation: String,
    /// Hardware virtualisation.
    pub accel: Accel,
    /// The user id for QEMU when the server is root; `None` for the built-in one.
    pub vm_user: Option<u32>,
    /// The program that becomes the VM network's gateway: see [`gateway_program`](crate::gateway_program).
    pub gateway: PathBuf,
    /// Who answers the VMs' name queries; `None`: the resolver of this host.
    pub dns_upstream: Option<SocketAddrV4>,
}
