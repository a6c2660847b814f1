//! `cargo xtask demo`: from a checkout to a command in a claimed VM, everything included. Drives the built binary as a person
//! would; it knows no API.

pub(crate) mod clean;
mod repository;
mod server;
mod timing;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{agent, process, setup, workspace};
use repository::Repository;
use server::Server;
use timing::Timing;

/// The demo's project.
const PROJECT: &str = "demo";
/// The guest image that is built when nothing else is said.
const IMAGE: &str = "debian-bookworm";
/// How many VMs stand ready.
const POOL_SIZE: &str = "2";
/// The task of the demo's claim.
const TASK: &str = "demo-task";
/// A guest of 1 GiB is enough for the demo, and four of them (two ready, one claimed, one test boot) fit a laptop.
const VM_SIZE: &str = "small";
/// How long the pool may take to fill, seconds. Without hardware virtualisation a set-up takes minutes.
const FILL_SECONDS: &str = "3600";

/// `cargo xtask demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// A repository of your own instead of the one that the demo makes
    #[arg(long, value_name = "URL")]
    repo: Option<String>,
    /// Its branch (default: the repository's own)
    #[arg(long, requires = "repo")]
    branch: Option<String>,
    /// End when all has been shown, and remove the VMs, the server and its data
    #[arg(long)]
    once: bool,
    /// At the end leave the VMs running and the data in place; the next demo goes on with them
    #[arg(long, conflicts_with = "once")]
    keep: bool,
    /// At the end remove the guest image and the packages it was made from, too
    #[arg(long, conflicts_with = "keep")]
    remove_image: bool,
}

/// Where the demo keeps its things: below the checkout, never in a home folder.
struct Places {
    data: PathBuf,
    repository: PathBuf,
}

impl Places {
    fn new() -> Self {
        let home = workspace::root().join(".hearth");
        Self {
            data: home.join("demo"),
            repository: home.join("demo-repository"),
        }
    }
}

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let places = Places::new();
    let mut timing = Timing::default();
    let mut server = None;
    let shown = show(args, &places, &mut timing, &mut server);
    if shown.is_ok() && !args.once {
        timing.print();
        if let Some(server) = &mut server {
            say_how_to_use(server);
            server.wait_for_stop()?;
        }
    }
    let done = end(args, &places, server);
    if shown.is_ok() && args.once {
        timing.print();
    }
    // What failed first is the news; a fault in tidying up has been printed.
    shown.and(done)
}

fn show(args: &DemoArgs, places: &Places, timing: &mut Timing, slot: &mut Option<Server>) -> Result<()> {
    timing.stage("system packages", setup::run)?;
    let agent = timing.stage("build the agent", agent::build)?;
    let hearth = timing.stage("build Hearth", || build_hearth(&agent))?;
    let hearth = Hearth {
        program: hearth,
        data: places.data.clone(),
    };
    clean::end_leftovers(&places.data)?;
    std::fs::create_dir_all(&places.data).with_context(|| format!("{} cannot be made", places.data.display()))?;
    clean::bring_verdict(&places.data);
    timing.stage("guest image", || {
        let mut build = hearth.command(&["image", "build"]);
        process::run(
            build
                .arg("--cache-dir")
                .arg(workspace::shared_packages())
                // What the tests have made needs not be made again.
                .arg("--other-images")
                .arg(workspace::shared_images()),
        )
    })?;
    let repository = timing.stage("git repository", || repository::prepare(args, &places.repository))?;
    let server = slot.insert(timing.stage("start the server", || Server::start(&hearth))?);
    println!("Hearth listens on {}", server.url());
    timing.stage("project", || make_project(&hearth, &repository))?;
    timing.stage("test boot", || test_boot(&hearth, &repository))?;
    timing.stage("fill the pool", || {
        let mut set = hearth.command(&["pool", "set", PROJECT, "--enabled", "--target", POOL_SIZE]);
        process::run(set.stdout(Stdio::null()))?;
        process::run(&mut hearth.command(&["pool", "status", PROJECT, "--wait", "--timeout", FILL_SECONDS]))
    })?;
    let id = timing.stage("claim", || {
        let mut claim = hearth.command(&["claim", PROJECT, "--task", TASK, "--id-only"]);
        process::output_of(claim.stderr(Stdio::inherit())).context("the claim failed; its message is above")
    })?;
    let id = id.trim().to_owned();
    println!("claimed {id}; what the project printed when it was built is there:");
    timing.stage("a command in it", || {
        process::run(&mut hearth.command(&["exec", "--no-stdin", &id, "--shell", &repository.proof]))
    })?;
    if args.once {
        timing.stage("release", || process::run(&mut hearth.command(&["release", &id])))?;
    } else {
        server.claimed = Some(id);
    }
    Ok(())
}

/// The built binary, always told which server.
struct Hearth {
    program: PathBuf,
    data: PathBuf,
}

impl Hearth {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // A server of the person's own must not get the demo's commands.
        for name in ["HEARTH_URL", "HEARTH_TOKEN"] {
            command.env_remove(name);
        }
        command.args(["--data-dir".as_ref(), self.data.as_os_str()]).args(args);
        command
    }
}

fn build_hearth(agent: &Path) -> Result<PathBuf> {
    process::run(workspace::cargo_with_agent(agent).args(["build", "--release", "--locked", "--package", "hearth"]))?;
    Ok(workspace::target().join("release/hearth"))
}

/// A project of an earlier run is made anew when it was for another repository; its VMs would be.
fn make_project(hearth: &Hearth, repository: &Repository) -> Result<()> {
    let there = process::output_of(&mut hearth.command(&["project", "show", PROJECT, "--json"]));
    if let Some(project) = there {
        if repository.is_in(&project) {
            println!("the project `{PROJECT}` of the last run is still there");
            return Ok(());
        }
        process::run(&mut hearth.command(&["project", "delete", PROJECT, "--yes"]))?;
    }
    let repo = repository.argument();
    process::run(&mut hearth.command(&["project", "create", PROJECT, "--repo", &repo, "--size", VM_SIZE]))
}

fn test_boot(hearth: &Hearth, repository: &Repository) -> Result<()> {
    let mut command = hearth.command(&["pool", "test", PROJECT]);
    for text in &repository.commands {
        command.args(["--command", text]);
    }
    // The command itself says what failed and what to do next.
    if !process::run_for_status(&mut command)?.success() {
        bail!("the test boot failed; what to do next is above");
    }
    Ok(())
}

fn say_how_to_use(server: &Server) {
    let claimed = server.claimed.as_deref().unwrap_or("<id>");
    let hearth = server
        .program
        .strip_prefix(workspace::root())
        .unwrap_or(&server.program)
        .display();
    println!("\nThe server goes on until Ctrl-C. From another terminal, in this folder:");
    println!("  {hearth} pool status {PROJECT}");
    println!("  {hearth} exec {claimed} -- ls -la /home");
    println!("  {hearth} claim {PROJECT}");
    println!("  {hearth} release {claimed}");
    println!("It listens on {}; its log is {}", server.url(), server.log.display());
}

/// Ends the server, and removes what the run made unless it shall stay. Runs after failures and Ctrl-C too.
fn end(args: &DemoArgs, places: &Places, server: Option<Server>) -> Result<()> {
    process::tidy_up_whatever_comes();
    if args.keep {
        return match server {
            Some(server) => {
                println!("stopping the server; its VMs go on running, and the next demo finds them");
                server.stop()
            }
            None => Ok(()),
        };
    }
    println!("tidying up: VMs, server, {}", places.data.display());
    let tidied = remove(args, places, server);
    if let Err(error) = &tidied {
        eprintln!("error: tidying up: {error:#}");
    }
    tidied
}

/// How long the server may take to destroy the VMs.
const DESTROY_LIMIT: Duration = Duration::from_secs(60);

fn remove(args: &DemoArgs, places: &Places, server: Option<Server>) -> Result<()> {
    if let Some(server) = server {
        // Whether it works or not: what is left is ended below.
        let hearth = Hearth {
            program: server.program.clone(),
            data: places.data.clone(),
        };
        process::output_of(
            hearth
                .command(&["project", "delete", PROJECT, "--yes"])
                .stderr(Stdio::null()),
        );
        process::wait_until(DESTROY_LIMIT, || clean::vms(&places.data).is_empty())?;
        server.stop()?;
    }
    clean::end_leftovers(&places.data)?;
    clean::keep_verdict(&places.data);
    remove_folder(&places.data)?;
    remove_folder(&places.repository)?;
    if args.remove_image {
        remove_image(places)?;
        remove_folder(&workspace::shared_packages())?;
    }
    Ok(())
}

/// The program itself knows who else uses it.
fn remove_image(places: &Places) -> Result<()> {
    let hearth = Hearth {
        program: workspace::target().join("release/hearth"),
        data: places.data.clone(),
    };
    process::run(&mut hearth.command(&["image", "remove", "--force", IMAGE]))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", folder.display()))
        }
        _ => Ok(()),
    }
}
