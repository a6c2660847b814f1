//! A session in this terminal: what it prints comes out here, what is typed here goes in. The connection may be cut: then it is made
//! again, and continues where it was.

use std::borrow::Cow;
use std::io::{self, Read as _};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hearth_api::client::{AttachOptions, Client, ClientError, SessionEvent, SessionInput, SessionOutput};
use hearth_api::ids::InstanceId;
use hearth_api::session::Session;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::super::exec::pass_on;
use super::super::shell::size;
use super::replay::Replay;
use super::say;
use crate::failure::Failure;
use crate::output;

/// Most that is read of our input at once.
const READ_BYTES: usize = 32 * 1024;
/// What was read and not sent yet.
const WAITING: usize = 16;
/// A server that is away is asked again for this long.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(120);
/// From one try to the next.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What is done here with the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is only read.
    Read,
    /// Our input goes in as it comes, and its end ends the session's.
    Pipe,
    /// Our terminal is the session's: its size too. `~.` at the beginning of a line leaves.
    Terminal,
}

/// Why it is over.
#[derive(Debug)]
pub(crate) enum Over {
    /// There is no more to read.
    Ended(Box<Session>),
    /// The person left; the session runs on.
    Left,
}

/// Follows a session to its end, or until the person leaves.
pub(crate) async fn follow(
    client: &Client,
    id: &InstanceId,
    session: &Session,
    mut options: AttachOptions,
    mode: Mode,
) -> Result<Over, Failure> {
    let mut replay = (mode == Mode::Terminal).then(|| Replay::until(session.output_bytes));
    let session = session.id.as_str();
    let mut keys = match mode {
        Mode::Read => None,
        Mode::Pipe | Mode::Terminal => Some(Keys::read(mode)),
    };
    let mut resized = match mode {
        Mode::Terminal => Some(
            signal(SignalKind::window_change())
                .map_err(|error| Failure::new(format!("signals cannot be received: {error}")))?,
        ),
        Mode::Read | Mode::Pipe => None,
    };
    let mut away_since = None;
    loop {
        let lost = match client.attach_session(id, session, options).await {
            Ok((mut input, mut output)) => {
                if away_since.take().is_some() {
                    say_between("the connection is there again", mode);
                }
                let shown = show(&mut output, &mut options, &mut replay);
                tokio::select! {
                    over = shown => match over {
                        Ok(session) => return Ok(Over::Ended(session)),
                        Err(Broken::Here(failure)) => return Err(failure),
                        Err(Broken::There(error)) => error,
                    },
                    () = send(&mut input, &mut keys, &mut resized) => return Ok(Over::Left),
                }
            }
            Err(error) => error,
        };
        if !may_come_back(&lost) {
            return Err(lost.into());
        }
        let since = *away_since.get_or_insert_with(|| {
            say_between("the connection was lost; the session runs on. Connecting again …", mode);
            Instant::now()
        });
        if since.elapsed() >= RECONNECT_PATIENCE {
            return Err(lost.into());
        }
        let pause = async {
            sleep(RECONNECT_PAUSE).await;
        };
        tokio::select! {
            () = pause => {}
            () = left(&mut keys) => return Ok(Over::Left),
        }
    }
}

/// A sentence of ours beside the session's output.
fn say_between(text: &str, mode: Mode) {
    match mode {
        // The terminal does not return to the beginning of the line by itself.
        Mode::Terminal => output::note_as_it_is(&format!("\r\n[hearth: {text}]\r")),
        Mode::Read | Mode::Pipe => say(text),
    }
}

/// A server that refuses will refuse again; one that does not answer, or cannot now, may be restarted.
fn may_come_back(error: &ClientError) -> bool {
    match error {
        ClientError::Api { status, .. } => *status == 503,
        ClientError::Setup { .. } => false,
        _ => true,
    }
}

enum Broken {
    /// The connection, or the other side.
    There(ClientError),
    /// Our own output.
    Here(Failure),
}

/// Everything that it prints. `options` says what is still to come, for another connection.
async fn show(
    output: &mut SessionOutput,
    options: &mut AttachOptions,
    replay: &mut Option<Replay>,
) -> Result<Box<Session>, Broken> {
    loop {
        match output.next().await.map_err(Broken::There)? {
            SessionEvent::Begin(begin) => {
                options.from = begin.position;
                options.last = None;
            }
            SessionEvent::Stdout(bytes) => {
                let shown: Cow<'_, [u8]> = match replay {
                    Some(replay) => replay.pass(options.from, &bytes).into(),
                    None => bytes.as_ref().into(),
                };
                pass_on(&mut io::stdout().lock(), &shown).map_err(Broken::Here)?;
                options.from += bytes.len() as u64;
            }
            SessionEvent::Stderr(bytes) => {
                pass_on(&mut io::stderr().lock(), &bytes).map_err(Broken::Here)?;
                options.from += bytes.len() as u64;
            }
            SessionEvent::Dropped(bytes) => {
                say(&format!("[{bytes} bytes of output are not kept any more]"));
                options.from += bytes;
            }
            SessionEvent::End(session) => return Ok(session),
        }
    }
}

/// What is typed or piped in.
#[derive(Debug)]
struct Keys {
    read: mpsc::Receiver<Bytes>,
    escape: Option<Escape>,
    more: bool,
    leaves: bool,
}

impl Keys {
    fn read(mode: Mode) -> Self {
        let (sender, read) = mpsc::channel(WAITING);
        // A thread of its own: one that waits for input cannot be stopped, and must not hold the program's end.
        thread::spawn(move || {
            let mut buffer = vec![0; READ_BYTES];
            // What cannot be read has ended.
            while let Ok(read @ 1..) = io::stdin().lock().read(&mut buffer) {
                if sender.blocking_send(Bytes::copy_from_slice(&buffer[..read])).is_err() {
                    return;
                }
            }
        });
        Self {
            read,
            escape: (mode == Mode::Terminal).then(Escape::default),
            more: true,
            leaves: false,
        }
    }

    async fn next(&mut self) -> Typed {
        if self.leaves {
            return Typed::Leave;
        }
        if !self.more {
            return std::future::pending().await;
        }
        let Some(bytes) = self.read.recv().await else {
            self.more = false;
            // A terminal that is gone ends nothing in the VM.
            return if self.escape.is_some() {
                Typed::Leave
            } else {
                Typed::End
            };
        };
        match &mut self.escape {
            None => Typed::Bytes(bytes),
            Some(escape) => {
                let (bytes, leaves) = escape.pass(&bytes);
                self.leaves = leaves;
                Typed::Bytes(bytes)
            }
        }
    }
}

#[derive(Debug)]
enum Typed {
    Bytes(Bytes),
    End,
    Leave,
}

/// Finds `~.` at the beginning of a line, as `ssh` does; `~~` is a tilde.
#[derive(Debug)]
struct Escape {
    at_start: bool,
    tilde: bool,
}

impl Default for Escape {
    fn default() -> Self {
        Self {
            at_start: true,
            tilde: false,
        }
    }
}

impl Escape {
    /// What goes to the session, and whether the person leaves after that.
    fn pass(&mut self, typed: &[u8]) -> (Bytes, bool) {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for byte in typed.iter().copied() {
            if self.tilde {
                self.tilde = false;
                match byte {
                    b'.' => return (out.into(), true),
                    b'~' => {}
                    _ => out.push(b'~'),
                }
            } else if self.at_start && byte == b'~' {
                self.tilde = true;
                self.at_start = false;
                continue;
            }
            self.at_start = matches!(byte, b'\r' | b'\n');
            out.push(byte);
        }
        (out.into(), false)
    }
}

/// Passes on what is typed and how large the terminal is; ends when the person leaves.
async fn send(input: &mut SessionInput, keys: &mut Option<Keys>, resized: &mut Option<Signal>) {
    // A session takes the size of the terminal that it is shown in.
    let mut sent = if resized.is_some() {
        input.resize(size()).await
    } else {
        Ok(())
    };
    loop {
        if sent.is_err() {
            // The other half tells how it ended, or that the connection is gone.
            return left(keys).await;
        }
        sent = tokio::select! {
            typed = next_key(keys) => match typed {
                Typed::Bytes(bytes) => input.bytes(bytes).await,
                Typed::End => input.end().await,
                Typed::Leave => return,
            },
            () = next_size(resized) => input.resize(size()).await,
        };
    }
}

/// Until the person leaves; what is typed meanwhile goes nowhere.
async fn left(keys: &mut Option<Keys>) {
    while !matches!(next_key(keys).await, Typed::Leave) {}
}

async fn next_key(keys: &mut Option<Keys>) -> Typed {
    match keys {
        Some(keys) => keys.next().await,
        None => std::future::pending().await,
    }
}

async fn next_size(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_and_a_dot_at_the_beginning_of_a_line_leave() {
        let all = |typed: &[&str]| {
            let mut escape = Escape::default();
            let mut out = Vec::new();
            let mut left = false;
            for keys in typed {
                let (bytes, leaves) = escape.pass(keys.as_bytes());
                out.extend(bytes);
                left |= leaves;
            }
            (String::from_utf8(out).unwrap(), left)
        };
        assert_eq!(all(&["~."]), (String::new(), true));
        assert_eq!(all(&["ls\r", "~", "."]), ("ls\r".to_owned(), true));
        assert_eq!(all(&["ls\r~."]), ("ls\r".to_owned(), true));
        for (typed, sent) in [
            ("ls ~.\r", "ls ~.\r"),
            ("~~.\r", "~.\r"),
            ("~x\r", "~x\r"),
            ("cd ~\r", "cd ~\r"),
        ] {
            assert_eq!(all(&[typed]), (sent.to_owned(), false), "{typed:?}");
        }
    }
}
