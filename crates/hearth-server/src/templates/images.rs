//! Old images of the data folder are removed now and then: those that are unused, that no project names and that a newer one of
//! the same name has replaced. Other folders are left alone, and so is one behind a link, which was shared on purpose: what is based
//! on those is not known here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::qemu::images_in_use;
use hearth_drivers::{Driver, DriverError};
use hearth_image::{self as image, PrunePolicy};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// How often it is looked.
const ROUND: Duration = Duration::from_secs(60 * 60);

/// Somebody waits for the answer so long; then the image passes, and the pool says later whether it is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// The images that VMs can be made of. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images(Arc<dyn Driver>);

impl Images {
    /// Those that the driver has.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self(driver)
    }

    /// Why no VM can be made of the image that is called so; `None` when one can, and when nobody knows right now.
    pub async fn refusal(&self, wanted: &str) -> Option<String> {
        match tokio::time::timeout(PATIENCE, self.0.check_image(wanted)).await {
            Ok(Err(DriverError::Permanent { reason, .. })) => Some(reason),
            Ok(Err(error)) => {
                tracing::warn!(%error, image = wanted, "it is not known whether an image is there");
                None
            }
            Ok(Ok(())) | Err(_) => None,
        }
    }
}

/// Rounds until the server stops.
pub(crate) async fn keep(store: Store, data_dir: PathBuf, policy: PrunePolicy, stop: CancellationToken) {
    if policy == NEVER {
        return;
    }
    loop {
        if let Err(error) = round(&store, &data_dir, policy).await {
            tracing::warn!(error, "old images could not be listed; the next round tries again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}

/// Without a limit a server removes nothing.
const NEVER: PrunePolicy = PrunePolicy {
    max_age: None,
    max_bytes: None,
};

async fn round(store: &Store, data_dir: &Path, policy: PrunePolicy) -> Result<(), String> {
    let images = data_dir.join("images");
    if !images.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    let named = store.images_of_projects().await.map_err(|error| error.to_string())?;
    let data_dir = data_dir.to_owned();
    let look = move || {
        let listed = image::list(&images).map_err(|error| error.to_string())?;
        // Last: what uses an image can change until now.
        let used = images_in_use(&data_dir).map_err(|error| error.to_string())?;
        image::prune(
            &listed.images,
            |digest| used.contains_key(digest),
            &named,
            policy,
            |goes| {
                let manifest = &goes.image.manifest;
                image::remove(&images, &manifest.digest).map_err(|error| error.to_string())?;
                tracing::info!(
                    image = manifest.name,
                    digest = manifest.digest,
                    bytes = goes.bytes,
                    reason = goes.reason,
                    "removed an image"
                );
                Ok(())
            },
        )
        .map(drop)
    };
    tokio::task::spawn_blocking(look)
        .await
        .map_err(|error| error.to_string())?
}
