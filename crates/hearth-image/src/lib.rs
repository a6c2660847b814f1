//! Guest images: making, listing, finding and removing them. An image is a folder `<images>/<digest>/` with a root file system
//! (`rootfs.ext4`, sparse, the whole disk), a kernel (`vmlinuz`), an `initrd` whose `/init` is the agent, and `manifest.json`.
//!
//! Its name is the digest of what goes into it, so a build with nothing changed ends at once. There are two layers:
//!
//! - the **base** ([`base`]): Debian's packages, made by `mmdebstrap` in namespaces of its own (as root or not), minutes;
//! - the **image** ([`assemble`]): a copy of the base's file system with the agent written into it, and an initrd, seconds.
//!
//! A folder with its final name is whole: everything is made under a temporary name and renamed. Two builders wait for each
//! other (a lock on the folder). This crate knows nothing of VMs or drivers; whether an image is in use is its callers' affair.

mod assemble;
mod base;
mod build;
mod container;
mod error;
mod guest;
mod initrd;
mod kernel;
mod manifest;
mod output;
mod prune;
mod recipe;
mod sandbox;
mod stores;

use std::borrow::Cow;
use std::path::PathBuf;

use hearth_host::sparse::copy;

pub use build::build;
pub use container::{CONTAINER_FORMAT, write_container};
pub use error::ImageError;
pub use manifest::{Image, Listed, Manifest, Sizes, find, list, remove};
pub use prune::{Prunable, PrunePolicy, prune};
pub use stores::{Stores, users};

/// The Debian release images are made from unless told otherwise.
pub const DEFAULT_SUITE: &str = "bookworm";
/// Where packages come from unless told otherwise.
pub const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Where security updates come from unless told otherwise.
pub const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// Where the agent for an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentSource {
    /// A file, which says its version when it is run.
    File(PathBuf),
    /// A program that carries it.
    Inside {
        /// The static binary.
        bytes: Cow<'static, [u8]>,
        /// What it says its version is.
        version: String,
    },
}

/// What to build, and where.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The folder that holds all images; made when it is missing.
    pub images_dir: PathBuf,
    /// The folder for downloaded packages; what lies there makes a build without a network possible. Made when missing.
    pub cache_dir: PathBuf,
    /// The agent's static binary.
    pub agent: AgentSource,
    /// Other folders of images: a base that lies in one of them is used and not made again.
    pub other_images: Vec<PathBuf>,
    /// A name for people, besides the digest; `debian-<suite>` when absent.
    pub name: Option<String>,
    /// Code name of the Debian release.
    pub suite: String,
    /// Packages besides the ones every image has.
    pub extra_packages: Vec<String>,
    /// Debian mirror, `http://` or `https://`.
    pub mirror: String,
    /// Mirror of the security archive.
    pub security_mirror: String,
    /// Make the base anew even when nothing changed: brings newer versions of the same packages.
    pub refresh: bool,
}

impl BuildOptions {
    /// The usual image, with the given folders and agent.
    pub fn new(images_dir: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>, agent: AgentSource) -> Self {
        Self {
            images_dir: images_dir.into(),
            cache_dir: cache_dir.into(),
            agent,
            other_images: Vec::new(),
            name: None,
            suite: DEFAULT_SUITE.to_owned(),
            extra_packages: Vec::new(),
            mirror: DEFAULT_MIRROR.to_owned(),
            security_mirror: DEFAULT_SECURITY_MIRROR.to_owned(),
            refresh: false,
        }
    }
}

/// The parts of a build, in their order. The first five only happen when the base has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What is needed is looked for; waiting for another builder.
    Prepare,
    /// Package lists are fetched.
    Lists,
    /// Packages are fetched.
    Download,
    /// Packages are unpacked.
    Unpack,
    /// Packages are set up.
    Configure,
    /// The system is switched to run in a VM.
    Customize,
    /// Kernel, modules and root file system are written.
    FileSystem,
    /// The agent goes in, the initrd is made.
    Assemble,
    /// The image is there.
    Done,
}

impl Stage {
    /// A few words for a progress bar.
    pub fn label(self) -> &'static str {
        match self {
            Self::Prepare => "preparing",
            Self::Lists => "fetching package lists",
            Self::Download => "downloading packages",
            Self::Unpack => "unpacking packages",
            Self::Configure => "setting up packages",
            Self::Customize => "fitting the system to a VM",
            Self::FileSystem => "writing the file system",
            Self::Assemble => "adding the agent",
            Self::Done => "done",
        }
    }
}

/// One report of a running build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// How many of `total` are through, where that can be counted (packages).
    pub done: u64,
    /// Of how many; zero when it cannot be counted. May grow: Debian is installed in two rounds.
    pub total: u64,
    /// Something a person wants to read (a line of its own), or what is being worked on (a package's name).
    pub detail: Option<String>,
    /// Whether `detail` is worth a line of its own rather than a place beside the bar.
    pub is_notice: bool,
}

impl Progress {
    fn stage(stage: Stage) -> Self {
        Self {
            stage,
            done: 0,
            total: 0,
            detail: None,
            is_notice: false,
        }
    }

    fn notice(stage: Stage, text: impl Into<String>) -> Self {
        Self {
            detail: Some(text.into()),
            is_notice: true,
            ..Self::stage(stage)
        }
    }
}

/// Where reports go.
pub type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);
