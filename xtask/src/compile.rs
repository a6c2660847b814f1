//! A build by Cargo, told in crates: how many of how many are there.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::{process, workspace};

/// Runs `cargo build …` and tells after each crate how many of the package's crates are there.
pub(crate) fn run(command: &mut Command, package: &str, mut tell: impl FnMut(usize, usize) + Send) -> Result<()> {
    let total = crates_of(package);
    let mut there = BTreeSet::new();
    process::run_reading(command.arg("--message-format=json-render-diagnostics"), |line| {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        if message["reason"] == "compiler-artifact" {
            there.insert(message["package_id"].to_string());
            // The tree is Cargo's own guess: what it left out must not make more than all.
            tell(there.len(), total.max(there.len()));
        }
    })
}

/// How many crates a package is built of; nothing when Cargo does not say.
fn crates_of(package: &str) -> usize {
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
fn distinct_crates(tree: &str) -> usize {
    let named = tree.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    });
    named.collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_that_is_named_twice_counts_once() {
        let tree = "a v0.1.0 (/x)\nb v1.0.0\nc v1.0.0 (proc-macro)\nb v2.0.0\nb v1.0.0 (*)\n\n";
        assert_eq!(distinct_crates(tree), 4);
        assert_eq!(distinct_crates(""), 0);
    }
}
