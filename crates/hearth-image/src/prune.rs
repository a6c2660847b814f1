//! Which images nobody needs any more, and their removal one by one. The caller knows what is based on which image, which ones are asked
//! for by name, and how one is removed; what it does not know of must not be in the list.

use std::time::{Duration, SystemTime};

use hearth_api::counted::count;

use super::Image;

/// When an image that nobody needs goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Built, or asked for again, so long ago; `None`: whatever its age.
    pub max_age: Option<Duration>,
    /// All images together may take so many bytes: above it the oldest go whatever their age.
    pub max_bytes: Option<u64>,
}

/// An image that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prunable {
    pub image: Image,
    /// What it takes on the disk.
    pub bytes: u64,
    /// Why: a few words.
    pub reason: String,
}

/// Removes those of these images that nobody needs, the oldest first, and gives what went; the first one that cannot be removed ends it.
/// `images`: the newest first, as listed. `is_used`: something is based on the image of this digest. `named`: what projects ask for, names or
/// beginnings of digests. The newest of all and the newest of each name always stay.
pub fn prune<E>(
    images: &[Image],
    is_used: impl Fn(&str) -> bool,
    named: &[String],
    policy: PrunePolicy,
    mut remove: impl FnMut(&Prunable) -> Result<(), E>,
) -> Result<Vec<Prunable>, E> {
    let goes = prunable(images, is_used, named, policy, SystemTime::now());
    goes.iter().try_for_each(&mut remove)?;
    Ok(goes)
}

/// Which of them go.
fn prunable(
    images: &[Image],
    is_used: impl Fn(&str) -> bool,
    named: &[String],
    policy: PrunePolicy,
    now: SystemTime,
) -> Vec<Prunable> {
    let bytes = |image: &Image| {
        let sizes = &image.manifest.sizes;
        sizes.rootfs_on_disk + sizes.vmlinuz + sizes.vmlinux.unwrap_or_default() + sizes.initrd
    };
    let mut all_bytes: u64 = images.iter().map(bytes).sum();
    let is_newest = |at: usize, image: &Image| {
        let name = &image.manifest.name;
        images[..at].iter().all(|newer| newer.manifest.name != *name)
    };
    let is_named = |image: &Image| {
        named
            .iter()
            .any(|wanted| image.manifest.digest.starts_with(wanted.as_str()))
    };
    let mut goes = Vec::new();
    for (at, image) in images.iter().enumerate().rev() {
        if is_newest(at, image) || is_used(&image.manifest.digest) || is_named(image) {
            continue;
        }
        let age = now.duration_since(image.last_used_at()).unwrap_or_default();
        let days = age.as_secs() / (24 * 60 * 60);
        let reason = match policy {
            PrunePolicy {
                max_age: Some(most), ..
            } if age >= most => {
                format!(
                    "nothing uses it, a newer one has its name, and it is {} old",
                    count(days, "day")
                )
            }
            PrunePolicy {
                max_bytes: Some(most), ..
            } if all_bytes > most => {
                "nothing uses it, a newer one has its name, and all images together take more than they may".to_owned()
            }
            PrunePolicy {
                max_age: None,
                max_bytes: None,
            } => "nothing uses it, and a newer one has its name".to_owned(),
            _ => continue,
        };
        all_bytes = all_bytes.saturating_sub(bytes(image));
        goes.push(Prunable {
            image: image.clone(),
            bytes: bytes(image),
            reason,
        });
    }
    goes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list;
    use crate::manifest::tests::fake_image;

    const DAY: u64 = 24 * 60 * 60;

    fn digits(goes: &[Prunable]) -> String {
        goes.iter()
            .filter_map(|it| it.image.manifest.digest.chars().next())
            .collect()
    }

    #[test]
    fn only_old_images_that_nobody_needs_go() {
        let folder = tempfile::tempdir().unwrap();
        for (digit, name, days) in [
            ('a', "one", 0),
            ('b', "one", 10),
            ('c', "one", 40),
            ('d', "two", 50),
            ('e', "two", 60),
        ] {
            fake_image(folder.path(), digit, name, "x", days * DAY);
        }
        let images = list(folder.path()).unwrap().images;
        let now = SystemTime::now();
        let month = PrunePolicy {
            max_age: Some(Duration::from_secs(30 * DAY)),
            max_bytes: None,
        };
        let goes = |is_used: &dyn Fn(&str) -> bool, named: &[&str], policy| {
            let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
            digits(&prunable(&images, is_used, &named, policy, now))
        };
        let nobody = |_: &str| false;
        // The newest of each name stay, however old.
        assert_eq!(goes(&nobody, &[], month), "ec");
        assert_eq!(goes(&|digest| digest.starts_with('e'), &[], month), "c");
        assert_eq!(goes(&nobody, &["ccc", "two"], month), "e");
        let any = PrunePolicy { max_age: None, ..month };
        assert_eq!(goes(&nobody, &[], any), "ecb");
        // Each takes 12 bytes, 60 together.
        let small = |bytes| PrunePolicy {
            max_bytes: Some(bytes),
            ..any
        };
        assert_eq!(goes(&nobody, &[], small(60)), "");
        assert_eq!(goes(&nobody, &[], small(59)), "e");
        assert_eq!(goes(&nobody, &[], small(0)), "ecb");
        let both = PrunePolicy {
            max_bytes: Some(30),
            ..month
        };
        assert_eq!(goes(&nobody, &[], both), "ecb");
    }
}
