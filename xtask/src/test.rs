//! `cargo xtask test`: all set-up, then every check and every test, with the time each stage took.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::unpacked::{PEBBLE, PROMETHEUS};
use crate::{agent, contract, deny, e2b, examples, openid, process, python, setup, tidy, workspace};

/// `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Only tests with this in their name, and only what they need: no formatting, house rules, clippy, documents
    name: Option<String>,
}

/// Where tests find the agent's binary.
const AGENT_VARIABLE: &str = "HEARTH_AGENT";
/// Where tests find a data folder with a guest image.
const DATA_VARIABLE: &str = "HEARTH_TEST_DATA";
/// The crates whose tests run programs of others.
const USING_OTHERS: [&str; 2] = ["hearth", "hearth-server"];
/// Set to any value: repositories with set-ups of other tools boot in real VMs, with what those install.
const IMPORTS_VARIABLE: &str = "HEARTH_IMPORTS_ALL";
const IMPORTS: &str = "import_vms::";
/// Set to any value: the tests of the driver `incus` start their daemons. Not all of them pass yet.
const INCUS_VARIABLE: &str = "HEARTH_INCUS_ALL";
const INCUS: [&str; 2] = ["incus::", "incus_cluster::"];
/// Set to any value: the servers of front-door tests keep their store in PostgreSQL.
const POSTGRES_VARIABLE: &str = "HEARTH_TEST_POSTGRES";
/// Those that run once more so: what rests on the store when much happens at once and when a server begins again. The loop of faults
/// takes ten minutes there: `HEARTH_TEST_POSTGRES=1 cargo xtask test faults`.
const ON_POSTGRES: [&str; 10] = [
    "claims::",
    "clear::",
    "events::",
    "history::",
    "leases::",
    "names::",
    "pools::",
    "restart::",
    "tokens::",
    "webhooks::",
];
/// What the test programs are told to run what needs a real VM, too.
const ALL: [&str; 2] = ["--", "--include-ignored"];
/// Warnings are errors, in the tests' own build too, so that nothing is built twice for it.
const CLIPPY: [&str; 6] = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-Dwarnings"];
/// Inner rooms too: a link that leads nowhere misleads readers of the code.
const DOC: [&str; 5] = [
    "doc",
    "--workspace",
    "--no-deps",
    "--document-private-items",
    "--locked",
];
/// Links to inner rooms are wanted there, and help texts name addresses without a link.
const DOC_LINTS: &str = "-Dwarnings -Arustdoc::private_intra_doc_links -Arustdoc::bare_urls";
/// What another test starts as a process of its own, and what prints figures for people: marked as a test, and none.
pub(crate) const NOT_A_TEST: &str = "not_a_test_";
/// Begins the name of a test that only root can run.
pub(crate) const AS_ROOT: &str = "as_root_";

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let start = Instant::now();
    let mut stages = Stages::default();
    let done = match &args.name {
        Some(name) => some(name, &mut stages),
        None => all(&mut stages),
    };
    println!();
    for (name, length) in &stages.took {
        println!("{name:<16} {}", readable(*length));
    }
    println!("{:<16} {}", "total", readable(start.elapsed()));
    done
}

/// The stages so far, with the time that each took.
#[derive(Default)]
struct Stages {
    took: Vec<(&'static str, Duration)>,
}

impl Stages {
    fn stage<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {name}");
        let start = Instant::now();
        let done = work();
        self.took.push((name, start.elapsed()));
        done
    }
}

/// Every check and every test, those that `cargo test` leaves out too.
fn all(stages: &mut Stages) -> Result<()> {
    stages.stage("set-up", setup::run)?;
    stages.stage("formatting", || {
        process::run(workspace::cargo().args(["fmt", "--all", "--", "--check"]))
    })?;
    stages.stage("house rules", tidy::run)?;
    stages.stage("dependencies", deny::run)?;
    // The agent's last step takes one processor, and clippy needs no agent.
    let agent = stages.stage("agent and clippy", || {
        both(agent::build, || process::run(workspace::cargo().args(CLIPPY)))
    })?;
    let cargo = || workspace::cargo_with_agent(&agent);
    stages.stage("documents, other programs", || {
        let documents = || process::run(cargo().args(DOC).env("RUSTDOCFLAGS", DOC_LINTS));
        both(other_programs, documents)
    })?;
    // The program `hearth` is made with its tests.
    stages.stage("build", || {
        process::run(cargo().args(["test", "--workspace", "--no-run", "--locked"]))
    })?;
    stages.stage("guest image and contract", || both(image, contract::run))?;
    // Those without a VM wait more than they work; each VM takes a processor where it is emulated.
    let (mut done, left_out) = (Ok(()), left_out());
    for (name, arguments) in [
        ("tests", ["--test-threads", "4"].as_slice()),
        ("tests with real VMs", ["--ignored"].as_slice()),
    ] {
        // One that fails is known with all others that fail.
        done = done.and(stages.stage(name, || {
            let mut tests = tests(&agent, &["--workspace".to_owned()], None);
            process::run(tests.arg("--").args(arguments).args(&left_out))
        }));
    }
    done.and(stages.stage("tests on PostgreSQL", || {
        let mut tests = front_door_tests(&agent, "hearth-server")?;
        tests.env(POSTGRES_VARIABLE, "1").args(["--test-threads", "4"]);
        process::run(tests.args(ON_POSTGRES).args(&left_out))
    }))
}

/// Does two things at the same time; gives what the first one made.
fn both<T>(one: impl FnOnce() -> Result<T>, other: impl FnOnce() -> Result<()> + Send) -> Result<T> {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let made = one();
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        made
    })
}

/// The tests with a text in their names, and what they need.
fn some(name: &str, stages: &mut Stages) -> Result<()> {
    let mut packages: Vec<String> = Vec::new();
    for package in packages_with(name)? {
        packages.extend(["--package".to_owned(), package]);
    }
    if packages.is_empty() {
        bail!("no crate has a test with `{name}` in its name");
    }
    stages.stage("set-up", setup::run)?;
    let agent = stages.stage("agent", agent::build)?;
    stages.stage("build", || {
        process::run(tests(&agent, &packages, None).arg("--no-run"))?;
        process::run(workspace::cargo_with_agent(&agent).args(["build", "--package", "hearth", "--locked"]))
    })?;
    let left_out = left_out();
    let mut list = tests(&agent, &packages, Some(name));
    let listed = process::output_of(list.args(ALL).args(&left_out).arg("--list")).unwrap_or_default();
    if !listed.lines().any(|line| line.ends_with(": test")) {
        bail!("no test has `{name}` in its name");
    }
    stages.stage("guest image", image)?;
    if packages.iter().any(|package| USING_OTHERS.contains(&package.as_str())) {
        stages.stage("other programs", other_programs)?;
    }
    stages.stage("tests", || {
        process::run(tests(&agent, &packages, Some(name)).args(ALL).args(&left_out))
    })
}

/// Programs of others that tests run: Prometheus, and clients from PyPI and npm.
fn other_programs() -> Result<()> {
    PROMETHEUS.fetch()?;
    PEBBLE.fetch()?;
    python::install_mcp()?;
    examples::install()?;
    openid::install()?;
    e2b::install()
}

/// The guest image that tests with real VMs start from.
fn image() -> Result<()> {
    workspace::link_images(&data())?;
    let hearth = workspace::target().join("debug/hearth");
    process::run(
        Command::new(hearth)
            .args(["image", "build", "--data-dir"])
            .arg(data())
            .arg("--cache-dir")
            .arg(workspace::shared_packages()),
    )
}

fn data() -> PathBuf {
    workspace::target().join("hearth-test")
}

/// `cargo test` of these packages, told where the agent and the image are.
fn tests(agent: &Path, packages: &[String], name: Option<&str>) -> Command {
    let mut command = workspace::cargo_with_agent(agent);
    command
        .args(["test", "--locked", "--no-fail-fast"])
        .args(packages)
        .args(name);
    tell(&mut command, agent);
    command
}

/// The built program with a crate's front-door tests. `cargo test --package` would compile every crate again, with the features that
/// this one alone asks for.
fn front_door_tests(agent: &Path, package: &str) -> Result<Command> {
    let folder = workspace::root().join("crates").join(package);
    let mut build = workspace::cargo_with_agent(agent);
    build.args([
        "test",
        "--workspace",
        "--no-run",
        "--locked",
        "--message-format",
        "json",
    ]);
    let messages = process::output_of(&mut build).context("the tests do not build")?;
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["src_path"].as_str() == folder.join("tests/it/main.rs").to_str())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    let Some(program) = program else {
        bail!("cargo does not say where the tests of `{package}` are");
    };
    let mut command = Command::new(program);
    command.current_dir(&folder);
    tell(&mut command, agent);
    Ok(command)
}

/// Says where the image, the agent and others' programs are.
fn tell(command: &mut Command, agent: &Path) {
    command
        .env(DATA_VARIABLE, data())
        .env(AGENT_VARIABLE, agent)
        .env(PROMETHEUS.variable, PROMETHEUS.programs())
        .env(PEBBLE.variable, PEBBLE.programs())
        .env(python::MCP_VARIABLE, python::mcp())
        .env(examples::VARIABLE, examples::folder())
        .env(e2b::VARIABLE, e2b::folder())
        .env(openid::VARIABLE, openid::folder());
}

/// What the test programs are told to leave out.
fn left_out() -> Vec<&'static str> {
    let mut arguments = vec!["--skip", NOT_A_TEST];
    if !nix::unistd::geteuid().is_root() {
        println!("tests with `{AS_ROOT}` in their names are left out: they need root");
        arguments.extend(["--skip", AS_ROOT]);
    }
    if std::env::var_os(IMPORTS_VARIABLE).is_none() {
        println!(
            "imported repositories do not boot in real VMs, which takes ten minutes: set {IMPORTS_VARIABLE} for that"
        );
        arguments.extend(["--skip", IMPORTS]);
    }
    if std::env::var_os(INCUS_VARIABLE).is_none() {
        println!("the driver `incus` is unfinished, and its tests are left out: set {INCUS_VARIABLE} to run them");
        arguments.extend(INCUS.iter().flat_map(|tests| ["--skip", *tests]));
    }
    arguments
}

/// The crates in whose code a test's name stands: compiling the others would take longer than the test.
fn packages_with(name: &str) -> Result<Vec<String>> {
    // `module::test`: the module is a file's name.
    let text = name.rsplit("::").next().unwrap_or(name);
    let mut packages = Vec::new();
    for folder in workspace::packages()? {
        if workspace::rust_files(&folder).iter().any(|file| {
            let is_module = file
                .file_stem()
                .is_some_and(|stem| stem.to_string_lossy().contains(text));
            is_module || std::fs::read_to_string(file).is_ok_and(|code| code.contains(text))
        }) {
            packages.extend(folder.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(packages)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crates_that_name_a_test_are_compiled_for_it() {
        assert_eq!(packages_with("only_crates_that_name_a_test").unwrap(), ["xtask"]);
        assert_eq!(
            packages_with(concat!("qemu_crash::a_killed", "_server")).unwrap(),
            ["hearth-drivers"]
        );
        // Put together here, or this file would name it.
        assert!(packages_with(concat!("no_such", "_test_anywhere")).unwrap().is_empty());
    }
}
