//! Asks a person whether something that destroys work is meant.

use std::io::{self, IsTerminal as _};

use crate::failure::Failure;
use crate::output;

/// Comes back when it is. `harm` says what is destroyed; where nobody can answer, `--yes` is needed.
pub(super) fn really(harm: &str) -> Result<(), Failure> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::usage(harm).hint("if that is meant, say --yes"));
    }
    output::note(&format!("{harm}; type yes to continue:"));
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(format!("the answer cannot be read: {error}")))?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::new("nothing was deleted"))
}
