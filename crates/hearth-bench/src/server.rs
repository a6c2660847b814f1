//! A server that is measured: the release binary, in a process group of its own, so that Ctrl-C reaches us first.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hearth_api::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks whether it answers.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// Where the store is, when it is not in the data folder.
const DATABASE: &str = "HEARTH_DATABASE";

pub(crate) struct Server {
    child: Child,
    pub(crate) client: Client,
    pub(crate) url: String,
    pub(crate) data: PathBuf,
    hearth: PathBuf,
}

impl Server {
    /// `database`: none for SQLite. `args`: more of `hearth serve`.
    pub(crate) async fn start(hearth: &Path, data: &Path, database: Option<&str>, args: &[&str]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        fs::create_dir_all(data)?;
        let log = File::create(data.join("server.log"))?;
        let mut child = command(hearth, data)
            .args(["serve", "--listen", &address, "--requests-per-second", "0"])
            .args(args)
            .envs(database.map(|database| (DATABASE, database)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("the server cannot be started")?;
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("the server ended at once ({status}); its log is in {}", data.display());
            }
            if let Ok(token) = fs::read_to_string(data.join("admin-token")) {
                let url = format!("http://{address}");
                let client = Client::new(&url, token.trim())?;
                if client.health().await.is_ok() {
                    return Ok(Self {
                        child,
                        client,
                        url,
                        data: data.to_owned(),
                        hearth: hearth.to_owned(),
                    });
                }
            }
            if begin.elapsed() > START_LIMIT {
                bail!("the server did not answer in time; its log is in {}", data.display());
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// A command of the binary for this server, as a person would type it.
    pub(crate) fn command(&self) -> Command {
        command(&self.hearth, &self.data)
    }

    /// The environment in which a program that starts `hearth` itself reaches this server.
    pub(crate) fn set_env(&self, command: &mut Command) {
        set_env(command, &self.data);
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id() {
            // It may have ended between the two lines.
            let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM);
        }
        let ended = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        ended.context("the server does not stop")??;
        Ok(())
    }
}

fn command(hearth: &Path, data: &Path) -> Command {
    let mut command = Command::new(hearth);
    command.arg("--data-dir").arg(data);
    set_env(&mut command, data);
    command
}

fn set_env(command: &mut Command, data: &Path) {
    // A server of the person's own must not get the bench's commands.
    for name in ["HEARTH_URL", "HEARTH_TOKEN", DATABASE] {
        command.env_remove(name);
    }
    command.env("HEARTH_RUNTIME_DIR", data.join("run"));
}
