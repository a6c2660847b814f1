//! `hearth image prune`: removes unused images of all data folders that are known on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use hearth_image::{PrunePolicy, prune};
use serde::Serialize;

use super::{failure, remove_everywhere, uses};
use crate::args::Globals;
use crate::commands::serve::parse_length;
use crate::failure::Failure;
use crate::{output, places};

/// `hearth image prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Only images that were built, or asked for again, so long ago, in seconds or like `720h` [default: whatever their age]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    older_than: Option<Duration>,
}

/// An image that goes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gone {
    name: String,
    digest: String,
    bytes: u64,
    reason: String,
    removed: bool,
}

pub(super) async fn run(globals: &Globals, data: &Path, args: &PruneArgs) -> Result<u8, Failure> {
    let stores = places::images(data);
    let own = stores.own();
    if own.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        return Err(Failure::new(format!(
            "the images of this data folder lie behind the link {}: which other data folders use them is not known",
            own.display()
        ))
        .hint("remove one that you know to be of no use with `hearth image remove IMAGE`"));
    }
    let listed = stores.list().map_err(|error| failure(&error))?;
    let named = named(&places::data_folders(&stores, data)).await?;
    // Last: what is based on an image now is known only now.
    let used = uses(&stores, data)?;
    let policy = PrunePolicy {
        max_age: args.older_than,
        max_bytes: None,
    };
    let goes = prune(
        &listed.images,
        |digest| used.contains_key(digest),
        &named,
        policy,
        |goes| {
            if args.dry_run {
                return Ok(());
            }
            remove_everywhere(&stores, data, &goes.image).map(drop)
        },
    )?;
    let gone: Vec<Gone> = goes
        .into_iter()
        .map(|goes| Gone {
            name: goes.image.manifest.name,
            digest: goes.image.manifest.digest,
            bytes: goes.bytes,
            reason: goes.reason,
            removed: !args.dry_run,
        })
        .collect();
    output::print(globals.json, &gone, |gone| text(gone, args.dry_run))?;
    Ok(0)
}

/// What the projects of these data folders ask for.
async fn named(folders: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for folder in folders {
        let named = hearth_server::images_of_data_folder(folder).await;
        all.extend(named.map_err(|error| {
            Failure::new(format!("the projects of {} cannot be read: {error}", folder.display()))
                .hint("without that it is not known which images they name; nothing was removed")
        })?);
    }
    Ok(all)
}

fn text(gone: &[Gone], dry_run: bool) -> String {
    if gone.is_empty() {
        return "nothing to remove: every image is in use, named by a project or the newest of its name".to_owned();
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    let lines = gone.iter().map(|gone| {
        format!(
            "{verb} {} {} ({}): {}",
            gone.name,
            output::short_digest(&gone.digest),
            ByteSize::b(gone.bytes),
            gone.reason
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}
