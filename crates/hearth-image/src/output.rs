//! Understands what the build script, mmdebstrap, apt and dpkg print: how far it is, and, when it fails, why. Pure.

use std::path::Path;

use super::{ImageError, Progress, Stage};

/// What the build script says itself begins with this.
const OWN: &str = "hearth: ";

/// How many lines that look like errors are kept: the first ones say why, the rest are consequences.
const MAX_ERRORS: usize = 50;

/// Reads the output of one build, line by line.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Packages of all rounds so far; Debian is installed in two.
    packages: u64,
    /// Whether packages are being installed rather than only fetched.
    is_installing: bool,
    /// Of this round, and how many of them have been fetched.
    round: u64,
    fetched: u64,
    unpacked: u64,
    configured: u64,
    is_offline: bool,
    has_no_lists: bool,
    errors: Vec<String>,
}

impl Output {
    /// Takes one line; a report when it says something about how far the build is.
    pub(super) fn read(&mut self, line: &str) -> Option<Progress> {
        if let Some(own) = line.strip_prefix(OWN) {
            return self.read_own(own);
        }
        if let Some(count) = newly_installed(line) {
            if self.is_installing {
                self.packages += count;
            }
            self.round = count;
            self.fetched = 0;
            return None;
        }
        let mut words = line.split(' ');
        match words.next()? {
            // Lists come before any package is known of.
            word if word.starts_with("Get:") && self.round == 0 => Some(Progress::stage(Stage::Lists)),
            word if word.starts_with("Get:") => {
                self.fetched += 1;
                // Address, release, architecture, then the package's name.
                let name = words.nth(3)?;
                Some(counted(Stage::Download, self.fetched, self.round, name))
            }
            "Unpacking" => {
                self.unpacked += 1;
                Some(counted(Stage::Unpack, self.unpacked, self.packages, words.next()?))
            }
            "Setting" if words.next() == Some("up") => {
                self.configured += 1;
                Some(counted(Stage::Configure, self.configured, self.packages, words.next()?))
            }
            _ => {
                if looks_like_error(line) && self.errors.len() < MAX_ERRORS {
                    self.errors.push(line.to_owned());
                }
                None
            }
        }
    }

    fn read_own(&mut self, line: &str) -> Option<Progress> {
        match line {
            "stage lists" => Some(Progress::stage(Stage::Lists)),
            "stage download" => Some(Progress::stage(Stage::Download)),
            "stage install" => {
                self.is_installing = true;
                Some(Progress::stage(Stage::Unpack))
            }
            "stage customize" => Some(Progress::stage(Stage::Customize)),
            "stage kernel" | "stage filesystem" => Some(Progress::stage(Stage::FileSystem)),
            "offline" => {
                self.is_offline = true;
                let text = "the mirror cannot be reached: continuing with the package lists of an earlier build";
                Some(Progress::notice(Stage::Lists, text))
            }
            "no lists" => {
                self.has_no_lists = true;
                None
            }
            other => {
                self.errors.insert(0, other.to_owned());
                None
            }
        }
    }

    /// Why a build that has failed did.
    pub(super) fn failure(&self, suite: &str, mirror: &str, log: &Path) -> ImageError {
        let find = |part: &str| self.errors.iter().find(|line| line.contains(part));
        if find("No space left on device").is_some() {
            return ImageError::DiskFull;
        }
        let offline = |what: &'static str| ImageError::Offline {
            mirror: mirror.to_owned(),
            what,
            detail: find("Failed to fetch")
                .or(self.errors.first())
                .cloned()
                .unwrap_or_else(|| "no reason was given".to_owned()),
        };
        if self.has_no_lists {
            return offline("there are no package lists of this archive");
        }
        if let Some(package) = self.errors.iter().find_map(|line| unknown_package(line)) {
            return ImageError::NoSuchPackage {
                package,
                suite: suite.to_owned(),
            };
        }
        if find("Failed to fetch").is_some() || find("Unable to fetch").is_some() {
            return offline("not every package is");
        }
        let last = self
            .errors
            .first()
            .cloned()
            .unwrap_or_else(|| "no reason was printed".to_owned());
        ImageError::Install {
            last,
            log: log.to_owned(),
        }
    }
}

fn counted(stage: Stage, done: u64, total: u64, name: &str) -> Progress {
    // A name may carry its architecture.
    let name = name.split(':').next().unwrap_or(name);
    Progress {
        done,
        total: total.max(done),
        detail: Some(name.to_owned()),
        ..Progress::stage(stage)
    }
}

/// From apt's "0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded." (apt 3 writes "Upgrading: 0, Installing: 69, …").
fn newly_installed(line: &str) -> Option<u64> {
    if let Some((before, _)) = line.split_once(" newly installed") {
        return before.rsplit(' ').next()?.parse().ok();
    }
    let (_, after) = line.split_once("Installing: ")?;
    after.split(',').next()?.trim().parse().ok()
}

fn looks_like_error(line: &str) -> bool {
    (line.starts_with("E: ") && line != "E: mmdebstrap failed to run")
        || line.starts_with("Err:")
        || line.starts_with("W: Failed to fetch")
        || line.contains("No space left on device")
        || line.starts_with("dpkg: error")
        || line.starts_with("mke2fs: ")
        || line.starts_with("modprobe: ")
        || line.starts_with("unshare: ")
}

fn unknown_package(line: &str) -> Option<String> {
    if let Some(name) = line.strip_prefix("E: Unable to locate package ") {
        return Some(name.trim().to_owned());
    }
    let name = line
        .strip_prefix("E: Package '")?
        .strip_suffix("' has no installation candidate")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> (Output, Vec<Progress>) {
        let mut output = Output::default();
        let reports = text.lines().filter_map(|line| output.read(line)).collect();
        (output, reports)
    }

    #[test]
    fn packages_are_counted_over_both_rounds() {
        let (_, reports) = read_all(
            "hearth: stage lists\n\
             Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]\n\
             hearth: stage download\n\
             0 upgraded, 4 newly installed, 0 to remove and 0 not upgraded.\n\
             hearth: stage install\n\
             0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.\n\
             Get:1 http://deb.debian.org/debian bookworm/main amd64 libc6 amd64 2.36 [2759 kB]\n\
             Unpacking libc6:amd64 (2.36) ...\n\
             Setting up libc6:amd64 (2.36) ...\n\
             0 upgraded, 3 newly installed, 0 to remove and 0 not upgraded.\n\
             Unpacking jq (1.6) ...\n\
             hearth: stage filesystem\n",
        );
        let seen: Vec<_> = reports
            .iter()
            .map(|report| (report.stage, report.done, report.total))
            .collect();
        assert_eq!(
            seen,
            [
                (Stage::Lists, 0, 0),
                (Stage::Lists, 0, 0),
                (Stage::Download, 0, 0),
                (Stage::Unpack, 0, 0),
                (Stage::Download, 1, 2),
                (Stage::Unpack, 1, 2),
                (Stage::Configure, 1, 2),
                (Stage::Unpack, 2, 5),
                (Stage::FileSystem, 0, 0),
            ]
        );
        assert_eq!(reports[4].detail.as_deref(), Some("libc6"));
    }

    #[test]
    fn apt_3_counts_too() {
        assert_eq!(
            newly_installed("  Upgrading: 0, Installing: 69, Removing: 0, Not Upgrading: 0"),
            Some(69)
        );
        assert_eq!(newly_installed("Installing something"), None);
    }

    #[test]
    fn going_on_offline_is_said() {
        let (_, reports) = read_all("hearth: offline\n");
        assert!(reports[0].is_notice);
    }

    #[test]
    fn failures_say_what_they_are() {
        let fail = |text: &str| read_all(text).0.failure("bookworm", "http://mirror", Path::new("/log"));
        assert!(
            matches!(fail("E: Unable to locate package nosuch"), ImageError::NoSuchPackage { package, .. } if package == "nosuch")
        );
        assert!(matches!(
            fail("E: Package 'foo' has no installation candidate"),
            ImageError::NoSuchPackage { package, .. } if package == "foo"
        ));
        assert!(matches!(
            fail("W: Failed to fetch http://x  Could not resolve\nhearth: no lists"),
            ImageError::Offline { .. }
        ));
        assert!(matches!(
            fail("hearth: offline\nE: Failed to fetch http://x/y.deb"),
            ImageError::Offline { .. }
        ));
        assert!(matches!(
            fail("cp: error writing 'x': No space left on device"),
            ImageError::DiskFull
        ));
        assert!(
            matches!(fail("dpkg: error processing package x"), ImageError::Install { last, .. } if last.contains("package x"))
        );
        assert!(matches!(fail(""), ImageError::Install { .. }));
    }
}
