//! What instances start from: Hearth's own images, brought into Incus once, or an image that Incus has already.
//!
//! A cluster copies an image to its members by itself. Which image of Incus one of ours became stands in that image's properties.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use hearth_image::{CONTAINER_FORMAT, Image, ImageError, write_container};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::Inner;
use super::api::{ApiError, Raw, header, part};
use super::options::IncusKind;
use super::stream::AGENT;
use crate::DriverError;
use crate::driver::no_such_image;

/// The digest of the image of ours that one of Incus' is.
const OURS: &str = "hearth.image";
/// By which rules it was made of it.
const FORMAT: &str = "hearth.format";
/// Chunks on their way to Incus.
const CHUNKS: usize = 8;
const CHUNK_BYTES: usize = 1 << 20;
/// As much of a digest as a person needs to tell images apart.
const SHORT_DIGEST_CHARS: usize = 12;
/// A setting may say what an instance is to be, before the image's name.
const KINDS: [(&str, IncusKind); 2] = [("container:", IncusKind::Container), ("vm:", IncusKind::VirtualMachine)];

/// An image of Incus, as far as we read it.
#[derive(Debug, Clone, Deserialize)]
struct Known {
    fingerprint: String,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    aliases: Vec<Alias>,
    #[serde(default, rename = "type")]
    kind: Option<IncusKind>,
    #[serde(default)]
    uploaded_at: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Alias {
    name: String,
}

/// An image that can be started from.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) kind: IncusKind,
    /// Names it in our words: our digest, or Incus' fingerprint.
    pub(super) digest: String,
    pub(super) agent_version: String,
    pub(super) from: Origin,
}

#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// One of ours.
    Ours(Box<Image>),
    /// One of Incus', which gets the agent from us.
    Incus { fingerprint: String },
}

/// What is wanted, without the word before it.
fn kind_of(wanted: Option<&str>, usual: IncusKind) -> (Option<&str>, IncusKind, bool) {
    let Some(wanted) = wanted else {
        return (None, usual, false);
    };
    for (prefix, kind) in KINDS {
        if let Some(name) = wanted.strip_prefix(prefix) {
            return (Some(name).filter(|name| !name.is_empty()), kind, true);
        }
    }
    (Some(wanted), usual, false)
}

fn driver_error(error: ImageError) -> DriverError {
    match error {
        ImageError::Io { .. } | ImageError::DiskFull => DriverError::retry(error.to_string()).caused_by(error),
        _ => DriverError::permanent(error.to_string()).caused_by(error),
    }
}

impl Inner {
    /// The image that is called so. Nothing is brought into Incus for it.
    pub(super) async fn find_image(&self, wanted: Option<&str>) -> Result<Found, DriverError> {
        if wanted == Some("") {
            return Err(DriverError::permanent("an image's name is not empty"));
        }
        let (name, kind, is_said) = kind_of(wanted, self.options.settings.kind);
        if kind == IncusKind::Container {
            let (stores, own) = (self.options.stores.clone(), name.map(str::to_owned));
            let found = tokio::task::spawn_blocking(move || stores.find(own.as_deref()))
                .await
                .map_err(|error| DriverError::retry(format!("the images could not be listed: {error}")))?;
            match found {
                Ok(image) => {
                    return Ok(Found {
                        kind,
                        digest: image.manifest.digest.clone(),
                        agent_version: image.manifest.agent_version.clone(),
                        from: Origin::Ours(Box::new(image)),
                    });
                }
                Err(ImageError::NotFound { .. } | ImageError::None) if name.is_some() => {}
                Err(error) => return Err(driver_error(error)),
            }
        }
        let Some(name) = name else {
            return Err(DriverError::permanent(
                "a VM of Incus starts from an image that Incus has: name it, like `hearth project set PROJECT --image vm:ALIAS`",
            ));
        };
        let known = self.known_images().await?;
        let by_name = |image: &&Known| {
            let fits = !is_said || image.kind.unwrap_or_default() == kind;
            fits && (image.aliases.iter().any(|alias| alias.name == name) || image.fingerprint.starts_with(name))
        };
        let mut fitting: Vec<&Known> = known.iter().filter(by_name).collect();
        // One that we have brought ourselves has a name of ours.
        fitting.retain(|image| !image.properties.contains_key(OURS));
        let Some(image) = fitting.first() else {
            return Err(no_such_image(name, &self.image_names(&known)?));
        };
        let agent = self.options.agent.as_ref().ok_or_else(|| {
            DriverError::permanent(format!(
                "the image {name} of Incus has no agent of Hearth, and this program carries none: use one that `cargo xtask build` made"
            ))
        })?;
        Ok(Found {
            kind: image.kind.unwrap_or(kind),
            digest: image.fingerprint.clone(),
            agent_version: agent.version.clone(),
            from: Origin::Incus {
                fingerprint: image.fingerprint.clone(),
            },
        })
    }

    /// What a person can call images.
    fn image_names(&self, known: &[Known]) -> Result<Vec<String>, DriverError> {
        let listed = self.options.stores.list().map_err(driver_error)?;
        let short = |digest: &str| digest.chars().take(SHORT_DIGEST_CHARS).collect::<String>();
        let ours = listed.images.iter().map(|image| {
            let manifest = &image.manifest;
            format!("{} ({})", manifest.name, short(&manifest.digest))
        });
        let theirs = known.iter().filter(|image| !image.properties.contains_key(OURS));
        let theirs = theirs.map(|image| {
            let name = image
                .aliases
                .first()
                .map_or("without a name", |alias| alias.name.as_str());
            format!("{name} ({}, of Incus)", short(&image.fingerprint))
        });
        Ok(ours.chain(theirs).collect())
    }

    async fn known_images(&self) -> Result<Vec<Known>, DriverError> {
        let path = format!("/1.0/images?recursion=1&project={}", part(&self.project));
        let images: Result<Vec<Known>, ApiError> = self.api.get(&path).await;
        images.map_err(|error| error.into_driver("the images of Incus could not be listed"))
    }

    /// The fingerprint of an image in Incus. One of ours is brought there when it is not there yet, once however many ask.
    pub(super) async fn fingerprint(&self, found: &Found) -> Result<String, DriverError> {
        let image = match &found.from {
            Origin::Incus { fingerprint } => return Ok(fingerprint.clone()),
            Origin::Ours(image) => image,
        };
        let _alone = self.image_gates.lock(found.digest.clone()).await;
        let format = CONTAINER_FORMAT.to_string();
        let is_it = |known: &&Known| {
            let has = |key: &str, value: &str| known.properties.get(key).is_some_and(|own| own == value);
            has(OURS, &found.digest) && has(FORMAT, &format)
        };
        let mut known = self.known_images().await?;
        known.sort_by(|one, other| one.uploaded_at.cmp(&other.uploaded_at));
        if let Some(there) = known.iter().find(is_it) {
            return Ok(there.fingerprint.clone());
        }
        tracing::info!(image = image.manifest.name, "bringing an image into Incus");
        self.import(image, &found.digest, &format).await
    }

    async fn import(&self, image: &Image, digest: &str, format: &str) -> Result<String, DriverError> {
        let what = format!("the image {} could not be brought into Incus", image.manifest.name);
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS);
        let source = image.clone();
        let packing = tokio::task::spawn_blocking(move || {
            let out = Chunks::new(sender.clone());
            let mut out = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
            let written = write_container(&source, &mut out).map_err(driver_error).and_then(|()| {
                let chunks = out.finish().and_then(|mut chunks| chunks.flush());
                chunks.map_err(|error| DriverError::retry(format!("an image could not be packed: {error}")))
            });
            if written.is_err() {
                // Half an image must not look like a whole one.
                drop(sender.blocking_send(Err(io::ErrorKind::BrokenPipe.into())));
            }
            written
        });
        let body = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        let mut headers = HeaderMap::new();
        let properties = format!(
            "{}={}&{}={}&description={}",
            part(OURS),
            part(digest),
            part(FORMAT),
            part(format),
            part(&format!("Hearth's image {}", image.manifest.name)),
        );
        header(&mut headers, "content-type", "application/octet-stream")
            .and_then(|()| header(&mut headers, "x-incus-filename", "hearth.tar.gz"))
            .and_then(|()| header(&mut headers, "x-incus-properties", &properties))
            .map_err(|error| error.into_driver(&what))?;
        let raw = Raw {
            body: reqwest::Body::wrap_stream(body),
            headers,
        };
        let path = format!("/1.0/images?project={}", part(&self.project));
        let uploaded = self.api.upload(&path, raw).await;
        let packed = packing
            .await
            .unwrap_or_else(|error| Err(DriverError::retry(format!("{what}: {error}"))));
        let metadata = match uploaded {
            Ok(metadata) => metadata,
            // Why it broke off is what packing says, if that failed.
            Err(error) => return Err(packed.err().unwrap_or_else(|| error.into_driver(&what))),
        };
        packed?;
        let fingerprint = metadata["fingerprint"].as_str().map(str::to_owned);
        fingerprint.ok_or_else(|| DriverError::unknown(format!("{what}: it has no fingerprint")))
    }

    /// Puts the agent into an instance that has been made of an image without one, and lets it start with the guest.
    pub(super) async fn put_agent(&self, name: &str) -> Result<(), DriverError> {
        let Some(agent) = &self.options.agent else {
            return Ok(());
        };
        let failed = |error: ApiError| error.into_driver(format!("the agent could not be put into {name}"));
        let bytes: Arc<[u8]> = agent.bytes.clone();
        let folders = ["/usr/local/sbin", "/etc/systemd/system/sysinit.target.wants"];
        for folder in folders {
            self.put(name, folder, Entry::Folder).await.map_err(failed)?;
        }
        let program = Entry::File(0o755, Bytes::from_owner(bytes));
        self.put(name, AGENT, program).await.map_err(failed)?;
        let unit = Entry::File(0o644, Bytes::from_static(UNIT.as_bytes()));
        self.put(name, UNIT_PATH, unit).await.map_err(failed)?;
        let link = "/etc/systemd/system/sysinit.target.wants/hearth-agent.service";
        self.put(name, link, Entry::Link(UNIT_PATH)).await.map_err(failed)
    }

    async fn put(&self, name: &str, path: &str, entry: Entry) -> Result<(), ApiError> {
        let mut headers = HeaderMap::new();
        let (kind, mode, body) = match entry {
            Entry::Folder => ("directory", 0o755, Bytes::new()),
            Entry::File(mode, bytes) => ("file", mode, bytes),
            Entry::Link(target) => ("symlink", 0o777, Bytes::from_static(target.as_bytes())),
        };
        header(&mut headers, "x-incus-type", kind)?;
        header(&mut headers, "x-incus-mode", &format!("{mode:04o}"))?;
        header(&mut headers, "x-incus-uid", "0")?;
        header(&mut headers, "x-incus-gid", "0")?;
        let raw = Raw {
            body: body.into(),
            headers,
        };
        let path = format!(
            "/1.0/instances/{}/files?path={}&project={}",
            part(name),
            part(path),
            part(&self.project)
        );
        self.api.upload(&path, raw).await.map(drop)
    }

    /// Looks whether there is an image that is called so, and whether a VM could be made of it.
    pub(super) async fn check_image(&self, wanted: &str) -> Result<(), DriverError> {
        self.find_image(Some(wanted)).await.map(drop)
    }

    /// Removes the images that we have brought and that no instance was made of any more. For the end of an installation.
    pub(super) async fn remove_images(&self) -> Result<(), DriverError> {
        for image in self.known_images().await? {
            if image.properties.contains_key(OURS) {
                let path = format!("/1.0/images/{}?project={}", image.fingerprint, part(&self.project));
                let removed = self.api.run(Method::DELETE, &path, Some(&json!({}))).await;
                removed.map_err(|error| error.into_driver("an image could not be removed"))?;
            }
        }
        Ok(())
    }
}

enum Entry {
    Folder,
    File(u32, Bytes),
    Link(&'static str),
}

const UNIT_PATH: &str = "/etc/systemd/system/hearth-agent.service";
/// The agent's service in an image that is not ours.
const UNIT: &str = "\
[Unit]
Description=Hearth guest agent
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/sbin/hearth-agent serve --container
EnvironmentFile=-/etc/environment
Restart=always
RestartSec=100ms
KillMode=process
Delegate=yes
TasksMax=infinity

[Install]
WantedBy=sysinit.target
";

/// A writer whose bytes go to another task.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Chunks {
    fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self {
            sender,
            buffer: Vec::with_capacity(CHUNK_BYTES),
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        let sent = self.sender.blocking_send(Ok(chunk.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_may_say_what_an_instance_is_to_be() {
        let usual = IncusKind::Container;
        assert_eq!(kind_of(None, usual), (None, usual, false));
        assert_eq!(kind_of(Some("debian"), usual), (Some("debian"), usual, false));
        let vm = IncusKind::VirtualMachine;
        assert_eq!(kind_of(Some("vm:debian"), usual), (Some("debian"), vm, true));
        assert_eq!(kind_of(Some("vm:"), usual), (None, vm, true));
        assert_eq!(kind_of(Some("container:x"), vm), (Some("x"), usual, true));
    }
}
