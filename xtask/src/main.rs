//! The project's own tasks. `cargo xtask demo` and `cargo xtask test` need nothing but Rust: they do all set-up.

mod agent;
mod bench;
mod build;
mod compile;
mod contract;
mod demo;
mod deny;
mod dist;
mod e2b;
mod examples;
mod forecast;
mod load;
mod npm;
mod openapi;
mod openid;
mod packages;
mod process;
mod python;
mod setup;
mod sim;
mod test;
mod tidy;
mod unpacked;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 120)]
/// The project's own tasks
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the system packages that are missing (needs root or sudo)
    Setup,
    /// Build the static agent that goes into guest images
    Agent,
    /// Build the one program with the agent inside, and say where it is
    Build(build::BuildArgs),
    /// Everything at once: set-up, image, server, a project, a full pool, a claim
    Demo(demo::DemoArgs),
    /// Measure what Hearth promises, each figure beside what it is compared with
    Bench(bench::BenchArgs),
    /// Claim as fast as clients can on SQLite and PostgreSQL, with one to three servers, beside what PostgreSQL does alone
    Load(load::LoadArgs),
    /// Run the planner through simulated days with faults, and check what it promises
    Sim(sim::SimArgs),
    /// All set-up, then every check and every test, those with real VMs included; with a name, only the tests of that name
    Test(test::TestArgs),
    /// Write openapi.json, the description of the HTTP API, from the code
    Openapi,
    /// Try openapi.json against a running server with a tester of the API's that is not ours (Schemathesis)
    Contract,
    /// Check licences, sources and doubled versions of everything that is compiled in (cargo-deny)
    Deny,
    /// What people install: tarball, Debian package, list of what is compiled in, sums
    Dist(dist::DistArgs),
    /// The house rules: size of files, words in the wrong room, sleeping tests
    Tidy,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = process::listen_for_ctrl_c() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let done = match cli.task {
        Task::Setup => setup::run(),
        Task::Agent => agent::build().map(|path| println!("{}", path.display())),
        Task::Build(args) => build::run(&args).map(|path| println!("{}", path.display())),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Load(args) => load::run(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Openapi => openapi::write().map(|path| println!("{}", path.display())),
        Task::Contract => contract::run(),
        Task::Deny => deny::run(),
        Task::Dist(args) => dist::run(&args).map(|folder| println!("{}", folder.display())),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<process::Interrupted>() => {
            eprintln!("interrupted");
            ExitCode::from(process::EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
