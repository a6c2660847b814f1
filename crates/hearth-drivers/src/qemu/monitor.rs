//! QEMU's monitor (QMP): short conversations, one connection each, because the monitor serves one client at a time.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use qapi::futures::{QapiEvents, QapiService, QmpStreamTokio};
use qapi::qmp::{self, Event, MigrationStatus, RunState};
use qapi::{Command, ExecuteError};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::folder::VmFolder;
use crate::program::VmUser;

/// Name of the monitor's socket in the VM's `run` folder.
const SOCKET: &str = "qmp.sock";

type Reader = QmpStreamTokio<ReadHalf<UnixStream>>;
type Writer = QmpStreamTokio<WriteHalf<UnixStream>>;

/// `blockdev-add`, with a `backing` of null: that is "nothing yet", which qapi's own type cannot say.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct AddNode(Value);

impl Command for AddNode {
    const NAME: &'static str = "blockdev-add";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}

impl qmp::QmpCommand for AddNode {}

/// A conversation with one VM's monitor. It ends at its deadline, wherever it is then.
pub(super) struct Monitor {
    service: QapiService<Writer>,
    events: QapiEvents<Reader>,
    /// Events that came while an answer was waited for.
    seen: VecDeque<Event>,
    deadline: Instant,
}

impl Monitor {
    /// Connects and says hello; everything in this conversation must happen within `time`.
    pub(super) async fn open(folder: &VmFolder, user: &VmUser, time: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + time;
        let hello = async {
            let stream = folder.connect(SOCKET, user).await?;
            QmpStreamTokio::open(stream).await?.negotiate().await
        };
        let (service, events) = until(deadline, hello).await?.into_parts();
        Ok(Self {
            service,
            events,
            seen: VecDeque::new(),
            deadline,
        })
    }

    /// Allows another stretch of time from now.
    pub(super) fn extend(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    async fn run<C: Command>(&mut self, command: C) -> io::Result<C::Ok>
    where
        Writer: futures::Sink<qapi::Execute<C, u32>, Error = io::Error> + Unpin,
    {
        let call = self.service.execute(command);
        tokio::pin!(call);
        let (events, seen) = (&mut self.events, &mut self.seen);
        let answer = async {
            loop {
                tokio::select! {
                    biased;
                    answer = &mut call => return answer.map_err(refusal),
                    event = events.next() => seen.push_back(event.ok_or(io::ErrorKind::UnexpectedEof)??),
                }
            }
        };
        until(self.deadline, answer).await
    }

    /// What the whole machine is doing.
    pub(super) async fn state(&mut self) -> io::Result<RunState> {
        Ok(self.run(qmp::query_status {}).await?.status)
    }

    /// Lets the processors stand still. All the guest's writes have reached its files then.
    pub(super) async fn stop(&mut self) -> io::Result<()> {
        self.run(qmp::stop {}).await.map(drop)
    }

    /// Lets them go on.
    pub(super) async fn cont(&mut self) -> io::Result<()> {
        self.run(qmp::cont {}).await.map(drop)
    }

    /// Puts an empty layer, the file `path` as QEMU sees it, above the node `below`. `node` is what the layer is called
    /// from then on, and what the guest writes to.
    pub(super) async fn add_layer(&mut self, path: &str, node: &str, below: &str) -> io::Result<()> {
        let file = json!({ "driver": "file", "filename": path, "cache": { "no-flush": true }, "discard": "unmap" });
        let layer = json!({
            "driver": "qcow2", "node-name": node, "file": file, "backing": Value::Null,
            "cache": { "no-flush": true }, "discard": "unmap", "detect-zeroes": "unmap",
        });
        self.run(AddNode(layer)).await?;
        let snapshot = json!({ "node": below, "overlay": node });
        let done = self
            .run(serde_json::from_value::<qmp::blockdev_snapshot>(snapshot)?)
            .await;
        if done.is_err() {
            // Else its name would be taken at the next attempt.
            let gone = serde_json::from_value::<qmp::blockdev_del>(json!({ "node-name": node }))?;
            drop(self.run(gone).await);
        }
        done.map(drop)
    }

    /// Writes the devices' state, without the memory that lies in a shared file, to the file `path` as QEMU sees it. The
    /// machine must be stopped, and goes on with `cont`.
    pub(super) async fn save_state(&mut self, path: &str) -> io::Result<()> {
        self.prepare_migration().await?;
        let save = json!({ "uri": format!("file:{path}") });
        self.run(serde_json::from_value::<qmp::migrate>(save)?).await?;
        if self.migrated().await? {
            return Ok(());
        }
        let info = self.run(qmp::query_migrate {}).await?;
        let why = info.error_desc.unwrap_or_else(|| "QEMU gives no reason".into());
        Err(io::Error::other(why))
    }

    /// Reads what [`Monitor::save_state`] wrote, into a machine that was started for it.
    pub(super) async fn load_state(&mut self, path: &str) -> io::Result<()> {
        self.prepare_migration().await?;
        let load = json!({ "uri": format!("file:{path}") });
        self.run(serde_json::from_value::<qmp::migrate_incoming>(load)?).await?;
        if self.migrated().await? {
            return Ok(());
        }
        // It says why on its way out.
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn prepare_migration(&mut self) -> io::Result<()> {
        let capabilities = json!({ "capabilities": [
            { "capability": "x-ignore-shared", "state": true },
            { "capability": "events", "state": true },
        ] });
        self.run(serde_json::from_value::<qmp::migrate_set_capabilities>(capabilities)?)
            .await?;
        self.seen.clear();
        Ok(())
    }

    /// Waits until a migration has ended; false when it has failed.
    async fn migrated(&mut self) -> io::Result<bool> {
        loop {
            if let Event::MIGRATION { data, .. } = self.next_event().await? {
                match data.status {
                    MigrationStatus::completed => return Ok(true),
                    MigrationStatus::failed | MigrationStatus::cancelled => return Ok(false),
                    _ => {}
                }
            }
        }
    }

    async fn next_event(&mut self) -> io::Result<Event> {
        if let Some(event) = self.seen.pop_front() {
            return Ok(event);
        }
        let events = &mut self.events;
        let next = async { events.next().await.ok_or(io::ErrorKind::UnexpectedEof)? };
        until(self.deadline, next).await
    }
}

async fn until<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn refusal(error: ExecuteError) -> io::Error {
    match error {
        ExecuteError::Io(error) => error,
        ExecuteError::Qapi(error) => io::Error::other(error.desc),
    }
}
