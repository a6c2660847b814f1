//! `hearth image`: build, list and remove the images of this machine. Asks no server: those on this machine find them.

mod build;
mod prune;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use hearth_drivers::qemu::{ImageUse, images_in_use};
use hearth_image::{self as image, Image, ImageError, Manifest, Stores};
use serde::Serialize;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{hint, output, places};

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make a Debian image with the agent inside, for every data folder of this machine; done at once when nothing has changed
    Build(build::BuildArgs),
    /// List the images of this machine; VMs start from the first one unless a project names another
    List,
    /// Remove an image that no VM and no template uses
    Remove(RemoveArgs),
    /// Remove the images that no VM and no template uses, that no project names and that a newer one of the same name has replaced
    Prune(prune::PruneArgs),
}

/// `hearth image remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The beginning of its digest, or its name
    image: String,
    /// Also when templates use it: they cannot be used without it
    #[arg(long)]
    force: bool,
}

/// An image, where it is and what uses it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(flatten)]
    manifest: Manifest,
    folders: Vec<PathBuf>,
    used_by: Vec<User>,
}

/// A data folder that has VMs or templates on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    data_dir: PathBuf,
    vms: usize,
    templates: usize,
}

pub(crate) async fn run(globals: &Globals, command: ImageCommand) -> Result<u8, Failure> {
    let data = places::data_dir(globals);
    match command {
        ImageCommand::Build(args) => build::run(globals, &data, args).await,
        ImageCommand::List => list(globals, &data),
        ImageCommand::Remove(args) => remove(globals, &data, &args),
        ImageCommand::Prune(args) => prune::run(globals, &data, &args).await,
    }
}

/// Who has what on each image, by the image's digest.
fn uses(stores: &Stores, data: &Path) -> Result<BTreeMap<String, Vec<User>>, Failure> {
    let mut uses: BTreeMap<String, Vec<User>> = BTreeMap::new();
    for folder in places::data_folders(stores, data) {
        let used = match images_in_use(&folder) {
            // Another user's data folder: it has its own copies of what it uses.
            Err(error) if error.kind() == ErrorKind::PermissionDenied && folder != data => continue,
            used => {
                used.map_err(|error| Failure::new(format!("the VMs in {} cannot be read: {error}", folder.display())))?
            }
        };
        for (digest, ImageUse { vms, templates }) in used {
            uses.entry(digest).or_default().push(User {
                data_dir: folder.clone(),
                vms,
                templates,
            });
        }
    }
    Ok(uses)
}

/// Every folder that holds images: those that this data folder finds, and the own ones of the data folders known here.
fn folders(stores: &Stores, data: &Path) -> Vec<PathBuf> {
    let found = stores.places().into_iter().map(Path::to_owned);
    let own = places::data_folders(stores, data)
        .into_iter()
        .map(|folder| folder.join("images"));
    // Behind a link are images that were put elsewhere on purpose.
    let own = own.filter(|folder| folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in found.chain(own) {
        let real = std::fs::canonicalize(&folder).unwrap_or(folder);
        if !folders.contains(&real) {
            folders.push(real);
        }
    }
    folders
}

fn list(globals: &Globals, data: &Path) -> Result<u8, Failure> {
    let stores = places::images(data);
    let listed = stores.list().map_err(|error| failure(&error))?;
    for (folder, reason) in &listed.broken {
        output::note(&format!(
            "{} is no whole image ({reason}): remove that folder, then run `hearth image build`",
            folder.display()
        ));
    }
    let (uses, folders) = (uses(&stores, data)?, folders(&stores, data));
    let rows: Vec<Listed> = listed
        .images
        .into_iter()
        .map(|image| {
            let digest = &image.manifest.digest;
            Listed {
                folders: folders
                    .iter()
                    .filter(|folder| folder.join(digest).is_dir())
                    .cloned()
                    .collect(),
                used_by: uses.get(digest).cloned().unwrap_or_default(),
                manifest: image.manifest,
            }
        })
        .collect();
    output::print(globals.json, &rows, |rows| table(rows, &stores))?;
    Ok(0)
}

fn table(rows: &[Listed], stores: &Stores) -> String {
    if rows.is_empty() {
        let places: Vec<String> = stores
            .places()
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        return format!(
            "no images yet (looked in {}): make one with `hearth image build`",
            places.join(" and ")
        );
    }
    let row = |listed: &Listed| {
        let manifest = &listed.manifest;
        let (vms, templates) = listed.used_by.iter().fold((0, 0), |(vms, templates), user| {
            (vms + user.vms, templates + user.templates)
        });
        [
            manifest.name.clone(),
            output::short_digest(&manifest.digest),
            manifest.suite.clone(),
            manifest.kernel_version.clone(),
            manifest.agent_version.clone(),
            ByteSize::b(manifest.sizes.rootfs_on_disk).to_string(),
            output::ago(manifest.created),
            vms.to_string(),
            templates.to_string(),
            listed
                .folders
                .first()
                .map_or_else(|| "-".to_owned(), |folder| folder.display().to_string()),
        ]
    };
    output::table(
        [
            "Name",
            "Digest",
            "Suite",
            "Kernel",
            "Agent",
            "On disk",
            "Made",
            "VMs",
            "Templates",
            "Folder",
        ],
        rows.iter().map(row),
    )
}

fn remove(globals: &Globals, data: &Path, args: &RemoveArgs) -> Result<u8, Failure> {
    let stores = places::images(data);
    let found = stores.find(Some(&args.image)).map_err(|error| failure(&error))?;
    let digest = &found.manifest.digest;
    let uses = uses(&stores, data)?.remove(digest).unwrap_or_default();
    let short = output::short_digest(digest);
    let in_the_way: Vec<&User> = uses.iter().filter(|user| user.vms > 0 || !args.force).collect();
    if !in_the_way.is_empty() {
        let mut refused = Failure::new(format!("the image {short} is in use"));
        for user in &in_the_way {
            refused = refused.detail(format!(
                "{} and {} of the data folder {} use it",
                output::count(user.vms as u64, "VM"),
                output::count(user.templates as u64, "template"),
                user.data_dir.display()
            ));
        }
        return Err(match in_the_way.iter().find(|user| user.vms > 0) {
            Some(user) => refused.hint(format!(
                "wait until its VMs are replaced, or remove them with `{}` and `{}`",
                hint::command_at(&user.data_dir, &["pool", "clear", "PROJECT"]),
                hint::command_at(&user.data_dir, &["release", "INSTANCE"])
            )),
            None => refused.hint(
                "templates go an hour after their last use; --force removes the image at once, and they are built again when needed",
            ),
        });
    }
    let removed = remove_everywhere(&stores, data, &found)?;
    output::print(globals.json, &removed, |removed| {
        format!("removed {} {short}", removed.name)
    })?;
    Ok(0)
}

/// Removes an image from every folder of this machine that holds it.
fn remove_everywhere(stores: &Stores, data: &Path, found: &Image) -> Result<Manifest, Failure> {
    let mut removed = None;
    for folder in folders(stores, data) {
        match image::remove(&folder, &found.manifest.digest) {
            Ok(manifest) => removed = Some(manifest),
            Err(ImageError::NotFound { .. } | ImageError::None | ImageError::Broken { .. }) => {}
            // What is left in another user's folder is said; what could be removed is removed.
            Err(error) if folder != found.folder.parent().unwrap_or(&folder) => {
                output::note(&hearth_api::error::chain(&error))
            }
            Err(error) => return Err(failure(&error)),
        }
    }
    Ok(removed.unwrap_or_else(|| found.manifest.clone()))
}

fn failure(error: &ImageError) -> Failure {
    let failure = Failure::new(hearth_api::error::chain(error));
    match error {
        ImageError::Io { source, .. }
            if matches!(
                source.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            failure.hint(format!(
                "name a folder that this user may write to in {}, or run this as the folder's owner",
                places::IMAGES_VARIABLE
            ))
        }
        _ => failure,
    }
}
