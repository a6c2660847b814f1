//! `hearth completion`: the script with which a shell completes commands, options, and the names of what is there.

use clap::{Args, ValueEnum};
use clap_complete::env::{EnvCompleter, Fish, Zsh};

use crate::complete::{self, Bash};
use crate::failure::Failure;
use crate::output;

pub(crate) const AFTER_HELP: &str = "\
Put the line of your shell into its start file:
  bash   ~/.bashrc                     source <(hearth completion bash)
  zsh    ~/.zshrc, after `compinit`    source <(hearth completion zsh)
  fish   ~/.config/fish/config.fish    hearth completion fish | source

Then `hearth exec <TAB>` completes what you have claimed: tasks, ids, and `last`. Project names, sessions, logs and the files of
`hearth cp` are completed as well. The server is found as by every other command; it is asked for at most 0.8 seconds
(or HEARTH_COMPLETE_MS milliseconds).";

/// `hearth completion`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: KnownShell,
}

/// The shells that are tried.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KnownShell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: &CompletionArgs) -> Result<u8, Failure> {
    let shell: &dyn EnvCompleter = match args.shell {
        KnownShell::Bash => &Bash,
        KnownShell::Zsh => &Zsh,
        KnownShell::Fish => &Fish,
    };
    let script =
        complete::script(shell).map_err(|error| Failure::new(format!("the script cannot be written: {error}")))?;
    output::print_as_it_is(&script)?;
    Ok(0)
}
