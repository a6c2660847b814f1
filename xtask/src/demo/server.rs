//! The demo's server: a child of ours in a process group of its own, so that Ctrl-C reaches us first and we decide the order.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Hearth;
use crate::process;

/// Where a Hearth server listens unless told otherwise.
const USUAL_PORT: u16 = 7717;
/// How long it may take to listen. It opens a small database; a busy machine gets some more.
const START_LIMIT: Duration = Duration::from_secs(60);
/// As much of the log's end as is shown when it does not start.
const SHOWN_LINES: usize = 20;

/// A running server.
pub(super) struct Server {
    child: Child,
    port: u16,
    pub(super) program: PathBuf,
    pub(super) log: PathBuf,
    /// The instance that the demo has claimed.
    pub(super) claimed: Option<String>,
}

impl Server {
    /// Starts it and waits until it answers.
    pub(super) fn start(hearth: &Hearth) -> Result<Self> {
        let port = free_port()?;
        let log = hearth.data.join("server.log");
        let file = File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
        let child = hearth
            .command(&["serve", "--listen", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .context("the server cannot be started")?;
        let mut server = Self {
            child,
            port,
            program: hearth.program.clone(),
            log,
            claimed: None,
        };
        if let Err(error) = server.wait_until_it_answers(hearth) {
            process::end(&mut server.child)?;
            return Err(error);
        }
        Ok(server)
    }

    /// It answers when the binary finds it and a list of its projects comes back.
    fn wait_until_it_answers(&mut self, hearth: &Hearth) -> Result<()> {
        let mut ended = None;
        let answered = process::wait_until(START_LIMIT, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || process::output_of(&mut hearth.command(&["project", "list", "--json"])).is_some()
        })?;
        match ended {
            Some(status) => bail!(
                "the server ended at once ({status}). The end of its log:\n{}",
                self.last_lines()
            ),
            None if answered => Ok(()),
            None => bail!(
                "the server did not answer in time. The end of its log:\n{}",
                self.last_lines()
            ),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Until Ctrl-C; or until the server ends by itself, which is a fault.
    pub(super) fn wait_for_stop(&mut self) -> Result<()> {
        let forever = Duration::MAX;
        let mut ended = None;
        match process::wait_until(forever, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        }) {
            Err(error) if error.is::<process::Interrupted>() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let status = ended.map_or_else(String::new, |status| format!(" ({status})"));
                eprintln!(
                    "the server ended by itself{status}. The end of its log:\n{}",
                    self.last_lines()
                );
                Ok(())
            }
        }
    }

    /// Ends it; its VMs are none of its process's business.
    pub(super) fn stop(mut self) -> Result<()> {
        process::end(&mut self.child).map(drop)
    }
}

/// The usual port if it is free, else any.
fn free_port() -> Result<u16> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    let address = listen(USUAL_PORT)
        .or_else(|_| listen(0))
        .context("no free port on 127.0.0.1")?;
    Ok(address.port())
}
