//! Runs the host's `git`: without a terminal to ask on, with a time limit, and never leaving a process behind.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hearth_core::plain_text::clause;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::repos::sources::Reach;

/// Longest answer that one git command may give, bytes.
pub const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// A transfer slower than this many bytes per second …
const SLOW_BYTES: &str = "1000";
/// … for this many seconds is given up.
const SLOW_SECONDS: &str = "60";

/// Why a git command gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git on the host, or it cannot run.
    #[error("git cannot be run on the host: {0}; install it (`apt-get install git`)")]
    NotRun(#[source] std::io::Error),
    /// The repository is a path on the server, and is not there.
    #[error("the path cannot be read on the server: {0}")]
    NoFolder(#[source] std::io::Error),
    /// The repository's host cannot be connected to.
    #[error("{0}")]
    NoHost(String),
    /// It cannot be kept from reaching more than it may, or cannot run.
    #[error("git cannot be run on the host: {0}")]
    NotConfined(#[source] std::io::Error),
    /// The project's credential for it cannot be used.
    #[error("the project's credential for it cannot be used: {0}")]
    NoCredential(String),
    /// It took too long.
    #[error("git gave no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It said too much.
    #[error("git's answer is longer than {} MiB", MAX_ANSWER >> 20)]
    TooLong,
    /// It said no.
    #[error("{}", if .stderr.is_empty() { "git failed without a message" } else { clause(.stderr) })]
    Failed {
        /// Its last words.
        stderr: String,
        /// How it ended.
        status: ExitStatus,
    },
}

/// A child whose whole process group ends with it: `git fetch` runs helpers that would otherwise continue.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `id` is `None` once the child was waited for; only then could its number mean somebody else.
        if let Some(pid) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // It may just have ended by itself.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// What a git process finds in its environment, beside what all of them do. It may hold a password.
#[derive(Default)]
pub struct Surroundings {
    is_bare: bool,
    reach: Option<Reach>,
    variables: Vec<(&'static str, String)>,
}

/// What a process needs of the server's environment that is nobody's secret.
const HARMLESS: [&str; 6] = [
    "PATH",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

impl Surroundings {
    /// The server's environment and these.
    #[must_use]
    pub fn with_defaults(variables: Vec<(&'static str, String)>) -> Self {
        Self {
            variables,
            ..Self::default()
        }
    }

    /// And these.
    pub fn add(&mut self, more: Vec<(&'static str, String)>) {
        self.variables.extend(more);
    }

    /// These, and of the server's environment only what is nobody's secret. Nothing else is reached.
    #[must_use]
    pub fn bare(variables: Vec<(&'static str, String)>, reach: Reach) -> Self {
        Self {
            is_bare: true,
            reach: Some(reach),
            variables,
        }
    }
}

/// What git said on its two outputs.
#[derive(Debug)]
pub struct Answer {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error: progress and warnings.
    pub stderr: String,
}

/// Runs `git -C folder args…`.
pub async fn git<S: AsRef<OsStr>>(
    folder: &Path,
    args: impl IntoIterator<Item = S>,
    patience: Duration,
) -> Result<Answer, GitError> {
    git_fed(folder, args, Vec::new(), patience).await
}

/// The same with something to read.
pub async fn git_fed<S: AsRef<OsStr>>(
    folder: &Path,
    args: impl IntoIterator<Item = S>,
    input: Vec<u8>,
    patience: Duration,
) -> Result<Answer, GitError> {
    git_in(&Surroundings::default(), folder, args, input, patience).await
}

/// The same in other surroundings.
pub async fn git_in<S: AsRef<OsStr>>(
    surroundings: &Surroundings,
    folder: &Path,
    args: impl IntoIterator<Item = S>,
    input: Vec<u8>,
    patience: Duration,
) -> Result<Answer, GitError> {
    let mut command = Command::new("git");
    if surroundings.is_bare {
        let harmless = HARMLESS.map(|name| std::env::var_os(name).map(|value| (name, value)));
        command.env_clear().envs(harmless.into_iter().flatten());
    }
    command
        .arg("-C")
        .arg(folder)
        .args(args)
        // Environment and not arguments: what is set here holds for the helpers as well.
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "true")
        .env("SSH_ASKPASS", "true")
        .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=20")
        .env("GIT_HTTP_LOW_SPEED_LIMIT", SLOW_BYTES)
        .env("GIT_HTTP_LOW_SPEED_TIME", SLOW_SECONDS)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C.UTF-8")
        // Not for git's helpers.
        .env_remove("HEARTH_WEBHOOK_SECRET")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .envs(surroundings.variables.iter().map(|(name, value)| (name, value)))
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let spawned = match surroundings.reach {
        None => command.spawn().map_err(GitError::NotRun),
        Some(reach) => reach.spawn(command).await.map_err(GitError::NotConfined),
    };
    let mut group = Group(spawned?);
    let stdin = group.0.stdin.take();
    let stdout = group.0.stdout.take();
    let stderr = group.0.stderr.take();
    let run = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A git that does not read says why by itself.
                let _ = stdin.write_all(&input).await;
            }
            Ok(())
        };
        let ((), stdout, stderr) = tokio::try_join!(feed, read(stdout), read(stderr))?;
        let status = group.0.wait().await?;
        Ok::<_, std::io::Error>((stdout, stderr, status))
    };
    let (stdout, stderr, status) = tokio::time::timeout(patience, run)
        .await
        .map_err(|_| GitError::TimedOut(patience))?
        .map_err(GitError::NotRun)?;
    let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
    if stdout.len() as u64 >= MAX_ANSWER {
        return Err(GitError::TooLong);
    }
    if status.success() {
        Ok(Answer { stdout, stderr })
    } else {
        Err(GitError::Failed { stderr, status })
    }
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(from) = from {
        let mut from = BufReader::new(from).take(MAX_ANSWER);
        from.read_to_end(&mut all).await?;
        tokio::io::copy(&mut from.into_inner(), &mut tokio::io::sink()).await?;
    }
    Ok(all)
}
