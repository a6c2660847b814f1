//! The base of an image: Debian installed, as one ext4 file, with the kernel and the modules for the initrd beside it. Made
//! rarely and slowly (a minute or two); lies in `base-<digest>/`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::guest::{self, HostCertificate};
use super::output::Output;
use super::recipe::BaseRecipe;
use super::sandbox::Sandbox;
use super::{ImageError, Progress, Report, Stage, manifest};

/// Files of a base besides those an image has too.
pub(super) const MODULES: &str = "modules";
const ORDER: &str = "order";
const KERNEL_VERSION: &str = "kernel";
const SCRIPT_PACKAGES: &str = "packages";

/// The whole output of the last build, for the reader of an error.
const LOG: &str = "build.log";

/// A base that is there.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) folder: PathBuf,
    pub(super) kernel_version: String,
    /// File names below `modules/`, the first to be loaded first.
    pub(super) modules: Vec<String>,
}

impl Base {
    /// The base with this digest, if it has been made.
    pub(super) fn find(images_dir: &Path, digest: &str) -> Result<Option<Self>, ImageError> {
        let folder = images_dir.join(format!("{}{digest}", manifest::BASE_PREFIX));
        if !folder.is_dir() {
            return Ok(None);
        }
        let read = |name: &str| {
            fs::read_to_string(folder.join(name)).map_err(ImageError::io(format!("{}/{name}", folder.display())))
        };
        let kernel_version = read(KERNEL_VERSION)?.trim().to_owned();
        let modules = read(&format!("{MODULES}/{ORDER}"))?
            .lines()
            .map(str::to_owned)
            .collect();
        Ok(Some(Self {
            folder,
            kernel_version,
            modules,
        }))
    }
}

/// Everything a base is made of and with.
pub(super) struct Plan<'a> {
    pub(super) images_dir: &'a Path,
    pub(super) cache_dir: &'a Path,
    /// For messages.
    pub(super) mirror: &'a str,
    pub(super) recipe: &'a BaseRecipe,
    pub(super) digest: &'a str,
    pub(super) certificates: &'a [HostCertificate],
    /// The kernel's package.
    pub(super) kernel: &'static str,
    /// An empty folder on the same file system as the images.
    pub(super) work: &'a Path,
}

/// Makes the base and puts it in its place.
pub(super) async fn make(
    plan: &Plan<'_>,
    sandbox: &Sandbox,
    report: Report<'_>,
    cancel: &CancellationToken,
) -> Result<Base, ImageError> {
    let keyring = Path::new(BaseRecipe::keyring());
    if !keyring.exists() {
        return Err(ImageError::Missing {
            what: keyring.display().to_string(),
            package: "debian-archive-keyring",
        });
    }
    let cache = plan.cache_dir.join(plan.recipe.cache_name());
    fs::create_dir_all(&cache).map_err(ImageError::io(format!("{} could not be made", cache.display())))?;
    let out = plan.work.join("out");
    fs::create_dir(&out)
        .and_then(|()| guest::write_work_files(plan.work, plan.certificates, &plan.recipe.sources))
        .map_err(ImageError::io(format!("{} could not be filled", plan.work.display())))?;

    let variables: [(&str, OsString); 8] = [
        ("HEARTH_WORK", plan.work.into()),
        ("HEARTH_CACHE", cache.into()),
        ("HEARTH_SUITE", plan.recipe.suite.as_str().into()),
        ("HEARTH_PACKAGES", plan.recipe.packages.join(",").into()),
        ("HEARTH_KERNEL_PACKAGE", plan.kernel.into()),
        ("HEARTH_MODULES", guest::INITRD_MODULES.join(" ").into()),
        // mmdebstrap and apt keep small files there, some of them for the whole run.
        ("TMPDIR", plan.work.into()),
        ("LC_ALL", "C.UTF-8".into()),
    ];
    let mut output = Output::default();
    let log = plan.images_dir.join(LOG);
    let script = plan.work.join(guest::BUILD_SCRIPT.0);
    let status = sandbox
        .run_script(&script, &variables, &log, cancel, |line| {
            if let Some(progress) = output.read(line) {
                report(progress);
            }
        })
        .await?;
    if !status.success() {
        return Err(output.failure(&plan.recipe.suite, plan.mirror, &log));
    }
    report(Progress::stage(Stage::FileSystem));
    rename(&out.join(SCRIPT_PACKAGES), &out.join(manifest::PACKAGES))?;
    let folder = plan
        .images_dir
        .join(format!("{}{}", manifest::BASE_PREFIX, plan.digest));
    settle(&out, &folder).await?;
    Base::find(plan.images_dir, plan.digest)?.ok_or_else(|| ImageError::Tool {
        program: "the build script",
        detail: "it ended well and left no base behind".to_owned(),
    })
}

fn rename(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::rename(from, to).map_err(ImageError::io(format!(
        "{} could not become {}",
        from.display(),
        to.display()
    )))
}

/// Gives a finished folder its final name once its content is safely on the disk: what has that name is whole, even after a
/// power cut.
pub(super) async fn settle(unfinished: &Path, folder: &Path) -> Result<(), ImageError> {
    let (from, to) = (unfinished.to_owned(), folder.to_owned());
    let work = move || {
        sync_tree(&from).map_err(ImageError::io(format!("{} could not be written out", from.display())))?;
        rename(&from, &to)?;
        let parent = to.parent().unwrap_or(Path::new("/"));
        fs::File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(ImageError::io(format!("{} could not be written out", parent.display())))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ImageError::io("writing out")(std::io::Error::other(error)))?
}

fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            fs::File::open(&path)?.sync_all()?;
        }
    }
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_base_is_there_only_under_its_final_name() {
        let images = tempfile::tempdir().unwrap();
        assert!(Base::find(images.path(), "d").unwrap().is_none());
        let out = images.path().join("tmp-1");
        fs::create_dir_all(out.join(MODULES)).unwrap();
        fs::write(out.join(KERNEL_VERSION), "6.1.0-1-cloud-amd64\n").unwrap();
        fs::write(out.join(MODULES).join(ORDER), "b.ko\na.ko\n").unwrap();
        assert!(Base::find(images.path(), "d").unwrap().is_none());
        settle(&out, &images.path().join("base-d")).await.unwrap();
        let base = Base::find(images.path(), "d").unwrap().unwrap();
        assert_eq!(base.kernel_version, "6.1.0-1-cloud-amd64");
        assert_eq!(base.modules, ["b.ko", "a.ko"]);
    }
}
