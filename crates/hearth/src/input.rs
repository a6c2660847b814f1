//! What a command reads whole: from a file, or from standard input where the file is called `-`. Nothing is read without a bound:
//! a device or a pipe may have no end.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::failure::Failure;
use crate::output;

/// So many bytes are asked for at a time.
const CHUNK_BYTES: u64 = 64 * 1024;
/// A pipe that is silent for so long is spoken of: a person may wait for something that never comes.
const SILENCE: Duration = Duration::from_secs(5);

/// How much is read of something, and why no more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) bytes: u64,
    /// `longer than …`
    pub(crate) than: &'static str,
}

/// What goes to the server in one request.
pub(crate) const REQUEST: Bound = Bound {
    bytes: hearth_server::MAX_BODY_BYTES as u64,
    than: "the 64 MiB that the server takes in one request",
};
/// The value of one variable, whose characters may have four bytes, and a line end that does not count.
pub(crate) const VALUE: Bound = Bound {
    bytes: 4 * 100_000 + 2,
    than: "the 100,000 characters that a variable may have",
};
/// A token or another secret of one line.
pub(crate) const SECRET: Bound = Bound {
    bytes: 64 * 1024,
    than: "64 KiB, and no secret is that long",
};

impl Bound {
    /// What is said of something that goes beyond.
    pub(crate) fn refusal(self, name: &str) -> Failure {
        Failure::usage(format!("{name} is longer than {}", self.than))
    }
}

/// What the file is called in messages.
pub(crate) fn name(file: &Path) -> String {
    if is_standard_input(file) {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

/// The text in it, for one request to the server.
pub(crate) fn text(file: &Path) -> Result<String, Failure> {
    let name = name(file);
    let bytes = if is_standard_input(file) {
        if io::stdin().is_terminal() {
            output::note("reading from the terminal; Ctrl-D ends the text");
        }
        standard_input(REQUEST, Holds::Text)?
    } else {
        read_file(file, &name, REQUEST, Holds::Text)?
    };
    let text = String::from_utf8(bytes).map_err(|error| no_text(&name, error.utf8_error().valid_up_to()))?;
    Ok(without_mark(&text).to_owned())
}

/// What is in a file, whatever it is.
pub(crate) fn file_bytes(file: &Path, bound: Bound) -> Result<Vec<u8>, Failure> {
    read_file(file, &file.display().to_string(), bound, Holds::Anything)
}

/// What comes on standard input, whatever it is.
pub(crate) fn standard_input_bytes(bound: Bound) -> Result<Vec<u8>, Failure> {
    standard_input(bound, Holds::Anything)
}

/// A secret of one line in a file; `name` says what it is.
pub(crate) fn secret(file: &Path, name: &str) -> Result<String, Failure> {
    let bytes = read_file(file, name, SECRET, Holds::Text)?;
    String::from_utf8(bytes).map_err(|error| no_text(name, error.utf8_error().valid_up_to()))
}

/// Some editors begin a file with a mark of its encoding, which is no part of the text.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn is_standard_input(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// What is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// A NUL shows at once that it is none.
    Text,
    Anything,
}

fn standard_input(bound: Bound, holds: Holds) -> Result<Vec<u8>, Failure> {
    let input = io::stdin();
    let is_pipe = !input.is_terminal();
    read(input.lock(), is_pipe, "standard input", bound, holds)
}

fn read_file(file: &Path, name: &str, bound: Bound, holds: Holds) -> Result<Vec<u8>, Failure> {
    // Asked before it is opened: opening a pipe waits for the program that writes into it.
    let kind = std::fs::metadata(file).map_err(|error| unreadable(name, &error))?;
    if kind.is_dir() {
        return Err(Failure::usage(format!("{name} is a folder and no file")).hint("name a file in it"));
    }
    if kind.is_file() && kind.len() > bound.bytes {
        return Err(bound.refusal(name));
    }
    let _watch = (!kind.is_file()).then(|| speak_of_silence(name));
    let opened = File::open(file).map_err(|error| unreadable(name, &error))?;
    read(opened, false, name, bound, holds)
}

/// Reads to the end, or to the bound.
fn read(mut from: impl Read, is_pipe: bool, name: &str, bound: Bound, holds: Holds) -> Result<Vec<u8>, Failure> {
    let _watch = is_pipe.then(|| speak_of_silence(name));
    let mut bytes = Vec::new();
    loop {
        let before = bytes.len();
        let read = from.by_ref().take(CHUNK_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(name, &error))?;
        let chunk = &bytes[before..];
        if holds == Holds::Text
            && let Some(at) = chunk.iter().position(|byte| *byte == 0)
        {
            return Err(no_text(name, before + at));
        }
        if bytes.len() as u64 > bound.bytes {
            return Err(bound.refusal(name));
        }
        if chunk.is_empty() {
            return Ok(bytes);
        }
    }
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    let failure = Failure::usage(format!("{name} cannot be read: {error}"));
    match error.kind() {
        io::ErrorKind::NotFound => failure.hint("is the path right? It is looked for in the folder you are in"),
        io::ErrorKind::IsADirectory => failure.hint("name a file in it"),
        _ => failure,
    }
}

fn no_text(name: &str, at: usize) -> Failure {
    Failure::usage(format!(
        "{name} is not UTF-8 text: it holds other bytes at byte {}",
        at + 1
    ))
}

/// Says after some seconds what is waited for, unless what it gives is dropped by then.
fn speak_of_silence(name: &str) -> mpsc::Sender<()> {
    let (watch, dropped) = mpsc::channel();
    let text = format!("still reading {name} to its end; Ctrl-C gives up");
    std::thread::spawn(move || {
        if dropped.recv_timeout(SILENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            output::note(&text);
        }
    });
    watch
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bound = Bound {
        bytes: 100_000,
        than: "a small bound",
    };

    #[test]
    fn what_has_no_end_is_read_to_the_bound_and_not_further() {
        for holds in [Holds::Text, Holds::Anything] {
            let mut given = 0_u64;
            let endless = Counted(&mut given);
            let said = read(endless, false, "it", SMALL, holds).unwrap_err().to_string();
            assert!(said.contains("it is longer than a small bound"), "{said}");
            assert!(given <= SMALL.bytes + CHUNK_BYTES, "{given}");
        }
        let exact = vec![b'a'; 100_000];
        assert_eq!(read(&exact[..], false, "it", SMALL, Holds::Text), Ok(exact.clone()));
    }

    #[test]
    fn the_sentence_of_a_bound_says_its_number() {
        assert_eq!(REQUEST.bytes, 64 << 20);
        assert_eq!(SECRET.bytes, 64 << 10);
        let document = hearth_server::openapi_document();
        let value = &document["components"]["schemas"]["VariableValue"];
        assert!(value.to_string().contains(r#""maxLength":100000"#), "{value}");
    }

    /// Letters without an end.
    struct Counted<'a>(&'a mut u64);

    impl Read for Counted<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            to.fill(b'y');
            *self.0 += to.len() as u64;
            Ok(to.len())
        }
    }
}
