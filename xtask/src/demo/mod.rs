//! `cargo xtask demo`: from a checkout to a command in a claimed VM, everything included. Drives the built binary as a person
//! would; it knows no API.

mod announce;
pub(crate) mod clean;
mod repository;
mod server;
mod stages;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::setup::{Installer, Plan};
use crate::{agent, compile, process, workspace};
use announce::Answer;
use repository::Repository;
use server::Server;
use stages::{Stages, Told};

/// The program's package.
const PACKAGE: &str = "hearth";
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
    /// Ask nothing: continue after saying what will be installed and made
    #[arg(long, short)]
    yes: bool,
    /// End when all has been shown, and remove the VMs, the server and its data
    #[arg(long)]
    once: bool,
    /// At the end leave the VMs running and the data in place; the next demo continues with them
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
    log: PathBuf,
}

impl Places {
    fn new() -> Self {
        let home = workspace::root().join(".hearth");
        Self {
            data: home.join("demo"),
            repository: home.join("demo-repository"),
            log: home.join("demo.log"),
        }
    }
}

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let places = Places::new();
    let plan = Plan::make()?;
    if announce::ask(args, &places, &plan)? == Answer::No {
        println!("Nothing was done.");
        return Ok(());
    }
    // Before the log begins: a password is asked for at the terminal.
    let installer = if plan.is_empty() { None } else { Some(plan.installer()?) };
    let mut stages = Stages::new(places.log.clone())?;
    let mut server = None;
    let shown = show(args, &places, installer, &mut stages, &mut server);
    if shown.is_ok()
        && !args.once
        && let Some(server) = &mut server
    {
        println!("  all of it          {:>12}", stages.total());
        say_how_to_use(server, stages.log());
        server.wait_for_stop()?;
    }
    let done = end(args, &places, server, &mut stages);
    if shown.is_ok() {
        say_what_stays(&places, args);
    }
    // What failed first is the news; a fault in tidying up has been shown.
    shown.and(done)
}

fn show(
    args: &DemoArgs,
    places: &Places,
    installer: Option<Installer>,
    stages: &mut Stages,
    slot: &mut Option<Server>,
) -> Result<()> {
    stages.stage("system packages", |told| match installer {
        Some(installer) => installer.install(),
        None => {
            told.note("all there");
            Ok(())
        }
    })?;
    let program = stages.stage("build Hearth", build)?;
    let hearth = Hearth {
        program,
        data: places.data.clone(),
    };
    clean::end_leftovers(&places.data)?;
    std::fs::create_dir_all(&places.data).with_context(|| format!("{} cannot be made", places.data.display()))?;
    clean::bring_verdict(&places.data);
    stages.stage("guest image", |told| {
        let mut build = hearth.command(&["image", "build"]);
        build
            .arg("--cache-dir")
            .arg(workspace::shared_packages())
            // What the tests have made needs not be made again.
            .arg("--other-images")
            .arg(workspace::shared_images());
        let said = process::captured(&mut build)?;
        told.note(said.lines().last().unwrap_or_default());
        Ok(())
    })?;
    let repository = stages.stage("git repository", |told| {
        let repository = repository::prepare(args, &places.repository)?;
        told.note(repository.url());
        Ok(repository)
    })?;
    let server = slot.insert(stages.stage("start the server", |told| {
        let server = Server::start(&hearth)?;
        told.note(server.url());
        Ok(server)
    })?);
    stages.stage("project", |told| {
        told.note(PROJECT);
        make_project(&hearth, &repository)
    })?;
    stages.stage("test boot", |_| test_boot(&hearth, &repository))?;
    stages.stage("fill the pool", |told| {
        process::run(&mut hearth.command(&["pool", "set", PROJECT, "--enabled", "--target", POOL_SIZE]))?;
        process::run(&mut hearth.command(&["pool", "status", PROJECT, "--wait", "--timeout", FILL_SECONDS]))?;
        told.note(format!("{POOL_SIZE} VMs stand ready"));
        Ok(())
    })?;
    let id = stages.stage("claim", |told| {
        let said = process::captured(&mut hearth.command(&["claim", PROJECT, "--task", TASK, "--id-only"]))?;
        let id = said.trim().to_owned();
        told.note(&id);
        Ok(id)
    })?;
    let proof = stages.stage("a command in it", |_| {
        process::captured(&mut hearth.command(&["exec", "--no-stdin", &id, "--shell", &repository.proof]))
    })?;
    for line in proof.lines() {
        println!("  | {line}");
    }
    if args.once {
        stages.stage("release", |_| process::run(&mut hearth.command(&["release", &id])))?;
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

/// Builds the program with the agent inside. The first time both are compiled side by side, the program without its agent: what it
/// then takes to put the agent in is less than what the agent's last step, which keeps one processor busy, takes alone.
fn build(told: &Told) -> Result<PathBuf> {
    let program = workspace::demo_program();
    let tell = |progress| told.progress(progress);
    let (agent, place) = agent::command()?;
    if program.exists() {
        compile::run(&mut [(agent::PACKAGE, agent)], tell)?;
    } else {
        let without = build_command(workspace::cargo());
        compile::run(&mut [(agent::PACKAGE, agent), (PACKAGE, without)], tell)?;
    }
    compile::run(
        &mut [(PACKAGE, build_command(workspace::cargo_with_agent(&place)))],
        tell,
    )?;
    told.note(program.display().to_string());
    Ok(program)
}

fn build_command(mut cargo: Command) -> Command {
    cargo.args([
        "build",
        "--locked",
        "--package",
        PACKAGE,
        "--profile",
        workspace::DEMO_PROFILE,
    ]);
    cargo
}

/// A project of an earlier run is made anew when it was for another repository; its VMs would be.
fn make_project(hearth: &Hearth, repository: &Repository) -> Result<()> {
    let there = process::output_of(&mut hearth.command(&["project", "show", PROJECT, "--json"]));
    if let Some(project) = there {
        if repository.is_in(&project) {
            process::say(format_args!("the project `{PROJECT}` of the last run is still there"));
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
        bail!("the test boot failed; what to do next is at the end of the log");
    }
    Ok(())
}

fn say_how_to_use(server: &Server, log: &Path) {
    let claimed = server.claimed.as_deref().unwrap_or("<id>");
    let hearth = server.program.display();
    println!("\nThe program is {hearth}");
    println!(
        "The server listens on {} until Ctrl-C. Next, from another terminal:",
        server.url()
    );
    println!("  {hearth} shell {claimed}");
    println!("  {hearth} pool status {PROJECT}");
    println!("  {hearth} claim {PROJECT}");
    println!(
        "Logs: {} (the demo), {} (the server)",
        log.display(),
        server.log.display()
    );
}

/// The last words: where the program is, and how to continue without the demo.
fn say_what_stays(places: &Places, args: &DemoArgs) {
    let program = workspace::demo_program();
    let hearth = program.display();
    println!("\nThe program is {hearth}; it works wherever you copy it. It was compiled to be there soon:");
    println!("`cargo xtask build` compiles the one to keep, which is smaller and quicker.");
    if args.keep {
        println!("The VMs of the demo keep running. Next:");
        println!("  {hearth} serve --data-dir {}", places.data.display());
    } else {
        println!("Next:");
        println!("  {hearth} serve");
    }
    println!("  {hearth} project create app --repo https://github.com/<you>/<repository>");
    println!("  {hearth} pool test app");
}

/// Ends the server, and removes what the run made unless it shall stay. Runs after failures and Ctrl-C too.
fn end(args: &DemoArgs, places: &Places, server: Option<Server>, stages: &mut Stages) -> Result<()> {
    process::tidy_up_whatever_comes();
    if args.keep {
        return match server {
            Some(server) => stages.stage("stop the server", |told| {
                told.note("its VMs keep running, and the next demo finds them");
                server.stop()
            }),
            None => Ok(()),
        };
    }
    stages.stage("tidy up", |told| {
        told.note(format!("VMs, server, {}", places.data.display()));
        remove(args, places, server)
    })
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
        process::output_of(&mut hearth.command(&["project", "delete", PROJECT, "--yes"]));
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
        program: workspace::demo_program(),
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
