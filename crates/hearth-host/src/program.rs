//! Running helper programs: where they are looked for, and how long they may take. Knows nothing of VMs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Where programs are looked for besides PATH: an ordinary user's PATH often lacks the folders in which Debian keeps `nft`.
const EXTRA_PATHS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How long a short helper may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(30);

/// PATH for helper programs: ours, and the folders of [`EXTRA_PATHS`].
pub fn search_path() -> OsString {
    let own = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let folders = std::env::split_paths(&own).chain(EXTRA_PATHS.iter().map(PathBuf::from));
    std::env::join_paths(folders).unwrap_or(own)
}

/// Where a program is, if it is installed.
pub fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A command with nothing of the server's environment but PATH: what the server was given (keys, tokens) is no helper's business.
/// A bare name is looked up here: with a PATH of its own the standard library starts only a full path without copying the page
/// tables of the whole server first, which takes milliseconds.
pub fn clean(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    let is_bare = program.components().count() == 1 && program.is_relative();
    let found = program.to_str().filter(|_| is_bare).and_then(find);
    let mut command = Command::new(found.as_deref().unwrap_or(program));
    command
        .env_clear()
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// Runs a short helper to its end, with `input` on its standard input; past the deadline it is killed.
pub async fn run(mut command: Command, input: &[u8]) -> std::io::Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends without reading its input says why on stderr; that is the better message.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(RUN_TIMEOUT, work).await {
        Ok(output) => output,
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer within {} s", RUN_TIMEOUT.as_secs()),
        )),
    }
}

/// The last line a program wrote to stderr, for a person.
pub fn last_output(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("it printed no reason").to_owned()
}
