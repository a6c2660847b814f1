//! What can go wrong with images. Every message says what happened and what to do.

use std::io;
use std::path::PathBuf;

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A program or file of the host is missing.
    #[error("{what} is not installed: run `apt-get install {package}` (as root)")]
    Missing {
        /// Program or file.
        what: String,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// An ordinary user has no range of subordinate ids.
    #[error(
        "the user {user} has no subordinate user and group ids, which an image with files of several owners needs: \
         run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` (as root), or build as root"
    )]
    NoSubordinateIds {
        /// Who is building.
        user: String,
    },
    /// The kernel refuses the namespaces that the build happens in.
    #[error(
        "the system does not let this user make namespaces ({reason}): build as root, or allow it with \
         `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu) or \
         `sysctl -w kernel.unprivileged_userns_clone=1` (older Debian)"
    )]
    NoNamespaces {
        /// What the attempt said.
        reason: String,
    },
    /// Not enough room, asked before anything is begun.
    #[error("{path} has {free_mib} MiB free and a build needs {needed_mib} MiB: make room or choose another folder")]
    NoSpace {
        /// The folder that was looked at.
        path: PathBuf,
        /// What there is.
        free_mib: u64,
        /// What a build needs.
        needed_mib: u64,
    },
    /// The disk became full during the build.
    #[error("the disk became full during the build: make room and build again (what was downloaded is kept)")]
    DiskFull,
    /// No network, and nothing in the cache to do without.
    #[error(
        "{mirror} could not be reached and {what} in the package cache: build once with a network, or choose a mirror that \
         this machine can reach ({detail})"
    )]
    Offline {
        /// What was asked for.
        mirror: String,
        /// What is missing.
        what: &'static str,
        /// What apt said.
        detail: String,
    },
    /// A package that the archive does not have.
    #[error("{package}: there is no such package in Debian {suite}; check the spelling with `apt-cache search`")]
    NoSuchPackage {
        /// As it was given.
        package: String,
        /// Where it was looked for.
        suite: String,
    },
    /// An option that cannot be used.
    #[error("{what} {value:?} cannot be used: {why}")]
    Invalid {
        /// Which option.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it and what would be right.
        why: &'static str,
    },
    /// The agent's binary is not there or not one that runs in a VM.
    #[error("the agent {path} cannot be used: {why}")]
    BadAgent {
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This machine's processor has no Debian kernel that we know.
    #[error("images cannot be made on a {arch} machine: only x86_64 is supported")]
    Architecture { arch: &'static str },
    /// Installing the packages failed in a way we have no better word for.
    #[error("installing the packages failed: {last}; the whole output is in {log}")]
    Install {
        /// The line that most likely says why.
        last: String,
        /// The file with everything.
        log: PathBuf,
    },
    /// A short helper program failed.
    #[error("{program} failed: {detail}")]
    Tool {
        program: &'static str,
        /// What it said.
        detail: String,
    },
    /// A file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was done to which file.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no image at all.
    #[error(
        "there is no VM image on this machine (any more): make one with `hearth image build`, which takes a few minutes"
    )]
    None,
    /// There is a folder of an image, and not all of its files.
    #[error(
        "the VM image in {folder} is damaged ({reason}): remove that folder, then build the image again with `hearth image build`"
    )]
    Broken {
        /// Its folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No image has that name or digest.
    #[error(
        "the VM image `{wanted}` is not on this machine (any more): `hearth image list` shows what there is, and \
         `hearth image build --name NAME` makes one"
    )]
    NotFound {
        /// As it was given.
        wanted: String,
    },
    /// Several images could be meant.
    #[error("{wanted} could mean {count} images: give more of the digest (see `hearth image list`)")]
    Ambiguous {
        /// As it was given.
        wanted: String,
        count: usize,
    },
    /// The caller did not want to wait for the end.
    #[error("the build was cancelled; what was downloaded is kept")]
    Cancelled,
}

impl ImageError {
    /// For `map_err`: a failed file operation, with the words for it. A full disk gets its own error.
    pub(super) fn io(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                return Self::DiskFull;
            }
            Self::Io {
                what: what.to_string(),
                source,
            }
        }
    }
}
