//! A build by Cargo: how many of how many crates are there, and how long the rest will take.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::{process, workspace};

/// Crates that take much longer than others, in units of what an ordinary one takes. Rounded: only the share of the rest matters.
const HEAVY: [(&str, u32); 26] = [
    ("axum", 5),
    ("h2", 5),
    ("hearth", 12),
    ("hearth-agent", 40),
    ("hearth-api", 12),
    ("hearth-core", 8),
    ("hearth-drivers", 14),
    ("hearth-image", 5),
    ("hearth-server", 60),
    ("hearth-store", 10),
    ("jiff", 5),
    ("jsonschema", 12),
    ("libsqlite3-sys", 25),
    ("netlink-packet-route", 8),
    ("nix", 4),
    ("reqwest", 4),
    ("regex-automata", 6),
    ("ring", 10),
    ("rustix", 5),
    ("rustls", 6),
    ("sqlx-core", 5),
    ("sqlx-sqlite", 6),
    ("syn", 5),
    ("tokio", 8),
    ("utoipa-gen", 6),
    ("zerocopy", 4),
];
/// Before this share of the work is done nothing can be said about the rest.
const LEAST_DONE: f64 = 0.04;

/// How far a build is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    done: usize,
    of: usize,
    left: Option<Duration>,
    at: Instant,
}

impl Progress {
    /// What a person is told about it at this time.
    pub(crate) fn text(&self, now: Instant) -> String {
        let crates = format!("{}/{} crates", self.done, self.of);
        let Some(left) = self.left else { return crates };
        let left = left.saturating_sub(now.saturating_duration_since(self.at));
        match left.as_secs().div_ceil(60) {
            0 | 1 => format!("{crates}, less than a minute left"),
            minutes => format!("{crates}, about {minutes} min left"),
        }
    }
}

/// A package that is built, and the command for it.
pub(crate) type Build<'a> = (&'a str, Command);

/// Runs some `cargo build …` side by side and tells after each crate how far they are together.
pub(crate) fn run(builds: &mut [Build<'_>], tell: impl Fn(Progress) + Sync) -> Result<()> {
    let meter = Mutex::new(Meter::new(
        builds.iter().map(|(package, _)| crates_of(package)).collect(),
    ));
    let (meter, tell) = (&meter, &tell);
    std::thread::scope(|scope| {
        let started: Vec<_> = builds
            .iter_mut()
            .enumerate()
            .map(|(index, (_, command))| {
                command.arg("--message-format=json-render-diagnostics");
                scope.spawn(move || {
                    process::run_reading(command, |line| {
                        let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
                        if meter.read(index, line) {
                            tell(meter.progress(Instant::now()));
                        }
                    })
                })
            })
            .collect();
        for build in started {
            match build.join() {
                Ok(done) => done?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// What is known of some builds that run side by side.
struct Meter {
    begin: Instant,
    /// The crates of each build.
    all: Vec<BTreeSet<String>>,
    /// Those that are there: the build, and the crate.
    there: BTreeSet<(usize, String)>,
    /// Of the weight that is there, what was there before.
    found: u32,
}

impl Meter {
    fn new(all: Vec<BTreeSet<String>>) -> Self {
        Self {
            begin: Instant::now(),
            all,
            there: BTreeSet::new(),
            found: 0,
        }
    }

    /// Reads a line of Cargo's; whether it says that another crate is there.
    fn read(&mut self, build: usize, line: &str) -> bool {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        let is_script = message["target"]["kind"][0] == "custom-build";
        if message["reason"] != "compiler-artifact" || is_script {
            return false;
        }
        let name = message["package_id"].as_str().map(name_in).unwrap_or_default();
        let is_new = self.there.insert((build, name.to_owned()));
        if is_new && message["fresh"] == true {
            self.found += weight(name);
        }
        is_new
    }

    fn progress(&self, now: Instant) -> Progress {
        let done: u32 = self.there.iter().map(|(_, name)| weight(name)).sum();
        let all: u32 = self.all.iter().flatten().map(|name| weight(name)).sum();
        let made = f64::from(done - self.found);
        let elapsed = now.saturating_duration_since(self.begin);
        let rest = f64::from(all.saturating_sub(done));
        let is_enough = made > f64::from(all - self.found.min(all)) * LEAST_DONE && made > 0.0;
        Progress {
            done: self.there.len(),
            // The tree is Cargo's own guess: what it left out must not make more than all.
            of: self.all.iter().map(BTreeSet::len).sum::<usize>().max(self.there.len()),
            left: is_enough.then(|| elapsed.mul_f64(rest / made)),
            at: now,
        }
    }
}

fn weight(name: &str) -> u32 {
    HEAVY
        .iter()
        .find(|(heavy, _)| *heavy == name)
        .map_or(1, |(_, weight)| *weight)
}

/// The name in an id such as `registry+https://…#libc@0.2.1` or `path+file:///…/crates/hearth#0.1.0`.
fn name_in(id: &str) -> &str {
    let (place, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

/// The crates that a package is built of; none when Cargo does not say.
fn crates_of(package: &str) -> BTreeSet<String> {
    let mut tree = workspace::cargo();
    tree.args([
        "tree",
        "--locked",
        "--package",
        package,
        "--edges",
        "normal,build",
        "--prefix",
        "none",
    ]);
    distinct_crates(&process::output_of(&mut tree).unwrap_or_default())
}

/// Crates of a tree that names some of them several times: `name v1.0.0 (proc-macro) (*)`.
fn distinct_crates(tree: &str) -> BTreeSet<String> {
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_that_is_named_twice_counts_once() {
        let tree = "a v0.1.0 (/x)\nb v1.0.0\nc v1.0.0 (proc-macro)\nb v2.0.0\nb v1.0.0 (*)\n\n";
        assert_eq!(distinct_crates(tree).len(), 3);
        assert!(distinct_crates("").is_empty());
    }

    #[test]
    fn names_are_found_in_both_kinds_of_ids() {
        assert_eq!(
            name_in("registry+https://github.com/rust-lang/index#libc@0.2.191"),
            "libc"
        );
        assert_eq!(
            name_in("path+file:///home/x/crates/hearth-server#0.1.0"),
            "hearth-server"
        );
    }

    fn artifact(name: &str, kind: &str, fresh: bool) -> String {
        let id = format!("registry+https://x#{name}@1.0.0");
        serde_json::json!({
            "reason": "compiler-artifact", "package_id": id, "target": { "kind": [kind] }, "fresh": fresh,
        })
        .to_string()
    }

    #[test]
    fn rest_is_estimated_from_what_was_compiled_and_not_from_what_was_there() {
        let all: BTreeSet<String> = (0..100).map(|index| format!("c{index}")).collect();
        let mut meter = Meter::new(vec![all]);
        let after = |seconds| meter_begin(&meter) + Duration::from_secs(seconds);
        let (soon, later, last) = (after(10), after(40), after(60));
        for index in 0..50 {
            assert!(meter.read(0, &artifact(&format!("c{index}"), "lib", true)));
        }
        assert_eq!(meter.progress(soon).text(soon), "50/100 crates");
        for index in 50..60 {
            assert!(!meter.read(0, &artifact(&format!("c{index}"), "custom-build", false)));
            assert!(meter.read(0, &artifact(&format!("c{index}"), "lib", false)));
            assert!(!meter.read(0, &artifact(&format!("c{index}"), "lib", false)));
        }
        // Ten took 40 s: forty take 160 s, and the clock continues between two crates.
        let progress = meter.progress(later);
        assert_eq!(progress.text(later), "60/100 crates, about 3 min left");
        assert_eq!(progress.text(last), "60/100 crates, about 3 min left");
        assert_eq!(
            progress.text(last + Duration::from_secs(100)),
            "60/100 crates, less than a minute left"
        );
    }

    fn meter_begin(meter: &Meter) -> Instant {
        meter.begin
    }
}
