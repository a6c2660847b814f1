//! `hearth completion`: what a shell needs to complete commands and options.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output;

pub(crate) const AFTER_HELP: &str = "\
Examples:
  hearth completion bash > /etc/bash_completion.d/hearth
  hearth completion zsh > \"${fpath[1]}/_hearth\"
  hearth completion fish > ~/.config/fish/completions/hearth.fish";

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
    let shell = match args.shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut script);
    output::print_as_it_is(String::from_utf8_lossy(&script).trim_end())?;
    Ok(0)
}
