//! `cargo xtask bench`: set-up, release build, guest image and what Hearth is compared with; then the measuring program
//! (`crates/hearth-bench`, which knows the API and the driver), and afterwards the end of everything that it left.

mod peers;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::demo::clean;
use crate::{agent, e2b, process, setup, workspace};

/// `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Few rounds: some minutes less, and no figure to quote
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_enum, num_args = 1..)]
    only: Vec<Row>,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A row of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// 1: from a template to a paused VM, against a bare QEMU
    Fork,
    /// 2: claims and first commands
    Claim,
    /// 3: the same without templates
    Cold,
    /// 4: what a user would pick instead: podman, incus, systemd-nspawn
    Peers,
    /// 5: filling a pool of 20, and a burst of 50 claims
    Fill,
    /// 6: memory of a warm VM
    Memory,
    /// 7: test boots again
    Again,
    /// 8: daily work in a claimed VM
    Work,
    /// 9: the first command through E2B's client
    Clients,
}

/// Data folders of the bench, below its own: one of the server's, one of the driver's alone.
const DATA: [&str; 2] = ["server", "driver"];

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let folder = workspace::root().join(".hearth/bench");
    // What a bench left that was killed.
    tidy(&folder)?;
    let done = measure(args, &folder);
    process::tidy_up_whatever_comes();
    let tidied = tidy(&folder);
    done.and(tidied)
}

fn measure(args: &BenchArgs, folder: &Path) -> Result<()> {
    setup::run()?;
    if args.only.is_empty() || args.only.contains(&Row::Peers) {
        peers::install();
    }
    if args.only.is_empty() || args.only.contains(&Row::Clients) {
        e2b::install()?;
    }
    let agent = agent::build()?;
    let packages = [
        "build",
        "--release",
        "--locked",
        "--package",
        "hearth",
        "--package",
        "hearth-bench",
    ];
    process::run(workspace::cargo_with_agent(&agent).args(packages))?;
    let program = |name: &str| workspace::target().join("release").join(name);
    for data in DATA {
        workspace::link_images(&folder.join(data))?;
        clean::bring_verdict(&folder.join(data));
    }
    process::run(
        Command::new(program("hearth"))
            .args(["image", "build", "--data-dir"])
            .arg(folder.join(DATA[0]))
            .arg("--cache-dir")
            .arg(workspace::shared_packages()),
    )?;
    let mut command = Command::new(program("hearth-bench"));
    command.arg("bench").arg("--hearth").arg(program("hearth"));
    command.arg("--images").arg(workspace::shared_images());
    command.arg("--folder").arg(folder);
    if e2b::python().exists() {
        command.arg("--e2b").arg(e2b::python());
    }
    if args.quick {
        command.arg("--quick");
    }
    for row in &args.only {
        let value = row.to_possible_value().context("a row has no name")?;
        command.args(["--only", value.get_name()]);
    }
    if let Some(path) = &args.json {
        command.arg("--json").arg(path);
    }
    println!();
    if !process::run_for_status(&mut command)?.success() {
        bail!("the bench failed; its message is above");
    }
    Ok(())
}

/// Ends and removes whatever there is of a bench.
fn tidy(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for data in DATA {
        clean::end_leftovers(&folder.join(data))?;
        clean::keep_verdict(&folder.join(data));
    }
    peers::end_leftovers(folder)?;
    std::fs::remove_dir_all(folder).with_context(|| format!("{} cannot be removed", folder.display()))
}
