//! Work with one instance: commands, the live log, lease and release.

use std::time::Duration;

use reqwest::Method;

use super::call::Repeat;
use super::stream::{self, ExecStream, FollowStream};
use super::{Client, ClientError};
use crate::claim::{ExtendRequest, Heartbeat, Paused, Released};
use crate::exec::{ExecReply, ExecRequest};
use crate::explain::ClaimExplained;
use crate::ids::InstanceId;
use crate::instance::{BootEnded, InstanceView};

/// Moving the memory of a large VM to a slow disk, or back, may take so long.
const DISK_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// What the answer may take beyond the command's own timeout.
const EXEC_MARGIN: Duration = Duration::from_secs(60);
/// The media type of a stream of events.
const EVENT_STREAM: &str = "text/event-stream";

impl Client {
    /// An instance with what is inside: checkouts, named commands, what the repositories' settings files say.
    ///
    /// # Errors
    /// As every call.
    pub async fn view_instance(&self, id: &InstanceId) -> Result<InstanceView, ClientError> {
        self.get(&["instances", id.as_str()]).read().await
    }

    /// Ends the boot of an instance; its record stays.
    ///
    /// # Errors
    /// As every call; 409 for one that is claimed or stands ready in its pool.
    pub async fn end_boot(&self, id: &InstanceId) -> Result<BootEnded, ClientError> {
        self.call(Method::DELETE, &["instances", id.as_str()]).read().await
    }

    /// Why a claim got this instance, and where its time went.
    ///
    /// # Errors
    /// As every call.
    pub async fn explain_claim(&self, id: &InstanceId) -> Result<ClaimExplained, ClientError> {
        self.get(&["instances", id.as_str(), "claim"]).read().await
    }

    /// Gives an instance back: its VM is destroyed.
    ///
    /// # Errors
    /// As every call.
    pub async fn release(&self, id: &InstanceId) -> Result<Released, ClientError> {
        self.post(&["instances", id.as_str(), "release"]).read().await
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// As every call.
    pub async fn heartbeat(&self, id: &InstanceId) -> Result<Heartbeat, ClientError> {
        self.post(&["instances", id.as_str(), "heartbeat"])
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    /// Lets the lease end later by so many minutes.
    ///
    /// # Errors
    /// As every call.
    pub async fn extend_claim(&self, id: &InstanceId, minutes: u64) -> Result<Heartbeat, ClientError> {
        self.post(&["instances", id.as_str(), "extend"])
            .json(&ExtendRequest { minutes })?
            .read()
            .await
    }

    /// Pauses a claimed VM; the next call into it resumes it. `force`: also when calls are under way in it, which then wait, or end when
    /// it is paused `to_disk`.
    ///
    /// # Errors
    /// As every call; 409 when calls are under way in it, or it has ended.
    pub async fn pause(&self, id: &InstanceId, force: bool, to_disk: bool) -> Result<Paused, ClientError> {
        let mut call = self
            .post(&["instances", id.as_str(), "pause"])
            .query("force", if force { "true" } else { "false" });
        if to_disk {
            call = call.query("toDisk", "true");
        }
        call.timeout(Some(DISK_PATIENCE)).repeat(Repeat::Harmless).read().await
    }

    /// Resumes a claimed VM; one that runs stays as it is.
    ///
    /// # Errors
    /// As every call; 409 for one that has ended.
    pub async fn resume(&self, id: &InstanceId) -> Result<Paused, ClientError> {
        self.post(&["instances", id.as_str(), "resume"])
            .timeout(Some(DISK_PATIENCE))
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    /// Runs a command and waits for its end.
    ///
    /// # Errors
    /// As every call. A command that fails is no error: look at the reply.
    pub async fn exec(&self, id: &InstanceId, body: &ExecRequest) -> Result<ExecReply, ClientError> {
        let timeout = body
            .timeout_seconds
            .map(|seconds| Duration::from_secs(seconds).saturating_add(EXEC_MARGIN));
        self.post(&["instances", id.as_str(), "exec"])
            .json(body)?
            .timeout(timeout)
            .read()
            .await
    }

    /// Runs a command and gives its output as it comes. Dropping the stream ends the command.
    ///
    /// # Errors
    /// As every call.
    pub async fn exec_stream(&self, id: &InstanceId, body: &ExecRequest) -> Result<ExecStream, ClientError> {
        let call = self
            .post(&["instances", id.as_str(), "exec"])
            .json(body)?
            .timeout(None)
            .accept(EVENT_STREAM);
        Ok(stream::exec_events(self.address(), call.open().await?))
    }

    /// Follows an instance while it is made: first all that has happened so far, then live, to the last event (`ended`).
    ///
    /// # Errors
    /// As every call.
    pub async fn follow(&self, id: &InstanceId) -> Result<FollowStream, ClientError> {
        let call = self
            .get(&["instances", id.as_str(), "follow"])
            .timeout(None)
            .accept(EVENT_STREAM);
        Ok(stream::follow_events(self.address(), call.open().await?))
    }
}
