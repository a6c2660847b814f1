//! Texts that a command reads whole: from a file, or from standard input where the file is called `-`.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;

use crate::failure::Failure;
use crate::output;

/// What the file is called in messages.
pub(crate) fn name(file: &Path) -> String {
    if is_standard_input(file) {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

/// What is in it.
pub(crate) fn text(file: &Path) -> Result<String, Failure> {
    let read = if is_standard_input(file) {
        if io::stdin().is_terminal() {
            output::note("reading from the terminal; Ctrl-D ends the text");
        }
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = read.map_err(|error| Failure::usage(format!("{} cannot be read: {error}", name(file))))?;
    Ok(without_mark(&text).to_owned())
}

/// Some editors begin a file with a mark of its encoding, which is no part of the text.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn is_standard_input(file: &Path) -> bool {
    file.as_os_str() == "-"
}
