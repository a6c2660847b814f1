//! Commands in a VM. Each is a session that the VM's agent keeps, so it runs on when a reply is due before its end, and what it printed can be
//! read later.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hearth_api::client::Client;
use hearth_api::exec::{ExecExit, ExecRequest};
use hearth_api::ids::InstanceId;
use hearth_api::session::{SendSignal, Session, StartSession};
use hearth_api::values::{CommandText, GuestPath, SignalName};
use tokio::time::Instant;

use crate::arguments::{Output, Run};
use crate::bounded::Bounded;
use crate::find;
use crate::refusal::Refusal;

/// How long a call waits when nothing is said: clients give up after a minute.
pub(crate) const DEFAULT_WAIT_SECONDS: u64 = 50;
/// How long the last output of a command that has ended is waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Longest wait of one call.
const LONGEST_WAIT_SECONDS: u64 = 3600;

/// How long a call is to wait.
pub(crate) fn wait(seconds: Option<u64>, default: u64) -> Duration {
    Duration::from_secs(seconds.unwrap_or(default).min(LONGEST_WAIT_SECONDS))
}

/// A value of the API from an argument, or what is wrong with it.
pub(crate) fn value<T>(name: &str, text: String) -> Result<T, Refusal>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    T::try_from(text).map_err(|fault| Refusal::new(format!("`{name}` {fault}")))
}

pub(crate) async fn run(client: &Client, arguments: Run) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    let cwd = arguments.cwd.map(|cwd| value::<GuestPath>("cwd", cwd)).transpose()?;
    let body = StartSession {
        request: ExecRequest {
            command: Some(value::<CommandText>("command", arguments.command)?),
            cwd,
            timeout_seconds: arguments.timeout_seconds,
            ..ExecRequest::default()
        },
        open_stdin: arguments.background.unwrap_or(false),
        ..StartSession::default()
    };
    let session = client.start_session(&id, &body).await?;
    let patience = match (arguments.background, &arguments.wait_for) {
        (Some(true), None) => Duration::ZERO,
        _ => wait(arguments.wait_seconds, DEFAULT_WAIT_SECONDS),
    };
    if let Some(text) = &arguments.wait_for {
        return until_printed(client, &id, &session.id, 0, text, patience).await;
    }
    let session = until_ended(client, &id, session, patience).await?;
    shown(client, &id, &session, 0, Bounded::ends(0)).await
}

pub(crate) async fn output(client: &Client, arguments: Output) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    let session = client.get_session(&id, &arguments.session).await?;
    if let Some(name) = arguments.signal {
        let signal = value::<SignalName>("signal", name)?;
        client
            .signal_session(&id, &session.id, &SendSignal { signal, tree: true })
            .await?;
    }
    if let Some(input) = arguments.input {
        client
            .write_session_stdin(&id, &session.id, Bytes::from(input), false)
            .await?;
    }
    if let Some(text) = &arguments.wait_for {
        let patience = wait(arguments.wait_seconds, DEFAULT_WAIT_SECONDS);
        return until_printed(client, &id, &session.id, arguments.from.unwrap_or(0), text, patience).await;
    }
    let session = until_ended(client, &id, session, wait(arguments.wait_seconds, 0)).await?;
    let into = match arguments.from {
        Some(from) => Bounded::beginning(from),
        None => Bounded::ends(0),
    };
    shown(client, &id, &session, arguments.from.unwrap_or(0), into).await
}

/// The session when it has ended, or the time is up.
async fn until_ended(
    client: &Client,
    id: &InstanceId,
    session: Session,
    patience: Duration,
) -> Result<Session, Refusal> {
    if !session.is_running() || patience.is_zero() {
        return Ok(client.get_session(id, &session.id).await?);
    }
    Ok(client.wait_session(id, &session.id, Some(patience.as_secs())).await?)
}

/// The reply with what it has printed until now, from a position on. Of one that has ended all is waited for, which may come a moment after the
/// end; what it left running may hold its outputs open for longer.
async fn shown(
    client: &Client,
    id: &InstanceId,
    session: &Session,
    from: u64,
    mut into: Bounded,
) -> Result<String, Refusal> {
    let has_ended = !session.is_running();
    let mut printed = client.session_output(id, &session.id, from, None, has_ended).await?;
    note_dropped(&mut into, printed.dropped);
    let deadline = Instant::now() + LAST_WORDS;
    while !into.is_full() {
        let next = printed.body.next();
        let bytes = match has_ended {
            true => tokio::time::timeout_at(deadline, next).await.unwrap_or_default(),
            false => next.await,
        };
        match bytes {
            Some(bytes) => into.push(&bytes?),
            None => break,
        }
    }
    drop(printed);
    let session = match has_ended && session.output_open {
        true => client.get_session(id, &session.id).await?,
        false => session.clone(),
    };
    Ok(reply(id, &session, &into))
}

/// Says that bytes are not kept any more.
fn note_dropped(into: &mut Bounded, dropped: u64) {
    if dropped > 0 {
        into.skip(dropped);
    }
}

/// Waits until a session has printed a text after a position.
async fn until_printed(
    client: &Client,
    id: &InstanceId,
    session: &str,
    from: u64,
    text: &str,
    patience: Duration,
) -> Result<String, Refusal> {
    if text.is_empty() {
        return Err(Refusal::new(
            "`wait_for` is empty: give the text that is to be waited for",
        ));
    }
    let deadline = Instant::now() + patience;
    let mut all = Bounded::ends(from);
    // What a text may begin in that is not whole yet.
    let mut last: Vec<u8> = Vec::new();
    let mut stream = client.session_output(id, session, from, None, true).await?;
    note_dropped(&mut all, stream.dropped);
    let mut found = false;
    while !found {
        match tokio::time::timeout_at(deadline, stream.body.next()).await {
            Ok(Some(bytes)) => {
                let bytes = bytes?;
                all.push(&bytes);
                last.extend_from_slice(&bytes);
                found = last.windows(text.len()).any(|part| part == text.as_bytes());
                let surplus = last.len().saturating_sub(text.len() - 1);
                last.drain(..surplus);
            }
            // Nothing can print any more, or the time is up.
            Ok(None) | Err(_) => break,
        }
    }
    drop(stream);
    let session = client.get_session(id, session).await?;
    let outcome = match (found, session.is_running()) {
        (true, _) => format!("`{text}` was printed"),
        (false, true) => format!("`{text}` was not printed within {} s", patience.as_secs()),
        (false, false) => format!("it ended, and `{text}` was not printed"),
    };
    Ok(format!("{outcome}; {}", reply(id, &session, &all)))
}

/// What became of it, and what it printed.
fn reply(id: &InstanceId, session: &Session, printed: &Bounded) -> String {
    let state = match &session.exit {
        Some(exit) => ended(exit),
        None => "it runs".to_owned(),
    };
    let name = &session.id;
    let next = match (
        session.output_bytes > printed.end(),
        session.is_running(),
        session.output_open,
    ) {
        (true, ..) => format!("; more with `output` from {}", printed.end()),
        (false, true, _) => format!("; read on with `output` from {}", printed.end()),
        (false, false, true) => format!(
            "; it left processes running, whose output is read from {}",
            printed.end()
        ),
        (false, false, false) => String::new(),
    };
    let text = printed.text(|from| format!("read them with `output` of instance {id}, session {name}, from {from}"));
    format!("{state} (session {name}{next})\n{text}")
}

fn ended(exit: &ExecExit) -> String {
    let mut text = match (exit.exit_code, &exit.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by {signal}"),
        (None, None) => "how it ended is not known".to_owned(),
    };
    text.push_str(&format!(
        " after {:.1} s",
        Duration::from_millis(exit.duration_ms).as_secs_f64()
    ));
    if exit.timed_out {
        text.push_str(", its `timeout_seconds` had passed");
    }
    if let Some(error) = &exit.error {
        text.push_str(&format!(": {error}"));
    }
    text
}
