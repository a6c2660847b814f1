//! What this host can do: the checks behind `hearth doctor`. Each finding says what is and what to do about it. Nothing is
//! changed, installed or kept; what can only be known by trying is tried on temporary files and processes.

mod checks;
mod figures;

use std::net::SocketAddr;
use std::path::Path;

use hearth_image::Stores;

use crate::incus::IncusDriver;

pub use figures::{Load, load};
pub(crate) use figures::{available_memory_mib, free_disk_bytes, free_disk_mib};

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but worse than it could, or may be meant.
    Warn,
    /// VMs cannot be made like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at, one or two words.
    pub name: &'static str,
    /// How good it is.
    pub status: Status,
    /// What was found, one sentence.
    pub summary: String,
    /// What to do, when there is something to do.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(name: &'static str, summary: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            summary: summary.into(),
            fix: None,
        }
    }

    /// Works, but worse than it could.
    pub fn warn(name: &'static str, summary: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warn,
            summary: summary.into(),
            fix: Some(fix.into()),
        }
    }

    /// VMs cannot be made like this.
    pub fn fail(name: &'static str, summary: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Fail,
            summary: summary.into(),
            fix: Some(fix.into()),
        }
    }
}

/// Looks at everything the driver `qemu` and the server need. The folders need not exist yet; `listen` is the address the
/// server would listen on.
pub async fn check(data_dir: &Path, images: &Stores, listen: Option<SocketAddr>) -> Vec<Finding> {
    let mut findings = vec![checks::qemu().await, checks::qemu_img().await, checks::kvm(data_dir)];
    findings.extend([checks::slirp().await, checks::nft().await, checks::util_linux()]);
    findings.extend([
        checks::namespaces().await,
        checks::tun(),
        checks::memory(),
        checks::load(load()),
        checks::disk(data_dir),
    ]);
    findings.extend([
        checks::templates(data_dir),
        checks::reflink(data_dir),
        checks::git().await,
        checks::git_lfs().await,
        checks::image(images),
    ]);
    findings.extend(listen.map(checks::port));
    findings
}

/// The same for the driver `incus`: VMs are made elsewhere, and this machine has the server's files.
pub async fn check_incus(
    data_dir: &Path,
    images: &Stores,
    listen: Option<SocketAddr>,
    driver: &IncusDriver,
) -> Vec<Finding> {
    let mut findings = driver.findings().await;
    findings.extend([
        checks::load(load()),
        checks::disk(data_dir),
        checks::git().await,
        checks::git_lfs().await,
        checks::image(images),
    ]);
    findings.extend(listen.map(checks::port));
    findings
}
