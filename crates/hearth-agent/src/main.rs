//! The agent inside a VM: a small HTTP/2 server on a virtio-serial port, and the first process where nothing else is.
//!
//! One static binary with six roles, told apart by its arguments (or by being process 1):
//!
//! - `serve`: the server, see [`http`]; [`listen`] finds the host, the session layer is `hearth_guest::session`.
//! - `launch`: a process that becomes a command (own session, cgroup, user, folder) when it gets its order; only the server starts it.
//! - `relay`: carries bytes between its standard streams and the server's socket: how the host reaches the server in a container, see [`relay`].
//! - `git-credential`: git's credential helper for every user of the VM, see [`git_credential`].
//! - process 1 in an initial RAM disk: mounts the root disk and goes there, see [`init::initrd`].
//! - `init`: process 1 in a root without an init of its own, see [`init::system`].
//!
//! It never logs what commands, files or variables hold.

use std::process::ExitCode;

mod activate;
mod clock;
mod container;
mod exec;
mod files;
mod fs;
mod git_credential;
mod http;
mod init;
mod listen;
mod logs;
mod port;
mod ports;
mod priority;
mod relay;
mod reply;
mod requests;
mod ssh;
mod tree;
mod upload;
mod users;

use listen::{Endpoint, Options};

const USAGE: &str =
    "usage: hearth-agent serve [--container | --socket PATH | --port-name NAME] [--setup-network] [--no-cgroups]
                          [--log-folder PATH] [--request-folder PATH]
       hearth-agent relay
       hearth-agent git-credential get
       hearth-agent init
       hearth-agent version";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    drop(arguments.next());
    match arguments.next().as_deref().and_then(|word| word.to_str()) {
        // The kernel may pass words of its command line to process 1; only ours mean anything.
        Some("init") => init::system::run(),
        _ if std::process::id() == 1 => init::run_first(),
        Some("launch") => exec::launcher::run(arguments),
        Some("serve") => match serve_options(arguments) {
            Ok(options) => run_server(options),
            Err(error) => fail(&format!("{error}\n{USAGE}")),
        },
        Some("relay") => match relay::run(hearth_guest::SOCKET_PATH.as_ref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("the server could not be reached: {error}")),
        },
        Some("git-credential") => git_credential::run(arguments),
        Some("version") => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => fail(USAGE),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("hearth-agent: {message}");
    ExitCode::FAILURE
}

fn serve_options(arguments: std::env::ArgsOs) -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        endpoint: Endpoint::Port(hearth_guest::PORT_NAME.to_owned()),
        setup_network: false,
        use_cgroups: true,
        log_folder: logs::FOLDER.into(),
        request_folder: None,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("container") => {
                options.endpoint = Endpoint::Socket(hearth_guest::SOCKET_PATH.into());
                options.request_folder = Some(hearth_guest::requests::FOLDER.into());
            }
            Long("socket") => options.endpoint = Endpoint::Socket(parser.value()?.into()),
            Long("port-name") => options.endpoint = Endpoint::Port(parser.value()?.string()?),
            Long("setup-network") => options.setup_network = true,
            Long("log-folder") => options.log_folder = parser.value()?.into(),
            Long("request-folder") => options.request_folder = Some(parser.value()?.into()),
            Long("no-cgroups") => options.use_cgroups = false,
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

fn run_server(options: Options) -> ExitCode {
    priority::raise();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| {
        let result = runtime.block_on(listen::run(options));
        // A thread that still writes a file must not hold up the end.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("the server stopped: {error}")),
    }
}
