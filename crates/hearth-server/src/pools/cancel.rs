//! A person ends one boot: what it did until then stays in its record, its VM goes.

use std::time::Duration;

use hearth_api::ids::InstanceId;
use hearth_core::redact::Redacted;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::step_record::StepRecord;
use hearth_core::world::Failure;
use jiff::Timestamp;

use super::act::Actor;
use crate::builds::end_request::EndRequest;
use crate::secrets::redactors;
use crate::store::{End, InstanceRow, Moved, StoreError};

/// A step that was asked to end has this long to write its entry.
const PATIENCE: Duration = Duration::from_secs(3);
/// A run that was asked to end is gone after this long, or it has come to its end meanwhile.
const LONGEST_END: Duration = Duration::from_secs(10);

/// The result of a request to end a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// A boot was under way, and was ended.
    Boot,
    /// It had ended before; the VM that was kept to look into goes now.
    Vm,
    /// There was nothing left to end.
    Nothing,
    /// It is no boot that can be ended: it is ready for claims, or claimed.
    InUse(InstanceState),
}

/// Resolves some time after a run was asked to end, for one whose step does not hear it.
pub(super) async fn end_after_patience(end: &EndRequest) -> Failure {
    let failure = end.asked().await;
    tokio::time::sleep(PATIENCE).await;
    failure
}

impl Actor {
    /// Ends the boot of an instance; its record says by whom.
    pub async fn cancel_boot(&self, id: &InstanceId, by: &str) -> Result<Ended, StoreError> {
        let store = &self.store;
        let Some(row) = store.instance(id).await? else {
            return Ok(Ended::Nothing);
        };
        match row.state {
            InstanceState::Provisioning => {}
            InstanceState::Ready if row.purpose.is_test() => return self.end_kept_vm(&row, by).await,
            InstanceState::Failed => return self.end_kept_vm(&row, by).await,
            InstanceState::Ready | InstanceState::Claimed => return Ok(Ended::InUse(row.state)),
            InstanceState::Retiring | InstanceState::Archived | InstanceState::Deleting => return Ok(Ended::Nothing),
        }
        let redactor = redactors::of_project(store, &row.project).await?;
        let reason = redactor.redact(&format!("cancelled by {by}"));
        self.end_run(id, &reason).await;
        // No run was registered, or one began between the two reads.
        let failure = Failure {
            kind: FailureKind::Cancelled,
            reason: reason.clone(),
        };
        let end = End::Failed(&failure);
        if store.end_instance(id, None, end, Timestamp::now()).await? != Moved::Lost {
            self.end_run(id, &reason).await;
            self.tell_end(id).await?;
        }
        let Some(row) = store.instance(id).await? else {
            return Ok(Ended::Nothing);
        };
        tracing::info!(instance = %id, project = %row.project, state = row.state.as_str(), "a boot was to end");
        self.endings.changed(&row.project, id);
        Ok(match row.state {
            InstanceState::Ready | InstanceState::Claimed => Ended::InUse(row.state),
            _ => Ended::Boot,
        })
    }

    async fn end_run(&self, id: &InstanceId, reason: &Redacted) {
        if let Some(done) = self.tasks.ask_to_end(id, reason) {
            // One that is still there then is freezing its VM, say: its row has failed all the same.
            drop(tokio::time::timeout(LONGEST_END, done.cancelled()).await);
        }
    }

    async fn end_kept_vm(&self, row: &InstanceRow, by: &str) -> Result<Ended, StoreError> {
        let (store, now) = (&self.store, Timestamp::now());
        let why = format!("removed by {by}");
        let end = End::Retired(&why);
        let moved = store.end_instance(&row.id, Some(row.generation), end, now).await?;
        self.endings.changed(&row.project, &row.id);
        Ok(if moved == Moved::Lost {
            Ended::Nothing
        } else {
            Ended::Vm
        })
    }

    /// Writes the entries of the steps that were cut off.
    pub(super) async fn close_entries(&self, id: &InstanceId, failure: &Failure) -> Result<(), StoreError> {
        let live_logs = &self.live_logs;
        for running in live_logs.progress(id) {
            let record = StepRecord {
                name: running.step,
                error: Some(failure.reason.clone()),
                output: running.output,
                failure: None,
                duration_ms: u64::try_from(running.ran.as_millis()).ok(),
                timestamp: Timestamp::now(),
                metadata: None,
            };
            self.store.append_step(id, &record).await?;
            live_logs.step_ended(id, running.subject.as_deref(), &record);
        }
        Ok(())
    }

    /// Tells the clients that watch how a boot ended whose row another task has moved.
    pub(super) async fn tell_end(&self, id: &InstanceId) -> Result<(), StoreError> {
        let row = self.store.instance(id).await?;
        let status = row.as_ref().and_then(InstanceRow::status);
        self.live_logs.ended(id, status, row.and_then(|row| row.failure_reason));
        Ok(())
    }
}
