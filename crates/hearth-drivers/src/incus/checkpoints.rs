//! Checkpoints: a stopped copy of an instance with a snapshot in it, which forks are copies of. It holds a disk, no memory: a fork boots.
//!
//! The copy stands for itself: the VM that was frozen may go. In a cluster whose members have pools of their own, a member gets a copy of
//! a checkpoint when the first fork is placed there; any of them is as good as the first.

use std::collections::BTreeMap;
use std::time::Instant;

use hearth_api::ids::VmId;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::json;

use super::Inner;
use super::api::{ApiError, part};
use super::cluster::{ALONE, target};
use super::instances::{Known, Seen};
use super::model::{self, CheckpointRecord, Instance, SNAPSHOT, Snapshot, VmRecord};
use super::place::Pool;
use crate::{
    CheckpointFault, CheckpointInfo, CheckpointKey, Created, DriverError, ForkPurpose, ForkSpec, ForkStart, VmState,
};

/// One copy of a checkpoint that can be used, as far as its labels say.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) instance: Instance,
    pub(super) record: CheckpointRecord,
}

/// What a VM is frozen as.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) key: &'a CheckpointKey,
    pub(super) labels: &'a BTreeMap<String, String>,
    /// It is of a VM in use, whatever that was made for.
    pub(super) of_instance: bool,
    /// What the caller takes for the VM's parent, of a build.
    pub(super) parent: Option<&'a CheckpointKey>,
}

impl Inner {
    /// Every whole copy whose member is not lost, the oldest first.
    async fn copies(&self, all: Vec<Instance>) -> Vec<Copy> {
        let checkpoints = all.into_iter().filter(|instance| instance.checkpoint().is_some());
        let seen = self.see_all(checkpoints.collect()).await;
        let there = seen.into_iter().filter(|seen| seen.state != Known::Lost);
        let whole = there.filter_map(|Seen { instance, .. }| {
            let record = instance.checkpoint_record()?;
            // Somebody's own copy of it is none of ours.
            (instance.checkpoint().as_ref() == Some(&record.info.key)).then_some(Copy { instance, record })
        });
        let mut whole: Vec<Copy> = whole.collect();
        whole.sort_by(|one, other| {
            let age = |copy: &Copy| (copy.record.info.created, copy.instance.name.clone());
            age(one).cmp(&age(other))
        });
        whole
    }

    /// The copies of one checkpoint.
    async fn copies_of(&self, key: &CheckpointKey, all: Vec<Instance>) -> Result<Vec<Copy>, DriverError> {
        let mut copies = self.copies(all).await;
        copies.retain(|copy| copy.record.info.key == *key);
        if copies.is_empty() {
            return Err(CheckpointFault::Missing { key: key.clone() }.into());
        }
        Ok(copies)
    }

    /// Whether the snapshot in a copy is the one that was made.
    async fn check(&self, copy: &Copy) -> Result<(), DriverError> {
        let key = &copy.record.info.key;
        let damaged = |what: String| DriverError::from(CheckpointFault::Damaged { key: key.clone(), what });
        let path = self.path(&copy.instance.name, &format!("/snapshots/{SNAPSHOT}"));
        let got: Result<Snapshot, ApiError> = self.api.get(&path).await;
        match got {
            Ok(snapshot) if snapshot.created_at == copy.record.frozen_at => Ok(()),
            Ok(_) => Err(damaged(format!(
                "the snapshot of {} is another one",
                copy.instance.name
            ))),
            Err(error) if error.is_not_found() => {
                Err(damaged(format!("the snapshot of {} is gone", copy.instance.name)))
            }
            Err(error) => Err(error.into_driver(format!("the checkpoint {key} could not be looked at"))),
        }
    }

    /// Looks at every copy; one that is whole is enough.
    pub(super) async fn check_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let copies = self.copies_of(key, self.all().await?).await?;
        let mut last = None;
        for copy in &copies {
            match self.check(copy).await {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(()), Err)
    }

    /// One line for each checkpoint, by key.
    pub(super) async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, DriverError> {
        let mut found: BTreeMap<CheckpointKey, CheckpointInfo> = BTreeMap::new();
        for copy in self.copies(self.all().await?).await {
            let used = self.used_at(&copy);
            let info = copy.record.info;
            let known = found.entry(info.key.clone()).or_insert(info);
            known.last_used = known.last_used.max(used);
        }
        Ok(found.into_values().collect())
    }

    /// When a copy was last forked, as its labels say or as we remember.
    fn used_at(&self, copy: &Copy) -> Timestamp {
        let key = &copy.record.info.key;
        let remembered = self.used().get(key).copied();
        let labelled = copy.instance.last_used();
        let made = copy.record.info.last_used;
        [remembered, labelled].into_iter().flatten().fold(made, Timestamp::max)
    }

    /// Notes that a checkpoint was forked. Its label follows, without anybody waiting for it.
    fn note_use(self: &std::sync::Arc<Self>, copy: &Copy) {
        let now = Timestamp::now();
        self.used().insert(copy.record.info.key.clone(), now);
        let (inner, name) = (self.clone(), copy.instance.name.clone());
        tokio::spawn(async move {
            if let Err(error) = inner.label(&name, &model::used(now)).await {
                tracing::debug!(%error, "when a checkpoint was used could not be recorded");
            }
        });
    }

    /// Freezes a VM: one freezing per VM, one maker per key.
    pub(super) async fn freeze(&self, id: &VmId, wanted: &Wanted<'_>) -> Result<CheckpointInfo, DriverError> {
        let _freezing = self.freeze_gates.lock(id.clone()).await;
        let _key = self.key_gates.lock(wanted.key.clone()).await;
        let all = self.all().await?;
        match self.copies_of(wanted.key, all.clone()).await {
            Ok(copies) => {
                for copy in &copies {
                    if self.check(copy).await.is_ok() {
                        let mut info = copy.record.info.clone();
                        info.last_used = self.used_at(copy);
                        return Ok(info);
                    }
                }
            }
            Err(error) if error.checkpoint_fault().is_some() => {}
            Err(error) => return Err(error),
        }
        let vm = self.need_alive(id).await?;
        let record = self.record_of(&vm)?;
        if !wanted.of_instance {
            if !record.checkpointable {
                return Err(DriverError::permanent(format!("{id} was not made to be frozen")));
            }
            if record.parent.as_ref() != wanted.parent {
                return Err(DriverError::permanent(format!(
                    "{id} has another checkpoint as its parent than was said"
                )));
            }
        }
        // What is left of it is damaged, or was never whole.
        for left in all
            .iter()
            .filter(|instance| instance.checkpoint().as_ref() == Some(wanted.key))
        {
            if left.location == vm.instance.location {
                self.remove(&left.name).await?;
            }
        }
        let pool = self.pool().await?;
        let name = model::checkpoint_name(&self.options.installation, wanted.key, &vm.instance.location);
        let making = self.copy_and_freeze(&vm, &record, &name, pool, wanted);
        let info = self.or_remove(&name, making).await?;
        let record = VmRecord {
            parent: Some(wanted.key.clone()),
            ..record
        };
        self.label(id.as_str(), &model::frozen_as(&record)).await?;
        Ok(info)
    }

    async fn copy_and_freeze(
        &self,
        vm: &Seen,
        record: &VmRecord,
        name: &str,
        pool: &Pool,
        wanted: &Wanted<'_>,
    ) -> Result<CheckpointInfo, DriverError> {
        let (installation, key) = (&self.options.installation, wanted.key);
        let failed = |error: ApiError| error.into_driver(format!("{} could not be frozen", vm.instance.name));
        // Where a copy takes its time, the disk must not change meanwhile.
        let stops = !pool.copies.atomic && vm.state == Known::Is(VmState::Running);
        let begin = Instant::now();
        if stops {
            self.set_state(&vm.instance.name, "freeze").await?;
        }
        let body = json!({
            "name": name,
            "type": vm.instance.kind.unwrap_or_default().as_str(),
            "architecture": vm.instance.architecture,
            "profiles": [],
            "source": {
                "type": "copy",
                "source": vm.instance.name,
                "project": self.project,
                "instance_only": true,
                "allow_inconsistent": !pool.copies.atomic,
            },
            "config": model::unfinished_labels(installation, key),
            "devices": self.devices(&pool.name, record.shape, false),
        });
        let path = format!(
            "/1.0/instances?project={}{}",
            part(&self.project),
            target(&vm.instance.location)
        );
        let copied = self.api.run(Method::POST, &path, Some(&body)).await;
        let mut paused_ms = 0;
        if stops {
            self.set_state(&vm.instance.name, "unfreeze").await?;
            paused_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        copied.map_err(failed)?;
        let frozen_at = self.make_snapshot(name).await?;
        let now = Timestamp::now();
        let info = CheckpointInfo {
            key: key.clone(),
            parent: record.parent.clone(),
            labels: wanted.labels.clone(),
            image: record.image.clone(),
            environment: super::environment(&record.image, vm.instance.kind.unwrap_or_default(), record.shape),
            shape: record.shape,
            engine: self.engine().await,
            agent_version: record.agent_version.clone(),
            created: now,
            last_used: now,
            paused_ms,
            bytes: self.disk_bytes(name).await?.max(1),
        };
        let record = CheckpointRecord {
            info: info.clone(),
            of_instance: wanted.of_instance,
            frozen_at,
        };
        self.label(name, &model::whole(&record)).await?;
        Ok(info)
    }

    /// Makes the snapshot in a copy; when Incus says that it was made.
    async fn make_snapshot(&self, name: &str) -> Result<String, DriverError> {
        let failed = |error: ApiError| error.into_driver(format!("the snapshot of {name} could not be made"));
        let body = json!({ "name": SNAPSHOT, "stateful": false });
        let made = self
            .api
            .run(Method::POST, &self.path(name, "/snapshots"), Some(&body))
            .await;
        made.map_err(failed)?;
        let path = self.path(name, &format!("/snapshots/{SNAPSHOT}"));
        let snapshot: Snapshot = self.api.get(&path).await.map_err(failed)?;
        Ok(snapshot.created_at)
    }

    /// Makes a VM that continues from a checkpoint's disk. The caller holds its gate.
    pub(super) async fn fork(self: &std::sync::Arc<Self>, spec: &ForkSpec) -> Result<Created, DriverError> {
        if let Some(there) = self.is_there(&spec.id).await? {
            return Ok(there);
        }
        let _stays = self.removals.read().await;
        let pool = self.pool().await?;
        let all = self.all().await?;
        let promised = Self::promised(&all);
        let copies = self.copies_of(&spec.from, all).await?;
        let Some(first) = copies.first() else {
            return Err(CheckpointFault::Missing { key: spec.from.clone() }.into());
        };
        let info = &first.record.info;
        if spec.shape.is_some_and(|shape| shape != info.shape) {
            return Err(DriverError::permanent(format!(
                "the checkpoint {} is of another VM size",
                spec.from
            )));
        }
        if first.record.of_instance && spec.purpose == ForkPurpose::Build {
            return Err(DriverError::permanent(format!(
                "the checkpoint {} is of a VM in use: nothing is built on it",
                spec.from
            )));
        }
        let members: Vec<String> = copies.iter().map(|copy| copy.instance.location.clone()).collect();
        let memory_mib = u64::from(info.shape.memory_mib);
        let room = self
            .cluster
            .place(&self.api, &pool.name, memory_mib, &promised, &members)
            .await?;
        let copy = self.copy_on(&room.member, copies.clone(), pool).await?;
        let record = VmRecord {
            image: info.image.clone(),
            agent_version: info.agent_version.clone(),
            shape: info.shape,
            checkpointable: spec.purpose == ForkPurpose::Build,
            parent: Some(spec.from.clone()),
        };
        let kind = copy.instance.kind.unwrap_or_default();
        let labels = model::vm_labels(&self.options.installation, &spec.id, &record);
        let body = json!({
            "name": spec.id,
            "type": kind.as_str(),
            "architecture": copy.instance.architecture,
            "start": true,
            "profiles": [],
            "source": {
                "type": "copy",
                "source": format!("{}/{SNAPSHOT}", copy.instance.name),
                "project": self.project,
            },
            "config": self.settings(kind, info.shape, labels),
            "devices": self.devices(&pool.name, info.shape, true),
        });
        let path = format!("/1.0/instances?project={}{}", part(&self.project), room.target());
        let making = async {
            let made = self.api.run(Method::POST, &path, Some(&body)).await;
            made.map_err(|error| self.not_made(&spec.id, error))?;
            if spec.start == ForkStart::Paused {
                self.set_state(spec.id.as_str(), "freeze").await?;
            }
            Ok(Created {
                image: info.image.clone(),
            })
        };
        let created = self.or_remove(spec.id.as_str(), making).await?;
        self.note_use(&copy);
        Ok(created)
    }

    /// A whole copy of a checkpoint that a member can fork at no cost; made from another one when it has none.
    async fn copy_on(&self, member: &str, copies: Vec<Copy>, pool: &Pool) -> Result<Copy, DriverError> {
        let is_near = |copy: &Copy| pool.copies.shared || member == ALONE || copy.instance.location == member;
        let mut fault = None;
        let mut far = Vec::new();
        for copy in copies {
            match self.check(&copy).await {
                Ok(()) if is_near(&copy) => return Ok(copy),
                Ok(()) => far.push(copy),
                Err(error) => fault = Some(error),
            }
        }
        let Some(source) = far.first() else {
            return Err(fault.unwrap_or_else(|| DriverError::retry("no copy of the checkpoint can be reached")));
        };
        let key = &source.record.info.key;
        let name = model::checkpoint_name(&self.options.installation, key, member);
        let _alone = self.copy_gates.lock(name.clone()).await;
        // Somebody else may have made it meanwhile.
        if let Some(seen) = self.see(&name).await? {
            if let Some(record) = seen.instance.checkpoint_record() {
                let there = Copy {
                    instance: seen.instance,
                    record,
                };
                if self.check(&there).await.is_ok() {
                    return Ok(there);
                }
            }
            self.remove(&name).await?;
        }
        tracing::info!(checkpoint = %key, member, "copying a checkpoint to a member of the cluster");
        let making = self.send(source, &name, member, pool);
        self.or_remove(&name, making).await
    }

    /// Copies a checkpoint to another member.
    async fn send(&self, source: &Copy, name: &str, member: &str, pool: &Pool) -> Result<Copy, DriverError> {
        let info = &source.record.info;
        let failed =
            |error: ApiError| error.into_driver(format!("the checkpoint {} could not be copied to {member}", info.key));
        let body = json!({
            "name": name,
            "type": source.instance.kind.unwrap_or_default().as_str(),
            "architecture": source.instance.architecture,
            "profiles": [],
            "source": {
                "type": "copy",
                "source": format!("{}/{SNAPSHOT}", source.instance.name),
                "project": self.project,
            },
            "config": model::unfinished_labels(&self.options.installation, &info.key),
            "devices": self.devices(&pool.name, info.shape, false),
        });
        let path = format!("/1.0/instances?project={}{}", part(&self.project), target(member));
        self.api.run(Method::POST, &path, Some(&body)).await.map_err(failed)?;
        let record = CheckpointRecord {
            frozen_at: self.make_snapshot(name).await?,
            ..source.record.clone()
        };
        self.label(name, &model::whole(&record)).await?;
        let instance: Instance = self.api.get(&self.path(name, "")).await.map_err(failed)?;
        Ok(Copy { instance, record })
    }

    /// Removes every copy of a checkpoint that nothing is based on. Of one on a lost member nothing is left that counts; when the member
    /// is back it is listed again.
    pub(super) async fn remove_checkpoint(&self, key: &CheckpointKey) -> Result<(), DriverError> {
        let _nobody_begins_to_use_it = self.removals.write().await;
        let all = self.all().await?;
        if let Some(user) = user_of(&all, key) {
            return Err(DriverError::retry(format!(
                "the checkpoint {key} is in use: it is a parent of {user}; it can be removed when that is gone"
            )));
        }
        let of_it = all
            .into_iter()
            .filter(|instance| instance.checkpoint().as_ref() == Some(key));
        for seen in self.see_all(of_it.collect()).await {
            if seen.state != Known::Lost {
                self.remove(&seen.instance.name).await?;
            }
        }
        self.used().remove(key);
        Ok(())
    }

    /// Removes copies that were never whole: of a server that was killed. Those that may be in the making now are young.
    pub(super) async fn sweep(&self) {
        let old = |instance: &Instance| {
            let made: Option<Timestamp> = instance.created_at.parse().ok();
            made.is_some_and(|made| Timestamp::now().duration_since(made) > super::UNFINISHED_AGE)
        };
        let Ok(all) = self.all().await else { return };
        for instance in all {
            if instance.checkpoint().is_some()
                && instance.checkpoint_record().is_none()
                && old(&instance)
                && let Err(error) = self.remove(&instance.name).await
            {
                tracing::debug!(%error, "a half-made checkpoint stays");
            }
        }
    }
}

/// What needs a checkpoint, as a message for people; `None` when nothing does.
fn user_of(all: &[Instance], key: &CheckpointKey) -> Option<String> {
    all.iter().find_map(|instance| {
        if let Some(vm) = instance.vm() {
            let record = instance.vm_record()?;
            return (record.parent.as_ref() == Some(key)).then(|| format!("the VM {vm}"));
        }
        let info = instance.checkpoint_record()?.info;
        (info.parent.as_ref() == Some(key)).then(|| format!("the checkpoint {}", info.key))
    })
}
