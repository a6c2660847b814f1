//! A server for one connection, which it has as its input and output: `sshd -i`. It ends with its connection; what was started
//! over it and lives on does so.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use super::Execs;
use super::launch::{Launcher, Outputs};
use super::launcher::{Order, Reads};
use super::process_tree::ProcessTree;
use crate::reply::Fault;

/// How long it may take to say its first word; an emulated VM is slow when a program runs there for the first time.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// What is kept of its complaints.
const COMPLAINT_BYTES: u64 = 2048;
const FIRST_BYTES: usize = 4096;

impl Execs {
    /// The variables of a file.
    pub(crate) async fn variables(&self, file: &str) -> Result<Vec<(String, String)>, String> {
        Ok(self.env_files.read(file).await?.to_vec())
    }

    /// Starts it; comes back when it has said something. Gives what it says, and what takes its input.
    pub(crate) async fn run_server(
        self: Arc<Self>,
        argv: Vec<String>,
    ) -> Result<(impl AsyncRead + Send + use<>, impl AsyncWrite + Unpin + Send + use<>), Fault> {
        let program = argv.first().cloned().unwrap_or_default();
        let failed = |why: &str| {
            let error = std::io::Error::other(why.to_owned());
            Fault::from_io(&format!("{program} does not serve the connection"), &error)
        };
        let order = Order {
            user: None,
            cwd: "/".to_owned(),
            argv,
            env: Vec::new(),
            reads: Reads::Caller,
        };
        let launcher = Launcher::start(&self.cgroups, Outputs::piped()).map_err(|error| failed(&error.reason))?;
        let started = launcher.become_command(&self.cgroups, order).await;
        let mut started = started.map_err(|error| failed(&error.reason))?;
        let (Some(mut stdout), Some(mut stderr)) = (started.stdout.take(), started.stderr.take()) else {
            return Err(failed("it has no outputs"));
        };
        let ProcessTree { cgroup, .. } = started.tree;
        let mut child = started.child;
        let mut first = vec![0; FIRST_BYTES];
        let read = timeout(FIRST_WORD, stdout.read(&mut first)).await;
        let read = match read {
            Ok(Ok(read @ 1..)) => read,
            ended => {
                drop(child.start_kill());
                drop(child.wait().await);
                self.cgroups.retire(cgroup);
                let mut complaint = Vec::new();
                let mut complaints = stderr.take(COMPLAINT_BYTES);
                drop(timeout(Duration::from_secs(1), complaints.read_to_end(&mut complaint)).await);
                let text = String::from_utf8_lossy(&complaint).trim().to_owned();
                return Err(failed(match (ended, text.is_empty()) {
                    (Err(_), true) => "it said nothing in time",
                    (_, true) => "it ended at once",
                    _ => &text,
                }));
            }
        };
        first.truncate(read);
        tokio::spawn(async move {
            // Read to its end: a server whose complaints nobody takes would wait or die of it.
            let complaints = async { drop(tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await) };
            tokio::join!(complaints, async { drop(child.wait().await) });
            self.cgroups.retire(cgroup);
        });
        Ok((Cursor::new(first).chain(stdout), started.stdin))
    }
}
