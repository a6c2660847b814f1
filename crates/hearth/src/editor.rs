//! A text changed in the person's own editor: `$VISUAL`, else `$EDITOR`, else `vi`. The file is readable by its owner alone.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::input;
use crate::output;

/// The editor where none is named: POSIX wants it on every system.
const FALLBACK: &str = "vi";

/// How it ended.
pub(crate) enum Edited<T> {
    /// The person left the text as it was.
    Unchanged,
    /// It was changed and taken.
    Taken(T),
}

/// Lets the person change `text` until `take` takes it. What is not taken can be changed again; when the person gives up, what was
/// written stays in the file, and the failure says where, and in the words of `then` what to do with it.
pub(crate) async fn edit<T>(
    text: &str,
    then: impl Fn(&Path) -> String,
    mut take: impl AsyncFnMut(&str) -> Result<T, Failure>,
) -> Result<Edited<T>, Failure> {
    let give_up = |file, failure| give_up(file, failure, &then);
    let unwritable = |error: io::Error| Failure::new(format!("a file for the editor cannot be written: {error}"));
    // Its mode is 0600.
    let mut file = tempfile::Builder::new()
        .prefix("hearth-")
        .suffix(".json")
        .tempfile()
        .map_err(unwritable)?;
    file.write_all(text.as_bytes()).map_err(unwritable)?;
    file.flush().map_err(unwritable)?;
    let mut refused: Option<(String, Failure)> = None;
    loop {
        run_editor(file.path())?;
        // Editors put a new file in the place of the old one: it is opened by its name.
        let written = match input::text(file.path()) {
            Ok(written) => written,
            Err(failure) => return Err(give_up(file, failure)),
        };
        if written == text || written.trim().is_empty() {
            return Ok(Edited::Unchanged);
        }
        if let Some((before, failure)) = refused.take()
            && before == written
        {
            return Err(give_up(file, failure));
        }
        match take(&written).await {
            Ok(taken) => return Ok(Edited::Taken(taken)),
            Err(failure) if asks_again(&failure) => refused = Some((written, failure)),
            Err(failure) => return Err(give_up(file, failure)),
        }
    }
}

fn run_editor(file: &Path) -> Result<(), Failure> {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = named("VISUAL")
        .or_else(|| named("EDITOR"))
        .unwrap_or_else(|| FALLBACK.to_owned());
    // As git does: the editor may have options, which the shell divides.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$@\""), &editor])
        .arg(file)
        .status()
        .map_err(|error| Failure::new(format!("the editor `{editor}` cannot be started: {error}")))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the editor `{editor}` ended with {status}; nothing was changed"
    ))
    .hint("name another editor in VISUAL or EDITOR"))
}

/// Says what is wrong, and whether the person wants to fix it.
fn asks_again(failure: &Failure) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    output::note(&format!(
        "{}\nEnter opens the editor again, q gives up:",
        failure.to_string().trim_end()
    ));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.is_ok_and(|bytes| bytes > 0) && !answer.trim().eq_ignore_ascii_case("q")
}

fn give_up(file: tempfile::NamedTempFile, failure: Failure, then: &dyn Fn(&Path) -> String) -> Failure {
    match file.keep() {
        Ok((_, path)) => failure
            .detail(format!("what you wrote is kept in {}", path.display()))
            .hint(then(&path)),
        Err(_) => failure,
    }
}
