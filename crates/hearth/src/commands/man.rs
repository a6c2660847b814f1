//! `hearth man`: the manual pages, from the same description that `--help` shows.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use roff::{Roff, roman};

use crate::args::Cli;
use crate::failure::Failure;
use crate::output;

const AFTER_HELP: &str = "\
Examples:
  hearth man ~/.local/share/man/man1      then: man hearth, man hearth-exec
  hearth man | man -l -                   read the main page without installing it

Where `man` does not find them: export MANPATH=~/.local/share/man:";

/// `hearth man`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ManArgs {
    /// Write a page for every command into this folder, which is made; without it the main page is printed
    folder: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs) -> Result<u8, Failure> {
    let mut command = Cli::command();
    command.build();
    let Some(folder) = &args.folder else {
        if io::stdout().is_terminal() {
            return Err(
                Failure::usage("the page is written for `man`, not for a terminal").hint(
                    "read it with `hearth man | man -l -`, or write all pages into a folder with `hearth man FOLDER`",
                ),
            );
        }
        let page = page(&command).map_err(|error| Failure::new(format!("the page cannot be written: {error}")))?;
        output::print_as_it_is(String::from_utf8_lossy(&page).trim_end())?;
        return Ok(0);
    };
    let failed = |error| Failure::new(format!("the pages cannot be written to {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let count = write(&command, folder).map_err(failed)?;
    output::note(&format!("{} in {}", output::count(count, "page"), folder.display()));
    Ok(0)
}

/// The page of this command and those of the commands below it; how many.
fn write(command: &Command, folder: &Path) -> io::Result<u64> {
    std::fs::write(folder.join(Man::new(command.clone()).get_filename()), page(command)?)?;
    let mut count = 1;
    for below in command.get_subcommands() {
        if !below.is_hide_set() && below.get_name() != "help" {
            count += write(below, folder)?;
        }
    }
    Ok(count)
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone().disable_help_subcommand(true))
        .source(concat!("hearth ", env!("CARGO_PKG_VERSION")))
        .manual("Hearth");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(notes) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        notes_section(&notes.to_string()).to_writer(&mut page)?;
    }
    Ok(page)
}

/// What stands at the end of `--help`, in the same form: examples are not filled into paragraphs.
fn notes_section(text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES AND NOTES"]);
    roff.control("nf", []);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}
