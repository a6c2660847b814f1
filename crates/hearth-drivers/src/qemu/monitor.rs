//! QEMU's monitor (QMP): short conversations, one connection each, because the monitor serves one client at a time.

use std::future::Future;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::folder::VmFolder;
use super::qmp::{Event, Qmp};
use crate::vm_user::VmUser;

/// Name of the monitor's socket in the VM's `run` folder.
const SOCKET: &str = "qmp.sock";

/// What the whole machine is doing, in QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RunState {
    Running,
    Paused,
    /// The disk could not be written.
    IoError,
    #[serde(untagged)]
    Other(String),
}

impl RunState {
    /// QEMU's name for it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::Other(name) => name,
        }
    }
}

/// Where the memory of a machine is whose state is saved or loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryIs {
    /// In a file of its own, and not in the state.
    InItsFile,
    /// In the file of the state, each page at a place of its own.
    InTheState,
}

/// Between two looks whether a save has ended.
const SAVE_CHECK: Duration = Duration::from_millis(2);
/// A machine that changes its memory faster than that is written is stopped after so long.
const LIVE: Duration = Duration::from_secs(3);
/// What is left of the memory is written while the machine is stopped when that takes no longer, as QEMU expects.
const DOWNTIME_MS: u64 = 100;
/// What QEMU calls a machine that is stopped because it was saved, and one whose save is about to end.
pub(super) const AFTER_A_SAVE: &str = "postmigrate";
const ENDING_A_SAVE: &str = "finish-migrate";
/// What a machine needs that is saved while it runs, in QEMU's words: it stops before the end, and each page has a place in the file.
const LIVE_CAPABILITIES: [&str; 2] = ["pause-before-switchover", "mapped-ram"];
/// Bytes in a second that no disk reaches.
const UNLIMITED: u64 = 1 << 50;

/// A conversation with one VM's monitor. It ends at its deadline, wherever it is then.
pub(super) struct Monitor {
    qmp: Qmp<UnixStream>,
    deadline: Instant,
}

impl Monitor {
    /// Connects and says hello; everything in this conversation must happen within `time`.
    pub(super) async fn open(folder: &VmFolder, user: &VmUser, time: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + time;
        let hello = async {
            let stream = folder.connect(SOCKET, user).await?;
            Qmp::open(stream).await
        };
        let qmp = until(deadline, hello).await?;
        Ok(Self { qmp, deadline })
    }

    /// Allows another stretch of time from now.
    pub(super) fn extend(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    async fn run(&mut self, name: &str, arguments: Value) -> io::Result<Value> {
        until(self.deadline, self.qmp.call(name, arguments)).await
    }

    /// What the whole machine is doing.
    pub(super) async fn state(&mut self) -> io::Result<RunState> {
        let answer = self.run("query-status", json!({})).await?;
        Ok(serde_json::from_value(answer["status"].clone())?)
    }

    /// Pauses the processors. All the guest's writes have reached its files then.
    pub(super) async fn stop(&mut self) -> io::Result<()> {
        self.run("stop", json!({})).await.map(drop)
    }

    /// Resumes them.
    pub(super) async fn cont(&mut self) -> io::Result<()> {
        self.run("cont", json!({})).await.map(drop)
    }

    /// Puts an empty layer, the file `path` as QEMU sees it, above the node `below`. `node` is what the layer is called
    /// from then on, and what the guest writes to.
    pub(super) async fn add_layer(&mut self, path: &str, node: &str, below: &str) -> io::Result<()> {
        let file = json!({ "driver": "file", "filename": path, "cache": { "no-flush": true }, "discard": "unmap" });
        let layer = json!({
            "driver": "qcow2", "node-name": node, "file": file, "backing": Value::Null,
            "cache": { "no-flush": true }, "discard": "unmap", "detect-zeroes": "unmap",
        });
        self.run("blockdev-add", layer).await?;
        let snapshot = json!({ "node": below, "overlay": node });
        let done = self.run("blockdev-snapshot", snapshot).await;
        if done.is_err() {
            // Else its name would be taken at the next attempt.
            drop(self.run("blockdev-del", json!({ "node-name": node })).await);
        }
        done.map(drop)
    }

    /// Writes the devices' state, without the memory that lies in a shared file, to the file `path` as QEMU sees it. The
    /// machine must be stopped, and is resumed with `cont`.
    pub(super) async fn save_state(&mut self, path: &str) -> io::Result<()> {
        self.prepare_migration(MemoryIs::InItsFile, Vec::new()).await?;
        let save = json!({ "uri": format!("file:{path}") });
        self.run("migrate", save).await?;
        self.saved().await
    }

    /// The same, however the machine was saved before, and as fast as the disk takes it.
    pub(super) async fn save_stopped(&mut self, path: &str) -> io::Result<()> {
        self.leave_saved_state().await?;
        let fast = json!({ "max-bandwidth": UNLIMITED });
        self.run("migrate-set-parameters", fast).await?;
        // What an earlier save in the other way has left on.
        let capabilities = self.run("query-migrate-capabilities", json!({})).await?;
        let left = capabilities.as_array().into_iter().flatten().filter(|known| {
            let name = known["capability"].as_str().unwrap_or_default();
            known["state"] == json!(true) && LIVE_CAPABILITIES.contains(&name)
        });
        let off: Vec<Value> = left
            .map(|known| json!({ "capability": known["capability"], "state": false }))
            .collect();
        if !off.is_empty() {
            self.run("migrate-set-capabilities", json!({ "capabilities": off }))
                .await?;
        }
        self.save_state(path).await
    }

    /// A machine that was saved and has not run since: QEMU saves none twice without a moment between.
    async fn leave_saved_state(&mut self) -> io::Result<()> {
        if self.state().await?.name() == AFTER_A_SAVE {
            self.cont().await?;
            self.stop().await?;
        }
        Ok(())
    }

    /// Begins to write the devices' state and all of the memory to one file; see [`memory_file`](super::memory_file). The machine continues
    /// while most of it is written; it is stopped when this returns, and then nothing is missing but [`Monitor::end_save_all`].
    pub(super) async fn begin_save_all(&mut self, path: &str) -> io::Result<()> {
        self.leave_saved_state().await?;
        // Without it QEMU writes no more than 128 MiB in a second, as to a network.
        let fast = json!({ "max-bandwidth": UNLIMITED, "downtime-limit": DOWNTIME_MS });
        self.run("migrate-set-parameters", fast).await?;
        let waits = json!({ "capability": LIVE_CAPABILITIES[0], "state": true });
        self.prepare_migration(MemoryIs::InTheState, vec![waits]).await?;
        let save = json!({ "uri": format!("file:{path}") });
        self.run("migrate", save).await?;
        let mut live_until = Some(Instant::now() + LIVE);
        loop {
            let limit = live_until.map_or(self.deadline, |until| until.min(self.deadline));
            match tokio::time::timeout_at(limit, self.qmp.event()).await {
                Ok(event) => match migration_status(&event?) {
                    Some("pre-switchover") => return Ok(()),
                    Some("failed" | "cancelled") => return Err(self.why_not_saved().await?),
                    _ => {}
                },
                // It changes its memory faster than that is written.
                Err(_) if live_until.take().is_some() && Instant::now() < self.deadline => self.stop().await?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Writes the rest. The machine is resumed with `cont`.
    pub(super) async fn end_save_all(&mut self) -> io::Result<()> {
        self.run("migrate-continue", json!({ "state": "pre-switchover" }))
            .await?;
        self.saved().await
    }

    /// Waits until a save has ended.
    async fn saved(&mut self) -> io::Result<()> {
        if !self.migrated().await? {
            return Err(self.why_not_saved().await?);
        }
        // QEMU says that it is done a moment before it can be resumed: until then it refuses `cont`.
        while self.state().await?.name() == ENDING_A_SAVE {
            tokio::time::sleep(SAVE_CHECK).await;
        }
        Ok(())
    }

    async fn why_not_saved(&mut self) -> io::Result<io::Error> {
        let info = self.run("query-migrate", json!({})).await?;
        let why = info["error-desc"].as_str().unwrap_or("QEMU gives no reason");
        Ok(io::Error::other(why.to_owned()))
    }

    /// Breaks off a save that nobody waits for any more, if there is one.
    pub(super) async fn end_save(&mut self) -> io::Result<()> {
        self.run("migrate_cancel", json!({})).await?;
        loop {
            let info = self.run("query-migrate", json!({})).await?;
            if !matches!(
                info["status"].as_str(),
                Some("setup" | "active" | "device" | "pre-switchover" | "cancelling")
            ) {
                return Ok(());
            }
            tokio::time::sleep(SAVE_CHECK).await;
        }
    }

    /// Reads what [`Monitor::save_state`] wrote, or what was made of what [`Monitor::end_save_all`] did, into a machine that was started for
    /// it.
    pub(super) async fn load_state(&mut self, path: &str, memory: MemoryIs) -> io::Result<()> {
        self.prepare_migration(memory, Vec::new()).await?;
        let load = json!({ "uri": format!("file:{path}") });
        self.run("migrate-incoming", load).await?;
        if self.migrated().await? {
            return Ok(());
        }
        // It says why on its way out.
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn prepare_migration(&mut self, memory: MemoryIs, more: Vec<Value>) -> io::Result<()> {
        let mut capabilities = more;
        capabilities.extend([
            json!({ "capability": "x-ignore-shared", "state": memory == MemoryIs::InItsFile }),
            json!({ "capability": "events", "state": true }),
        ]);
        // Not named otherwise: QEMU before 9.0 does not know it.
        if memory == MemoryIs::InTheState {
            capabilities.push(json!({ "capability": LIVE_CAPABILITIES[1], "state": true }));
        }
        self.run("migrate-set-capabilities", json!({ "capabilities": capabilities }))
            .await?;
        self.qmp.forget_events();
        Ok(())
    }

    /// Waits until a migration has ended; false when it has failed.
    async fn migrated(&mut self) -> io::Result<bool> {
        loop {
            let event = until(self.deadline, self.qmp.event()).await?;
            match migration_status(&event) {
                Some("completed") => return Ok(true),
                Some("failed" | "cancelled") => return Ok(false),
                _ => {}
            }
        }
    }
}

/// What an event says of a save or a load.
fn migration_status(event: &Event) -> Option<&str> {
    (event.name == "MIGRATION")
        .then(|| event.data["status"].as_str())
        .flatten()
}

async fn until<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_qemu_keep_their_names() {
        for name in ["running", "paused", "io-error", "guest-panicked"] {
            let state: RunState = serde_json::from_value(json!(name)).unwrap();
            assert_eq!(state.name(), name);
            assert_eq!(matches!(state, RunState::Other(_)), name == "guest-panicked");
        }
    }
}
