//! The order of a build: what is already there is used, what is not is made, under a lock, in a folder that is swept when the
//! build (or its process) ends early.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::assemble::{self, Agent, Parts};
use super::base::{self, Base, Plan};
use super::guest::{self, EXTRA_CA_FOLDER, HostCertificate};
use super::manifest::{self, Image, Manifest, UNFINISHED_PREFIX};
use super::recipe::{self, BaseRecipe, ImageRecipe};
use super::sandbox::Sandbox;
use super::{BuildOptions, ImageError, Progress, Report, Stage};

const LOCK: &str = ".lock";
/// Holds when the last refresh happened; part of a base's recipe.
const REFRESH: &str = "refresh";

/// How often a waiting builder asks whether the other one is through; there is no way to wait for a lock that can be cancelled.
const LOCK_CHECK: Duration = Duration::from_millis(300);

/// Room for a base (packages, the tree, the file system) and for an image of it, with what a few extra packages need.
const BASE_NEEDS_MIB: u64 = 5 * 1024;
const IMAGE_NEEDS_MIB: u64 = 1536;

/// Makes the image, or finds that it is there already. Dropped or cancelled, it leaves nothing running and nothing mounted; what
/// it leaves in `images_dir` the next build sweeps.
pub async fn build(
    options: &BuildOptions,
    report: Report<'_>,
    cancel: CancellationToken,
) -> Result<Manifest, ImageError> {
    report(Progress::stage(Stage::Prepare));
    let images_dir = folder(&options.images_dir)?;
    let cache_dir = folder(&options.cache_dir)?;
    let agent = Agent::read(&options.agent).await?;
    let inputs = Inputs {
        name: recipe::image_name(options)?,
        certificates: guest::host_certificates(&Path::new("/").join(EXTRA_CA_FOLDER))
            .map_err(ImageError::io("the CA certificates of this host could not be read"))?,
        kernel: guest::kernel_package().ok_or(ImageError::Architecture {
            arch: std::env::consts::ARCH,
        })?,
        agent,
    };
    // Wrong options should be said before anybody waits for a lock.
    Request::new(options, &inputs, "")?;
    let _lock = lock(&images_dir, report, &cancel).await?;
    let refresh = if options.refresh {
        jiff::Timestamp::now().to_string()
    } else {
        last_refresh(&images_dir)?
    };
    let wanted = Request::new(options, &inputs, &refresh)?;
    if let Ok(image) = Image::read(&images_dir.join(&wanted.digest)) {
        // A wrong order in a later list is all that a failure would cause.
        let _ = image.touch();
        report(Progress::notice(
            Stage::Done,
            "nothing has changed: the image is already there",
        ));
        return Ok(image.manifest);
    }
    let sandbox = Sandbox::new().await?;
    sweep(&images_dir, &sandbox).await?;
    let work = tempfile::Builder::new()
        .prefix(UNFINISHED_PREFIX)
        .tempdir_in(&images_dir)
        .map_err(ImageError::io(format!(
            "no folder could be made in {}",
            images_dir.display()
        )))?;
    let job = Job {
        options,
        images_dir: &images_dir,
        cache_dir: &cache_dir,
        inputs: &inputs,
        wanted: &wanted,
        work: work.path(),
    };
    let result = job.run(&sandbox, report, &cancel).await;
    // Files of other ids, which `TempDir` could not remove by itself.
    sandbox.remove_tree(work.path()).await?;
    let image = result?;
    if options.refresh {
        fs::write(images_dir.join(REFRESH), &refresh)
            .map_err(ImageError::io("the time of the refresh could not be written"))?;
    }
    manifest::remove_unused_bases(&images_dir, Some(&wanted.base_digest))?;
    report(Progress::stage(Stage::Done));
    Ok(image.manifest)
}

/// What a build reads before it decides anything.
struct Inputs {
    name: String,
    certificates: Vec<HostCertificate>,
    kernel: &'static str,
    agent: Agent,
}

/// What is to be there in the end.
struct Request {
    recipe: BaseRecipe,
    base_digest: String,
    digest: String,
}

impl Request {
    fn new(options: &BuildOptions, inputs: &Inputs, refresh: &str) -> Result<Self, ImageError> {
        let recipe = BaseRecipe::new(options, &inputs.certificates, refresh)?;
        let base_digest = recipe::digest(&recipe)?;
        let digest = recipe::digest(&ImageRecipe::new(&inputs.name, &base_digest, &inputs.agent.sha256))?;
        Ok(Self {
            recipe,
            base_digest,
            digest,
        })
    }
}

struct Job<'a> {
    options: &'a BuildOptions,
    images_dir: &'a Path,
    cache_dir: &'a Path,
    inputs: &'a Inputs,
    wanted: &'a Request,
    work: &'a Path,
}

impl Job<'_> {
    async fn run(
        &self,
        sandbox: &Sandbox,
        report: Report<'_>,
        cancel: &CancellationToken,
    ) -> Result<Image, ImageError> {
        let Request {
            recipe,
            base_digest,
            digest,
        } = self.wanted;
        // One of another folder that cannot be read is no help, and no reason to fail.
        let elsewhere = || {
            let others = self.options.other_images.iter();
            others.filter_map(|images| Base::find(images, base_digest).ok()?).next()
        };
        let base = match Base::find(self.images_dir, base_digest)?.or_else(elsewhere) {
            Some(base) => {
                check_room(self.images_dir, IMAGE_NEEDS_MIB)?;
                base
            }
            None => {
                check_room(self.images_dir, BASE_NEEDS_MIB)?;
                let plan = Plan {
                    images_dir: self.images_dir,
                    cache_dir: self.cache_dir,
                    mirror: &self.options.mirror,
                    recipe,
                    digest: base_digest,
                    certificates: &self.inputs.certificates,
                    kernel: self.inputs.kernel,
                    work: self.work,
                };
                base::make(&plan, sandbox, report, cancel).await?
            }
        };
        report(Progress::stage(Stage::Assemble));
        let parts = Parts {
            digest,
            base_digest,
            name: &self.inputs.name,
            suite: &recipe.suite,
            packages: &recipe.packages,
            base: &base,
            agent: &self.inputs.agent,
        };
        // A folder that has the name and is not whole (somebody's hand was in it) would be in the way.
        sandbox.remove_tree(&self.images_dir.join(digest)).await?;
        assemble::make(&parts, self.images_dir, self.work, cancel).await
    }
}

/// The folder, made when it is missing, as an absolute path: it is used from other working folders.
fn folder(path: &Path) -> Result<PathBuf, ImageError> {
    let failed = || ImageError::io(format!("the folder {} could not be made", path.display()));
    fs::create_dir_all(path).map_err(failed())?;
    fs::canonicalize(path).map_err(failed())
}

fn check_room(path: &Path, needed_mib: u64) -> Result<(), ImageError> {
    const MIB: u64 = 1024 * 1024;
    let failed = || ImageError::io(format!("the free space of {} could not be asked", path.display()));
    let stat = rustix::fs::statvfs(path).map_err(|error| failed()(error.into()))?;
    let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) / MIB;
    if free_mib < needed_mib {
        return Err(ImageError::NoSpace {
            path: path.to_owned(),
            free_mib,
            needed_mib,
        });
    }
    Ok(())
}

fn last_refresh(images_dir: &Path) -> Result<String, ImageError> {
    match fs::read_to_string(images_dir.join(REFRESH)) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(ImageError::io("the time of the last refresh could not be read")(error)),
    }
}

/// Waits until no other process builds in this folder. The lock goes with the file, however the process ends.
async fn lock(images_dir: &Path, report: Report<'_>, cancel: &CancellationToken) -> Result<File, ImageError> {
    let path = images_dir.join(LOCK);
    let failed = || ImageError::io(format!("{} could not be locked", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed())?;
    let mut is_waiting = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed()(error)),
            Err(TryLockError::WouldBlock) if is_waiting => {}
            Err(TryLockError::WouldBlock) => {
                is_waiting = true;
                report(Progress::notice(
                    Stage::Prepare,
                    "another build is running: waiting for it",
                ));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK_CHECK) => {}
            () = cancel.cancelled() => return Err(ImageError::Cancelled),
        }
    }
}

/// Removes what builds that ended early have left. Only under the lock: then nobody else's is among it.
async fn sweep(images_dir: &Path, sandbox: &Sandbox) -> Result<(), ImageError> {
    let failed = || ImageError::io(format!("{} could not be swept", images_dir.display()));
    for entry in fs::read_dir(images_dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(UNFINISHED_PREFIX))
        {
            sandbox.remove_tree(&entry.path()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AgentSource;

    #[tokio::test]
    #[ignore = "needs system packages (all: cargo xtask test; alone: cargo xtask test NAME)"]
    async fn sweeping_removes_unfinished_work_and_nothing_else() {
        let images = tempfile::tempdir().unwrap();
        for name in ["tmp-1/root/etc", "base-x", "abc", "tmp-removed-x"] {
            fs::create_dir_all(images.path().join(name)).unwrap();
        }
        fs::write(images.path().join("build.log"), "x").unwrap();
        sweep(images.path(), &Sandbox::new().await.unwrap()).await.unwrap();
        let mut left: Vec<_> = fs::read_dir(images.path())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["abc", "base-x", "build.log"]);
    }

    #[tokio::test]
    async fn a_second_builder_waits_says_so_and_can_be_cancelled() {
        let images = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let first = lock(images.path(), &|_| {}, &cancel).await.unwrap();
        let stop = cancel.clone();
        let waiting = move |progress: Progress| {
            assert!(progress.is_notice);
            stop.cancel();
        };
        assert!(matches!(
            lock(images.path(), &waiting, &cancel).await,
            Err(ImageError::Cancelled)
        ));
        drop(first);
        lock(images.path(), &|_| {}, &CancellationToken::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_or_wrong_agent_is_said_first() {
        let folder = tempfile::tempdir().unwrap();
        let options = BuildOptions::new(
            folder.path().join("i"),
            folder.path().join("c"),
            AgentSource::File(folder.path().join("agent")),
        );
        let fail = async || build(&options, &|_| {}, CancellationToken::new()).await.unwrap_err();
        assert!(matches!(fail().await, ImageError::BadAgent { .. }));
        fs::write(folder.path().join("agent"), "#!/bin/sh\n").unwrap();
        assert!(matches!(fail().await, ImageError::BadAgent { .. }));
    }
}
