//! `cargo xtask setup`: the system packages. Fast when all are there; never removes a package; with neither root nor sudo it
//! prints the one line to run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::forecast::{self, Apt, Forecast};
use crate::packages::{self, EMULATOR};
use crate::process::{self, output_of, say};

/// What a version from backports has in its name.
const BACKPORTS_MARK: &str = "~bpo";
/// Our own source of packages; nobody else's file is touched.
const SOURCE_FILE: &str = "/etc/apt/sources.list.d/hearth-backports.sources";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Somebody else (unattended upgrades, say) may hold the lock for some minutes.
const LOCK_SECONDS: &str = "DPkg::Lock::Timeout=600";

/// What is missing of the system's packages, and how it is to be had.
#[derive(Debug)]
pub(crate) struct Plan {
    missing: Vec<&'static str>,
    backports: Option<String>,
}

/// What carries a plan out.
pub(crate) struct Installer {
    plan: Plan,
    root: Root,
}

pub(crate) fn run() -> Result<()> {
    let plan = Plan::make()?;
    if plan.is_empty() {
        say("system packages: all there");
        return Ok(());
    }
    say(format_args!(
        "system packages: {} missing ({})",
        plan.missing.len(),
        plan.missing.join(", ")
    ));
    plan.installer()?.install()
}

impl Plan {
    /// Looks at what is there.
    pub(crate) fn make() -> Result<Self> {
        if output_of(Command::new("dpkg-query").arg("--version")).is_none() {
            bail!(
                "this set-up knows Debian and Ubuntu only; install what these packages hold, by hand: {}",
                packages::missing().join(" ")
            );
        }
        let missing = packages::missing();
        let backports = backports_suite(&missing);
        Ok(Self { missing, backports })
    }

    /// Nothing is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }

    /// The right to install, which may cost a password.
    pub(crate) fn installer(self) -> Result<Installer> {
        let root = Root::find(&one_line(&self.missing, self.backports.as_deref()))?;
        Ok(Installer { plan: self, root })
    }

    /// What it does to the machine, a line each. May ask the packages' mirrors; changes nothing.
    pub(crate) fn describe(&self) -> Vec<String> {
        if self.is_empty() {
            return vec!["no system package: all are there".to_owned()];
        }
        let source = self.backports.as_deref().filter(|_| !forecast::is_there(SOURCE_FILE));
        let mut lines = vec![format!("install  {}", self.missing.join(" "))];
        if let Some(suite) = source {
            lines.push(format!(
                "add      the package source {suite}, in {SOURCE_FILE}: qemu-utils is from there, and the emulator must fit it"
            ));
        }
        let known = source.is_none() && self.missing.iter().all(|name| packages::has_candidate(name));
        let text = source.map(source_text);
        let name = Path::new(SOURCE_FILE)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let apt = if known {
            Ok(Apt::system())
        } else {
            say("asking apt what it will bring along …");
            Apt::with_own_lists(text.as_deref().map(|text| (name, text)))
        };
        let rounds = rounds(&self.missing, self.backports.as_deref());
        let forecasts: Option<Vec<Forecast>> = apt.ok().and_then(|apt| {
            let ask = |(suite, names): &(Option<&str>, Vec<&str>)| apt.install(*suite, names);
            rounds.iter().map(ask).collect()
        });
        match forecasts {
            Some(forecasts) => lines.extend(self.changes(&forecasts)),
            None => lines.push("         what they bring along, apt says when it installs them".to_owned()),
        }
        lines
    }

    fn changes(&self, forecasts: &[Forecast]) -> Vec<String> {
        let named = |list: fn(&Forecast) -> &Vec<String>| {
            let mut names: Vec<&str> = forecasts.iter().flat_map(list).map(String::as_str).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        let mut more = named(|forecast| &forecast.new);
        more.retain(|name| !self.missing.contains(name));
        let upgraded = named(|forecast| &forecast.upgraded);
        let bytes: u64 = forecasts.iter().map(|forecast| forecast.download).sum();
        let mut lines = Vec::new();
        if !more.is_empty() {
            lines.push(format!(
                "         and what they need, {} packages: {}",
                more.len(),
                more.join(" ")
            ));
        }
        if !upgraded.is_empty() {
            lines.push(format!("upgrade  {}", upgraded.join(" ")));
        }
        lines.push(format!("fetch    {} MB of packages", bytes.div_ceil(1_000_000)));
        lines
    }
}

impl Installer {
    /// Carries the plan out.
    pub(crate) fn install(self) -> Result<()> {
        let Plan { missing, backports } = self.plan;
        install(&self.root, &missing, backports.as_deref())?;
        let still = packages::missing();
        if !still.is_empty() {
            bail!(
                "apt reported success, but these are not installed: {}",
                still.join(", ")
            );
        }
        Ok(())
    }
}

/// Installs packages that only a comparison needs; as root only, and nobody is asked for a password. A fault is said and
/// no more: the comparison is then left out.
pub(crate) fn install_if_root(names: &[&str], suite: Option<&str>) {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| packages::version(name).is_none())
        .collect();
    if missing.is_empty() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        say(format_args!("not installed, and only root may: {}", missing.join(", ")));
        return;
    }
    say(format_args!("installing {}", missing.join(", ")));
    let root = Root { sudo: false };
    let known = |name: &&str| match suite {
        Some(suite) => packages::offered_by(name, suite),
        None => packages::has_candidate(name),
    };
    let mut done = root.update();
    if missing.iter().all(known) {
        done = done.and_then(|()| root.install(suite, &missing).map(drop));
    } else {
        say(format_args!("apt knows no package for all of them"));
    }
    if let Err(error) = done {
        say(format_args!("they could not be installed: {error:#}"));
    }
}

/// The suite that the emulator must come from: `qemu-utils` from backports and an emulator from the main suite exclude each
/// other, and apt refuses.
fn backports_suite(missing: &[&str]) -> Option<String> {
    if !missing.contains(&EMULATOR) || !packages::version("qemu-utils")?.contains(BACKPORTS_MARK) {
        return None;
    }
    packages::codename().map(|codename| format!("{codename}-backports"))
}

/// The source of the suite, in apt's form.
fn source_text(suite: &str) -> String {
    let codename = suite.trim_end_matches("-backports");
    let mirror = packages::mirror(codename).unwrap_or_else(|| DEFAULT_MIRROR.to_owned());
    let signed = if Path::new(KEYRING).exists() {
        format!("Signed-By: {KEYRING}\n")
    } else {
        String::new()
    };
    format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n{signed}")
}

/// What a person without root can hand to one who has it.
fn one_line(missing: &[&str], backports: Option<&str>) -> String {
    let mut parts = Vec::new();
    if let Some(suite) = backports.filter(|suite| !packages::offered_by(EMULATOR, suite)) {
        let text = source_text(suite).trim_end().replace('\n', "\\n");
        parts.push(format!("printf '{text}\\n' > {SOURCE_FILE}"));
    }
    parts.push("apt-get update".to_owned());
    let (emulator, others) = split(missing);
    if let Some((suite, emulator)) = backports.zip(emulator) {
        parts.push(format!(
            "apt-get install -y --no-install-recommends --no-remove -t {suite} {emulator}"
        ));
        if !others.is_empty() {
            parts.push(format!(
                "apt-get install -y --no-install-recommends --no-remove {}",
                others.join(" ")
            ));
        }
    } else {
        parts.push(format!(
            "apt-get install -y --no-install-recommends --no-remove {}",
            missing.join(" ")
        ));
    }
    parts.join(" && ")
}

fn split<'a>(missing: &[&'a str]) -> (Option<&'a str>, Vec<&'a str>) {
    let (emulator, others): (Vec<&str>, Vec<&str>) = missing.iter().partition(|name| **name == EMULATOR);
    (emulator.first().copied(), others)
}

/// The calls of apt: each with the suite that its packages come from, where that is another than usual.
fn rounds<'a>(missing: &[&'a str], backports: Option<&'a str>) -> Vec<(Option<&'a str>, Vec<&'a str>)> {
    let (emulator, others) = split(missing);
    let mut rounds = match backports {
        Some(suite) => vec![(Some(suite), emulator.into_iter().collect()), (None, others)],
        None => vec![(None, missing.to_vec())],
    };
    rounds.retain(|(_, names)| !names.is_empty());
    rounds
}

fn install(root: &Root, missing: &[&str], backports: Option<&str>) -> Result<()> {
    let mut updated = false;
    if let Some(suite) = backports {
        say(format_args!(
            "qemu-utils is from {suite}: the emulator must come from there too"
        ));
        if !packages::offered_by(EMULATOR, suite) {
            root.write(SOURCE_FILE, &source_text(suite))?;
            root.update()?;
            updated = true;
        }
    }
    if !updated && missing.iter().any(|name| !packages::has_candidate(name)) {
        root.update()?;
        updated = true;
    }
    for (suite, names) in rounds(missing, backports) {
        if root.install(suite, &names)? {
            continue;
        }
        // Lists that are some weeks old name files that the mirror no longer has.
        if updated {
            bail!("apt-get could not install {}; its message is above", names.join(" "));
        }
        root.update()?;
        updated = true;
        if !root.install(suite, &names)? {
            bail!("apt-get could not install {}; its message is above", names.join(" "));
        }
    }
    Ok(())
}

/// The right to install packages.
struct Root {
    sudo: bool,
}

impl Root {
    fn find(one_line: &str) -> Result<Self> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Self { sudo: false });
        }
        if output_of(Command::new("sudo").args(["-n", "true"])).is_some() {
            return Ok(Self { sudo: true });
        }
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let asked = terminal && process::run_interactive(Command::new("sudo").arg("-v")).is_ok_and(|s| s.success());
        process::check_stop()?;
        if asked {
            return Ok(Self { sudo: true });
        }
        bail!("installing packages needs root or sudo, and you have neither. As root, run:\n\n{one_line}\n");
    }

    fn command(&self, program: &str) -> Command {
        let mut command = if self.sudo {
            Command::new("sudo")
        } else {
            Command::new("env")
        };
        if self.sudo {
            command.arg("env");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command
    }

    fn update(&self) -> Result<()> {
        let status = process::run_interactive(self.command("apt-get").args(["-o", LOCK_SECONDS, "-q", "update"]))?;
        if !status.success() {
            // One broken source among many needs not be one of those that matter; installing will tell.
            say(format_args!("apt-get update met a fault (above); trying all the same"));
        }
        Ok(())
    }

    fn install(&self, suite: Option<&str>, names: &[&str]) -> Result<bool> {
        let mut command = self.command("apt-get");
        command.args(["-o", LOCK_SECONDS, "-q", "-y", "--no-install-recommends", "--no-remove"]);
        // A changed file of the administrator's stays as it is, without a question.
        command.args([
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
            "install",
        ]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        Ok(process::run_interactive(command.args(names))?.success())
    }

    /// Writes a file that only root may write.
    fn write(&self, path: &str, text: &str) -> Result<()> {
        let script = format!("printf '%s' \"$1\" > {path} && chmod 644 {path}");
        let status = process::run_interactive(self.command("sh").args(["-c", &script, "sh", text]))
            .with_context(|| format!("{path} cannot be written"))?;
        if !status.success() {
            bail!("{path} cannot be written");
        }
        say(format_args!("added {path}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_root_installs_the_emulator_from_where_it_fits() {
        let line = one_line(&["git", EMULATOR], Some("nosuch-backports"));
        assert!(line.contains(&format!("-t nosuch-backports {EMULATOR} && ")), "{line}");
        assert!(line.ends_with("--no-remove git"), "{line}");
        assert!(line.starts_with("printf 'Types: deb\\nURIs: "), "{line}");
    }

    #[test]
    fn without_backports_it_is_one_command() {
        let line = one_line(&["git", "zstd"], None);
        assert_eq!(
            line,
            "apt-get update && apt-get install -y --no-install-recommends --no-remove git zstd"
        );
    }
}
