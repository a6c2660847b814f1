//! What apt would do, asked before it does it: packages, upgrades, sizes. Changes nothing on the machine: where apt's lists are
//! not there yet or a source is to be added, it works on lists of its own below the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::output_of;
use crate::workspace;

/// What an installation changes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// Packages that are not there yet.
    pub(crate) new: Vec<String>,
    /// Packages that are there and get another version.
    pub(crate) upgraded: Vec<String>,
    /// What is fetched, bytes.
    pub(crate) download: u64,
}

/// apt, told where its lists and sources are.
#[derive(Debug)]
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The system's own lists.
    pub(crate) fn system() -> Self {
        Self { options: Vec::new() }
    }

    /// Lists of our own, fetched now, with the system's sources and one that is to be added (name and text).
    pub(crate) fn with_own_lists(added: Option<(&str, &str)>) -> Result<Self> {
        let folder = workspace::target().join("apt-forecast");
        let parts = folder.join("sources");
        if parts.exists() {
            fs::remove_dir_all(&parts)?;
        }
        for folder in [
            parts.clone(),
            folder.join("lists/partial"),
            folder.join("cache/archives/partial"),
        ] {
            fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
            // One that we may not read is one that apt may not read for us either.
            let _ = fs::copy(entry.path(), parts.join(entry.file_name()));
        }
        if let Some((name, text)) = added {
            fs::write(parts.join(name), text)?;
        }
        let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        let apt = Self {
            options: vec![
                option("Dir::State::Lists", folder.join("lists")),
                option("Dir::Cache", folder.join("cache")),
                option("Dir::Etc::SourceParts", parts),
            ],
        };
        // One broken source among many needs not be one of those that matter.
        output_of(apt.command().args(["-q", "update"]));
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").args(["-o", "Debug::NoLocking=1"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// What installing these would change; nothing when apt refuses or does not know them.
    pub(crate) fn install(&self, suite: Option<&str>, names: &[&str]) -> Option<Forecast> {
        let ask = |how: &str| {
            let mut command = self.command();
            command.args([how, "-q", "-y", "--no-install-recommends", "--no-remove", "install"]);
            command.args(suite.iter().flat_map(|suite| ["-t", suite])).args(names);
            output_of(&mut command)
        };
        let mut forecast = changes(&ask("--simulate")?);
        forecast.download = download(&ask("--print-uris").unwrap_or_default());
        Some(forecast)
    }
}

/// Reads `Inst name [old version] (new version origin)`; the old version only where there is one.
fn changes(simulated: &str) -> Forecast {
    let mut forecast = Forecast::default();
    for line in simulated.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("Inst") {
            continue;
        }
        let Some(name) = words.next() else { continue };
        let is_there = words.next().is_some_and(|word| word.starts_with('['));
        let list = if is_there {
            &mut forecast.upgraded
        } else {
            &mut forecast.new
        };
        list.push(name.to_owned());
    }
    forecast
}

/// Reads `'address' file size checksum`.
fn download(uris: &str) -> u64 {
    let sizes = uris.lines().filter(|line| line.starts_with('\'')).filter_map(|line| {
        let (_, rest) = line.rsplit_once("' ")?;
        rest.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    sizes.sum()
}

/// Whether a source of ours is there already.
pub(crate) fn is_there(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_says_it_would_do_is_understood() {
        let text = "Reading package lists...\nInst login [1:4.13+dfsg1-1+b1] (1:4.16.0-2 Debian:12 [amd64]) []\n\
                    Inst passwd [1:4.13] (1:4.16 Debian:12 [amd64])\nInst uidmap (1:4.16 Debian:12 [amd64])\n\
                    Conf login (1:4.16 Debian:12 [amd64])\n";
        let forecast = changes(text);
        assert_eq!(forecast.upgraded, ["login", "passwd"]);
        assert_eq!(forecast.new, ["uidmap"]);
        let uris = "Reading\n'http://x/a%20b_1.deb' a_1.deb 1000 SHA256:00\n'http://x/c.deb' c.deb 24 MD5Sum:1\n";
        assert_eq!(download(uris), 1024);
        assert_eq!(download(""), 0);
    }

    #[test]
    fn packages_that_nobody_knows_have_no_forecast() {
        assert_eq!(Apt::system().install(None, &["hearth-no-such-package"]), None);
    }
}
