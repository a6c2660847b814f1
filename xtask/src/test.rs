//! `cargo xtask test`: all set-up, then every check and every test, with the time each stage took.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::{agent, contract, process, setup, tidy, workspace};

/// `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Only tests with this in their name
    filter: Option<String>,
}

/// Where tests find the agent's binary.
const AGENT_VARIABLE: &str = "HEARTH_AGENT";
/// Where tests find a data folder with a guest image.
const DATA_VARIABLE: &str = "HEARTH_TEST_DATA";
/// Warnings are errors, in the tests' own build too, so that nothing is built twice for it.
const CLIPPY: [&str; 6] = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-Dwarnings"];

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let start = Instant::now();
    let mut took = Vec::new();
    let done = stages(args, &mut took);
    println!();
    for (name, length) in &took {
        println!("{name:<16} {}", readable(*length));
    }
    println!("{:<16} {}", "total", readable(start.elapsed()));
    done
}

fn stages(args: &TestArgs, took: &mut Vec<(&'static str, Duration)>) -> Result<()> {
    let mut stage = |name: &'static str, work: &mut dyn FnMut() -> Result<()>| {
        println!("\n==> {name}");
        let start = Instant::now();
        let done = work();
        took.push((name, start.elapsed()));
        done
    };
    let data = workspace::target().join("hearth-test");
    let mut agent = None;
    stage("set-up", &mut setup::run)?;
    stage("formatting", &mut || {
        process::run(workspace::cargo().args(["fmt", "--all", "--", "--check"]))
    })?;
    stage("house rules", &mut tidy::run)?;
    stage("agent", &mut || agent::build().map(|path| agent = Some(path)))?;
    let agent = agent.unwrap_or_default();
    let cargo = || workspace::cargo_with_agent(&agent);
    stage("clippy", &mut || process::run(cargo().args(CLIPPY)))?;
    stage("build", &mut || {
        process::run(cargo().args(["test", "--workspace", "--no-run", "--locked"]))?;
        process::run(cargo().args(["build", "--package", "hearth", "--locked"]))
    })?;
    stage("guest image", &mut || {
        workspace::link_images(&data)?;
        let hearth = workspace::target().join("debug/hearth");
        process::run(
            std::process::Command::new(hearth)
                .args(["image", "build", "--data-dir"])
                .arg(&data)
                .arg("--cache-dir")
                .arg(workspace::shared_packages()),
        )
    })?;
    if args.filter.is_none() {
        stage("contract", &mut contract::run)?;
    }
    stage("tests", &mut || {
        let mut command = cargo();
        command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
        command.args(args.filter.iter());
        process::run(command.env(DATA_VARIABLE, &data).env(AGENT_VARIABLE, &agent))
    })
}

/// `12.3 s`, `4 min 5 s`.
pub(crate) fn readable(length: Duration) -> String {
    let seconds = length.as_secs();
    if seconds < 60 {
        format!("{:.1} s", length.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}
