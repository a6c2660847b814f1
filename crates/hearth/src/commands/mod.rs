//! The commands, one file per noun. Each takes its arguments, talks to the server through the typed client and prints.

mod attached;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod checkpoint;
pub(crate) mod claim;
mod claim_wait;
pub(crate) mod claims;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod credential;
pub(crate) mod doctor;
pub(crate) mod egress;
pub(crate) mod env;
mod env_e2b;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod forward;
pub(crate) mod history;
pub(crate) mod image;
pub(crate) mod import;
pub(crate) mod instance;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod mcp;
pub(crate) mod openapi;
pub(crate) mod pause;
pub(crate) mod pool;
pub(crate) mod ports;
pub(crate) mod project;
mod really;
pub(crate) mod relay;
pub(crate) mod release;
pub(crate) mod run;
pub(crate) mod serve;
mod serve_incus;
mod serve_openid;
mod serve_servers;
mod serve_tls;
mod serve_watching;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod setup;
pub(crate) mod shell;
pub(crate) mod ssh;
pub(crate) mod store;
pub(crate) mod template;
pub(crate) mod token;
pub(crate) mod top;
mod unfinished;
pub(crate) mod uninstall;
pub(crate) mod webhook;

use crate::args::{Cli, Command};
use crate::failure::Failure;

/// Runs the command; the exit code when it came to its end.
pub(crate) async fn run(cli: Cli) -> Result<u8, Failure> {
    let globals = &cli.globals;
    match cli.command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Doctor(args) => doctor::run(globals, args).await,
        Command::Image(command) => image::run(globals, command).await,
        Command::Project(command) => project::run(globals, command).await,
        Command::Setup(command) => setup::run(globals, command).await,
        Command::Env(command) => env::run(globals, command).await,
        Command::Pool(command) => pool::run(globals, command).await,
        Command::Claim(args) => claim::run(globals, args).await,
        Command::Claims(args) => claims::run(globals, args).await,
        Command::Instance(args) => instance::run(globals, args).await,
        Command::Exec(args) => exec::run(globals, args).await,
        Command::Shell(args) => shell::run(globals, args).await,
        Command::Run(args) => run::run(globals, args).await,
        Command::Cp(args) => cp::run(globals, args).await,
        Command::Ls(args) => ls::run(globals, args).await,
        Command::Logs(args) => logs::run(globals, args).await,
        Command::Ps(args) => session::ps::run(globals, args).await,
        Command::Attach(args) => session::attach::run(globals, args).await,
        Command::Kill(args) => session::kill::run(globals, args).await,
        Command::Wait(args) => session::wait::run(globals, args).await,
        Command::Release(args) => release::run(globals, args).await,
        Command::Template(command) => template::run(globals, command).await,
        Command::Token(command) => token::run(globals, command).await,
        Command::Completion(args) => completion::run(&args),
        Command::Credential(command) => credential::run(globals, command).await,
        Command::Openapi => openapi::run(),
        Command::Ports(args) => ports::run(globals, args).await,
        Command::Share(args) => ports::share(globals, args).await,
        Command::Forward(args) => forward::run(globals, args).await,
        Command::Ssh(args) => ssh::run(globals, args).await,
        Command::SshConfig(args) => ssh::print_config(globals, &args),
        Command::SshProxy(args) => ssh::proxy(globals, args).await,
        Command::Pause(args) => pause::pause(globals, args).await,
        Command::Resume(args) => pause::resume(globals, args).await,
        Command::Egress(command) => egress::run(globals, command).await,
        Command::Man(args) => man::run(&args),
        Command::Fork(args) => fork::run(globals, args).await,
        Command::Checkpoint(command) => checkpoint::run(globals, command).await,
        Command::Backup(args) => backup::back_up(globals, args).await,
        Command::Restore(args) => backup::restore(globals, args).await,
        Command::Store(command) => store::run(globals, command).await,
        Command::Uninstall(args) => uninstall::run(globals, args).await,
        Command::Top(args) => top::run(globals, args).await,
        Command::Config(command) => config::run(globals, &command),
        Command::Events(args) => events::run(globals, args).await,
        Command::Audit(args) => audit::run(globals, args).await,
        Command::History(args) => history::run(globals, args).await,
        Command::Server(command) => server::run(globals, command).await,
        Command::Webhook(command) => webhook::run(globals, command).await,
        Command::Relay(command) => relay::run(globals, command).await,
        Command::Mcp(args) => mcp::run(globals, args).await,
        Command::Import(args) => import::run(globals, args).await,
    }
}
