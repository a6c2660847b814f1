//! A command that outlives its caller, and the agent: its output goes to a file, and it only has to survive its first
//! moments before the caller learns that it runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_guest::{Detach, ExecEnd, FrameKind};

use super::attached::end_all;
use super::launch::{Launcher, Outputs, Started};
use super::not_started::NotStarted;
use super::plan::Plan;
use super::{Execs, Output, exited, time_is_up};

/// How much of the log a command that crashed at once is shown with: its end.
const TAIL_BYTES: u64 = 16 * 1024;

/// Folders made for a log.
const FOLDER_MODE: u32 = 0o755;

pub(super) async fn run(execs: Arc<Execs>, plan: Plan, timeout_ms: Option<u64>, detach: Detach, output: Output) {
    let start = Instant::now();
    let _running = execs.pre_started.begin();
    let opened = open_log(Path::new(&detach.log_path));
    let (log, before, outputs) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let fault = NotStarted::ours(format!("the log {} cannot be written: {error}", detach.log_path));
            return output.end(fault.into()).await;
        }
    };
    let Plan { order, script } = plan;
    let started = match Launcher::start(&execs.cgroups, outputs) {
        Ok(launcher) => launcher.become_command(&execs.cgroups, order).await,
        Err(fault) => Err(fault),
    };
    let Started {
        mut child,
        tree,
        status,
        ..
    } = match started {
        Ok(started) => started,
        Err(fault) => return output.end(fault.into()).await,
    };
    if let Some(fault) = status.started().await {
        // It says so as its last act.
        drop(child.wait().await);
        execs.cgroups.retire(tree.cgroup);
        return output.end(fault.into()).await;
    }
    let grace = tokio::time::timeout(Duration::from_millis(detach.grace_ms), child.wait()).await;
    match grace {
        Ok(status) => {
            execs.cgroups.retire(tree.cgroup);
            if let Ok(tail) = tail_since(log, before) {
                output.send(FrameKind::Stdout, &tail).await;
            }
            output
                .end(match status {
                    Ok(status) => exited(status, start),
                    Err(error) => NotStarted::ours(format!("the command was lost: {error}")).into(),
                })
                .await;
        }
        Err(_) => {
            output
                .end(ExecEnd::Detached {
                    pid: tree.leader.as_raw().unsigned_abs(),
                })
                .await;
            let execs = Arc::clone(&execs);
            // Not one of the tasks that the agent waits for when it is asked to end.
            tokio::spawn(async move {
                let timed_out = tokio::select! {
                    _ = child.wait() => false,
                    () = time_is_up(start, timeout_ms) => true,
                };
                if timed_out {
                    end_all(&tree, &mut child).await;
                }
                execs.cgroups.retire(tree.cgroup);
                drop(script);
            });
        }
    }
}

/// Opens the log three times: to read its end, and for the command's two outputs. Also says how long it was.
fn open_log(path: &Path) -> io::Result<(File, u64, Outputs)> {
    if !path.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not an absolute path",
        ));
    }
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    }
    let log = OpenOptions::new().create(true).append(true).open(path)?;
    let before = log.metadata()?.len();
    let outputs = Outputs {
        stdout: Stdio::from(log.try_clone()?),
        stderr: Stdio::from(log),
    };
    Ok((File::open(path)?, before, outputs))
}

/// The last of what was written after `before`.
fn tail_since(mut log: File, before: u64) -> io::Result<Vec<u8>> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(before.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut tail = Vec::new();
    log.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}
