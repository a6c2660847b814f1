//! QEMU's monitor (QMP): short conversations, one connection each, because the monitor serves one client at a time.

use std::io;
use std::time::Duration;

use qapi::futures::{QapiStream, QmpStreamTokio};
use qapi::qmp;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use super::folder::VmFolder;
use crate::program::VmUser;

/// Name of the monitor's socket in the VM's `run` folder.
const SOCKET: &str = "qmp.sock";

/// A conversation with one VM's monitor.
pub(super) struct Monitor {
    stream: QapiStream<QmpStreamTokio<ReadHalf<UnixStream>>, QmpStreamTokio<WriteHalf<UnixStream>>>,
}

impl Monitor {
    /// Connects and says hello within the deadline.
    pub(super) async fn open(folder: &VmFolder, user: &VmUser, deadline: Duration) -> io::Result<Self> {
        let hello = async {
            let stream = folder.connect(SOCKET, user).await?;
            let stream = QmpStreamTokio::open(stream).await?.negotiate().await?;
            Ok(Self { stream })
        };
        tokio::time::timeout(deadline, hello)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the guest's processors run.
    pub(super) async fn is_running(&mut self, deadline: Duration) -> io::Result<bool> {
        let status = tokio::time::timeout(deadline, self.stream.execute(qmp::query_status {})).await;
        Ok(status.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.running)
    }
}
