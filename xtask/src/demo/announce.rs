//! What the demo will do to the machine, said before it does anything; and the question whether it may.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{DemoArgs, Places};
use crate::setup::Plan;
use crate::{process, workspace};

/// What the first run takes on the disk besides packages, GB: the two builds, and the guest image with what it is made from.
const BUILD_GB: u32 = 2;
const IMAGE_GB: u32 = 4;

/// What the person said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
}

/// Says what will be done, and asks where somebody can answer and something is changed or takes long.
pub(super) fn ask(args: &DemoArgs, places: &Places, plan: &Plan) -> Result<Answer> {
    let is_first = !workspace::demo_program().exists();
    println!("The demo builds Hearth and a guest image, starts a server, fills a pool of VMs and claims one. It will");
    for line in plan.describe() {
        println!("  {line}");
    }
    if is_first {
        println!(
            "  compile  Hearth and its agent into {} (about {BUILD_GB} GB)",
            workspace::target().display()
        );
    }
    println!(
        "  make     a Debian guest image, unless it is there, where every data folder of this machine finds it (about {IMAGE_GB} GB; \
         `hearth image list` says where)"
    );
    println!(
        "  keep     everything else below {}",
        workspace::root().join(".hearth").display()
    );
    if is_first {
        println!(
            "The first time it compiles for some minutes and says how many are left; later runs take one or two in all."
        );
    }
    if args.once || !args.keep {
        println!("At its end it removes its VMs, server and data; packages, program and image stay.");
    }
    println!("What it runs is written to {}\n", places.log.display());
    let needs_asking = !plan.is_empty() || is_first;
    let can_answer = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.yes || !needs_asking || !can_answer {
        return Ok(Answer::Yes);
    }
    print!("Continue? [Y/n] ");
    std::io::stdout().flush().context("the terminal is gone")?;
    // Ctrl-C does not end the reading of a line.
    process::wait_until(Duration::MAX, is_something_typed)?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).context("the terminal is gone")?;
    // The end of the input is no yes.
    Ok(if read > 0 && means_yes(&line) {
        Answer::Yes
    } else {
        Answer::No
    })
}

fn is_something_typed() -> bool {
    let stdin = std::io::stdin();
    let mut look = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    // What cannot be looked at is read.
    poll(&mut look, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
}

fn means_yes(line: &str) -> bool {
    matches!(line.trim().to_lowercase().as_str(), "" | "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_and_return_mean_yes() {
        for line in ["\n", "y\n", "Yes\n", " YES "] {
            assert!(means_yes(line), "{line:?}");
        }
        for line in ["n\n", "no\n", "what?\n"] {
            assert!(!means_yes(line), "{line:?}");
        }
    }
}
