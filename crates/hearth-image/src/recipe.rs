//! What goes into a base and an image, and the digests that name them. Pure: the same inputs give the same digest anywhere.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::guest::{self, HostCertificate};
use super::{BuildOptions, ImageError};

/// Counts up when the code that builds changes what comes out without any text in `guest/` or `host/` changing.
const BUILDER_VERSION: u32 = 1;

/// The same for what turns a base and an agent into an image. 2: the kernel is there unpacked too.
const ASSEMBLER_VERSION: u32 = 2;

/// Digits of a digest in names that only need to differ (cache folders, certificates).
const SHORT_DIGITS: usize = 16;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Releases without a folder of security updates and point-release updates.
const ROLLING: [&str; 3] = ["sid", "unstable", "experimental"];

/// Everything that decides what a base holds.
#[derive(Debug, Serialize)]
pub(super) struct BaseRecipe {
    builder: u32,
    arch: &'static str,
    pub(super) suite: String,
    /// apt's `sources.list` in the VM and of the build.
    pub(super) sources: String,
    /// Sorted, the kernel's among them.
    pub(super) packages: Vec<String>,
    /// Digest of every text in `guest/` and `host/`.
    texts: String,
    /// Digests of the host's extra CA certificates.
    certificates: Vec<String>,
    /// Changes when a refresh is asked for; empty before the first.
    refresh: String,
}

/// Everything that decides what an image holds.
#[derive(Debug, Serialize)]
pub(super) struct ImageRecipe<'a> {
    pub(super) builder: u32,
    pub(super) name: &'a str,
    pub(super) base: &'a str,
    pub(super) agent: &'a str,
}

impl<'a> ImageRecipe<'a> {
    pub(super) fn new(name: &'a str, base: &'a str, agent: &'a str) -> Self {
        Self {
            builder: ASSEMBLER_VERSION,
            name,
            base,
            agent,
        }
    }
}

/// The name of something made by a recipe: SHA-256 of its JSON.
pub(super) fn digest(recipe: &impl Serialize) -> Result<String, ImageError> {
    let text = serde_json::to_vec(recipe)
        .map_err(|error| ImageError::io("the recipe could not be written as JSON")(error.into()))?;
    Ok(hex::encode(Sha256::digest(text)))
}

/// Enough of a digest to tell things apart.
pub(super) fn short_digest(bytes: &[u8]) -> String {
    let mut text = hex::encode(Sha256::digest(bytes));
    text.truncate(SHORT_DIGITS);
    text
}

impl BaseRecipe {
    /// Checks what the caller gave and puts everything together.
    pub(super) fn new(
        options: &BuildOptions,
        certificates: &[HostCertificate],
        refresh: &str,
    ) -> Result<Self, ImageError> {
        let arch = std::env::consts::ARCH;
        let kernel = guest::kernel_package().ok_or(ImageError::Architecture { arch })?;
        check_suite(&options.suite)?;
        check_mirror(&options.mirror)?;
        check_mirror(&options.security_mirror)?;
        let mut packages: Vec<String> = guest::PACKAGES.iter().map(|&name| name.to_owned()).collect();
        packages.push(kernel.to_owned());
        for package in &options.extra_packages {
            check_package(package)?;
            packages.push(package.clone());
        }
        packages.sort();
        packages.dedup();
        Ok(Self {
            builder: BUILDER_VERSION,
            arch,
            suite: options.suite.clone(),
            sources: sources(options),
            packages,
            texts: texts_digest(),
            certificates: certificates
                .iter()
                .map(|certificate| certificate.name.clone())
                .collect(),
            refresh: refresh.to_owned(),
        })
    }

    /// The name of the folder in the package cache: builds that use the same archive share it.
    pub(super) fn cache_name(&self) -> String {
        format!("{}-{}", self.suite, short_digest(self.sources.as_bytes()))
    }

    /// The key that signs the archive; on the host and in the VM at the same place.
    pub(super) fn keyring() -> &'static str {
        KEYRING
    }
}

fn sources(options: &BuildOptions) -> String {
    let BuildOptions {
        suite,
        mirror,
        security_mirror,
        ..
    } = options;
    let mut text = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    if !ROLLING.contains(&suite.as_str()) {
        text.push_str(&format!("deb [signed-by={KEYRING}] {mirror} {suite}-updates main\n"));
        text.push_str(&format!(
            "deb [signed-by={KEYRING}] {security_mirror} {suite}-security main\n"
        ));
    }
    text
}

fn texts_digest() -> String {
    let mut hash = Sha256::new();
    let files = guest::FILES.iter().map(|file| (file.path, file.mode, file.text));
    let scripts = guest::HOOK_SCRIPTS
        .iter()
        .chain([&guest::BUILD_SCRIPT])
        .map(|(name, text)| (*name, 0, *text));
    for (name, mode, text) in files.chain(scripts) {
        hash.update(format!("{name} {mode:o} {}\n", text.len()));
        hash.update(text);
    }
    hash.update(guest::INITRD_MODULES.join(" "));
    hex::encode(hash.finalize())
}

fn invalid(what: &'static str, value: &str, why: &'static str) -> ImageError {
    ImageError::Invalid {
        what,
        value: value.to_owned(),
        why,
    }
}

fn check_suite(suite: &str) -> Result<(), ImageError> {
    let is_fine = !suite.is_empty() && suite.chars().all(|char| char.is_ascii_lowercase() || char == '-');
    if is_fine {
        Ok(())
    } else {
        Err(invalid("the suite", suite, "give a Debian code name such as bookworm"))
    }
}

fn check_mirror(mirror: &str) -> Result<(), ImageError> {
    let has_scheme = mirror.starts_with("http://") || mirror.starts_with("https://");
    let is_plain = mirror
        .chars()
        .all(|char| char.is_ascii_graphic() && !"[]'\"#".contains(char));
    if has_scheme && is_plain {
        return Ok(());
    }
    Err(invalid(
        "the mirror",
        mirror,
        "give an address that begins with http:// or https://",
    ))
}

/// Debian's own rule for names (policy 5.6.1). Anything else would mean something to apt that nobody asked for.
fn check_package(package: &str) -> Result<(), ImageError> {
    let begins_well = package
        .chars()
        .next()
        .is_some_and(|char| char.is_ascii_lowercase() || char.is_ascii_digit());
    let is_fine = package
        .chars()
        .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || "+-.".contains(char));
    // apt reads a last `-` as "remove" and a last `+` as "install" when no package is called so.
    if package.len() >= 2 && begins_well && is_fine && !package.ends_with('-') {
        return Ok(());
    }
    Err(invalid(
        "the package",
        package,
        "a name has only small letters, digits and + - .",
    ))
}

/// What an image is called when nobody gives it a name; a given one must not look like a digest or a path.
pub(super) fn image_name(options: &BuildOptions) -> Result<String, ImageError> {
    let Some(name) = &options.name else {
        return Ok(format!("debian-{}", options.suite));
    };
    let is_fine = name.chars().next().is_some_and(char::is_alphabetic)
        && name
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char));
    if is_fine {
        return Ok(name.clone());
    }
    Err(invalid(
        "the name",
        name,
        "begin with a letter and use only letters, digits and - _ .",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AgentSource;

    fn options() -> BuildOptions {
        BuildOptions::new("/images", "/cache", AgentSource::File("/agent".into()))
    }

    fn base_digest(options: &BuildOptions, certificates: &[HostCertificate], refresh: &str) -> String {
        digest(&BaseRecipe::new(options, certificates, refresh).unwrap()).unwrap()
    }

    #[test]
    fn the_order_of_packages_does_not_matter_and_every_input_does() {
        let one = BuildOptions {
            extra_packages: vec!["golang".into(), "cmake".into()],
            ..options()
        };
        let other = BuildOptions {
            extra_packages: vec!["cmake".into(), "golang".into(), "git".into()],
            ..options()
        };
        assert_eq!(base_digest(&one, &[], ""), base_digest(&other, &[], ""));

        let certificate = HostCertificate {
            name: "host-1.crt".into(),
            text: Vec::new(),
        };
        let digests = [
            base_digest(&options(), &[], ""),
            base_digest(&one, &[], ""),
            base_digest(
                &BuildOptions {
                    suite: "trixie".into(),
                    ..options()
                },
                &[],
                "",
            ),
            base_digest(
                &BuildOptions {
                    mirror: "https://mirror.example/debian".into(),
                    ..options()
                },
                &[],
                "",
            ),
            base_digest(&options(), &[certificate], ""),
            base_digest(&options(), &[], "2026-01-01"),
        ];
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    #[test]
    fn folders_and_agent_path_are_no_inputs() {
        let moved = BuildOptions {
            images_dir: "/elsewhere".into(),
            cache_dir: "/c".into(),
            agent: AgentSource::File("/b".into()),
            ..options()
        };
        assert_eq!(base_digest(&options(), &[], ""), base_digest(&moved, &[], ""));
    }

    #[test]
    fn an_image_is_named_by_base_agent_and_name() {
        let first = digest(&ImageRecipe::new("n", "base", "agent")).unwrap();
        assert_eq!(first, digest(&ImageRecipe::new("n", "base", "agent")).unwrap());
        assert_ne!(first, digest(&ImageRecipe::new("n", "base", "agent2")).unwrap());
        assert_ne!(first, digest(&ImageRecipe::new("n", "base2", "agent")).unwrap());
        assert_ne!(first, digest(&ImageRecipe::new("m", "base", "agent")).unwrap());
    }

    #[test]
    fn security_updates_come_only_where_they_exist() {
        assert_eq!(sources(&options()).lines().count(), 3);
        assert_eq!(
            sources(&BuildOptions {
                suite: "sid".into(),
                ..options()
            })
            .lines()
            .count(),
            1
        );
    }

    #[test]
    fn what_apt_would_misread_is_refused() {
        for package in [
            "", "a", "git-", "~i", "?all", "git,curl", "a b", "Git", "../x", "x=1", "-oDir=/",
        ] {
            assert!(check_package(package).is_err(), "{package}");
        }
        for package in ["git", "g++", "libstdc++6", "python3.11", "0ad"] {
            assert!(check_package(package).is_ok(), "{package}");
        }
        for mirror in [
            "ftp://x",
            "http://a b",
            "http://x\ndeb http://y",
            "file:///x",
            "http://x/[trusted=yes]",
        ] {
            assert!(check_mirror(mirror).is_err(), "{mirror}");
        }
        assert!(check_suite("bookworm main").is_err());
        assert!(
            image_name(&BuildOptions {
                name: Some("../x".into()),
                ..options()
            })
            .is_err()
        );
        assert_eq!(image_name(&options()).unwrap(), "debian-bookworm");
    }
}
