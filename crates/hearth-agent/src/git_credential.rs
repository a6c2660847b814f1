//! `hearth-agent git-credential get`: git's credential helper. It asks the agent, which asks the host; it keeps nothing, so git's
//! `store` and `erase` do nothing.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hearth_guest::requests::{FOLDER, GuestQuestion, HostAnswer, MAX_LINE, SOCKET};

/// Longer than the agent waits for the host; git's user waits.
const PATIENCE: Duration = Duration::from_millis(9500);

/// The words after `git-credential`: `[--folder PATH] get`.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut folder = PathBuf::from(FOLDER);
    let mut action = None;
    let mut arguments = arguments;
    while let Some(word) = arguments.next() {
        match word.to_str() {
            Some("--folder") => folder = arguments.next().unwrap_or_default().into(),
            Some(word) => action = Some(word.to_owned()),
            None => {}
        }
    }
    if action.as_deref() != Some("get") {
        // What git tells is read all the same: it would write into a closed pipe.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        return ExitCode::SUCCESS;
    }
    match get(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("hearth: {message}");
            ExitCode::FAILURE
        }
    }
}

fn get(folder: &std::path::Path) -> Result<(), String> {
    let Some((question, host)) = question(io::stdin().lock()).map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let answer = ask(folder, &question)
        .map_err(|error| format!("no credential for {host}: the agent of this VM does not answer ({error})"))?;
    match answer {
        HostAnswer::GitCredential { username, password } => {
            let text = format!("username={username}\npassword={password}\n");
            io::stdout()
                .lock()
                .write_all(text.as_bytes())
                .map_err(|error| error.to_string())
        }
        HostAnswer::Failed { message } => Err(format!("no credential for {host}: {message}")),
        HostAnswer::Nothing | HostAnswer::SshAgent { .. } => Ok(()),
    }
}

/// What git asks for, as `key=value` in each line; `None` when it names no host.
fn question(input: impl io::Read) -> io::Result<Option<(GuestQuestion, String)>> {
    let (mut protocol, mut host, mut username) = (None, None, None);
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    for line in BufReader::new(input.take(limit)).lines() {
        let line = line?;
        match line.split_once('=') {
            _ if line.is_empty() => break,
            Some(("protocol", value)) => protocol = Some(value.to_owned()),
            Some(("host", value)) => host = Some(value.to_owned()),
            Some(("username", value)) => username = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(protocol.zip(host).map(|(protocol, host)| {
        let question = GuestQuestion::GitCredential {
            protocol,
            host: host.clone(),
            username,
        };
        (question, host)
    }))
}

fn ask(folder: &std::path::Path, question: &GuestQuestion) -> io::Result<HostAnswer> {
    let mut stream = UnixStream::connect(folder.join(SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_line(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_is_read_as_git_writes_it() {
        let read = |text: &str| question(text.as_bytes()).unwrap();
        let (asked, host) =
            read("protocol=https\nhost=h:8443\npath=a/b\nusername=u\nwwwauth[]=Basic\n\nhost=x\n").unwrap();
        let wanted = GuestQuestion::GitCredential {
            protocol: "https".to_owned(),
            host: "h:8443".to_owned(),
            username: Some("u".to_owned()),
        };
        assert_eq!((asked, host.as_str()), (wanted, "h:8443"));
        for text in ["", "host=h\n", "protocol=https\n", "\nprotocol=https\nhost=h\n"] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
