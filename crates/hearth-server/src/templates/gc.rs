//! Garbage collection of checkpoints: removes what is unknown or unused, verifies the rest, renews old templates. What
//! the pool's loop does not wait for.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hearth_api::ids::ProjectId;
use hearth_drivers::{CheckDepth, CheckpointInfo, CheckpointKey, Driver};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store::{BranchHeads, NamedKey, PoolRow, ProjectRow, Store, StoreError, TemplateRow};
use crate::templates::select::serving;
use crate::wake::Wake;

/// How often it makes its round, unless templates are renewed more often than that.
const ROUND: Duration = Duration::from_secs(60);
/// While something of a deleted project is left, the next round begins so soon, and later each time: its VMs are going.
const LEFT_BEHIND_AGAIN: Duration = Duration::from_secs(1);
/// How often every byte of every checkpoint is looked at.
const FULL_CHECK: SignedDuration = SignedDuration::from_hours(1);
/// A checkpoint that no pool needs is kept this long after its last use: a set-up that was tried out is often tried again.
const UNNEEDED_KEPT: SignedDuration = SignedDuration::from_hours(1);
/// After a renewal, good or bad, the next one waits this long.
const RENEWAL_PAUSE: SignedDuration = SignedDuration::from_hours(1);

/// Label of a checkpoint of a VM in use: which instance that was.
pub const INSTANCE_LABEL: &str = "instance";
/// Label of such a one: its project.
pub const PROJECT_LABEL: &str = "project";
/// Label: what it is, for people.
pub const STAGE_LABEL: &str = "stage";

/// What is known of the checkpoints.
#[derive(Debug, Default)]
struct Known {
    /// What they take on the disk.
    bytes: u64,
    /// When every byte was last looked at.
    checked: Option<Timestamp>,
    /// When each project's template was last ordered to be renewed.
    renewed: HashMap<ProjectId, Timestamp>,
}

/// What a look at every byte found.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many checkpoints were looked at.
    pub checked: usize,
    /// Those that are damaged, and how; they are not used any more.
    pub faults: Vec<(CheckpointKey, String)>,
}

/// A checkpoint as it is shown.
#[derive(Debug)]
pub struct KeptCheckpoint {
    /// What the driver knows.
    pub info: CheckpointInfo,
    /// Whose; `None` for a base.
    pub project: Option<ProjectId>,
    /// The recipes whose template it is.
    pub recipes: Vec<String>,
    /// It is a pool's current template, or a parent of one.
    pub needed: bool,
}

/// What garbage collection asks of those who know the pools.
#[async_trait]
pub trait Pools: Debug + Send + Sync {
    /// The recipe that a pool is to follow, where the branches are at these heads.
    async fn target_recipe(&self, project: &ProjectRow, pool: &PoolRow, heads: &BranchHeads) -> String;

    /// Has a pool's template built again, from the image on.
    async fn renew_template(&self, project: &ProjectRow) -> Result<(), StoreError>;
}

/// Looks after checkpoints. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gc {
    store: Store,
    driver: Arc<dyn Driver>,
    wake: Wake,
    pools: Arc<dyn Pools>,
    /// What checkpoints may take on the disk.
    disk_limit: u64,
    /// An older template is renewed.
    max_age: SignedDuration,
    known: Arc<Mutex<Known>>,
    /// Held while the files of a checkpoint go and then its row, and while the two are compared.
    collecting: Arc<tokio::sync::Mutex<()>>,
    /// A round is to begin at once.
    soon: Arc<Notify>,
}

/// A checkpoint turned out to be damaged: it is not used again, and what was forked from it is deleted.
pub async fn forget_checkpoint(
    store: &Store,
    driver: &dyn Driver,
    key: &CheckpointKey,
    reason: &str,
) -> Result<(), StoreError> {
    let now = Timestamp::now();
    if store.note_checkpoint_fault(key, reason, now).await? {
        tracing::error!(%key, reason, "a checkpoint is not used any more and is built again when it is needed");
    } else {
        tracing::info!(%key, reason, "a checkpoint that no project has any more is forgotten");
    }
    store.forget_checkpoint(key, true, now).await?;
    if store.forget_named_checkpoint(key).await? {
        tracing::error!(%key, reason, "a checkpoint that an owner of a claim made is lost");
    }
    if let Err(error) = driver.remove_checkpoint(key).await {
        // It may still be the parent of VMs; then a later round removes it.
        tracing::debug!(%error, %key, "a damaged checkpoint stays for now");
    }
    Ok(())
}

impl Gc {
    /// `disk_limit`: what checkpoints may take, in bytes; `max_age`: an older template is renewed.
    #[must_use]
    pub fn new(
        store: Store,
        driver: Arc<dyn Driver>,
        wake: Wake,
        pools: Arc<dyn Pools>,
        disk_limit: u64,
        max_age: SignedDuration,
    ) -> Self {
        Self {
            store,
            driver,
            wake,
            pools,
            disk_limit,
            max_age,
            known: Arc::default(),
            collecting: Arc::default(),
            soon: Arc::default(),
        }
    }

    /// Rounds until the server stops.
    pub async fn run(&self, stop: CancellationToken) {
        if !self.driver.capabilities().disk_checkpoints {
            return;
        }
        let renewal = Duration::try_from(self.max_age).unwrap_or(ROUND);
        let longest = ROUND.min(renewal);
        let mut again = LEFT_BEHIND_AGAIN;
        loop {
            let left_behind = self.round(Timestamp::now(), &stop).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the garbage collection of checkpoints failed; the next round tries again");
                0
            });
            let pause = if left_behind > 0 { again.min(longest) } else { longest };
            again = if left_behind > 0 { again * 2 } else { LEFT_BEHIND_AGAIN }.min(longest);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.soon.notified() => again = LEFT_BEHIND_AGAIN,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// A project is gone: its templates are removed as soon as no VM is based on them.
    pub fn run_soon(&self) {
        self.soon.notify_one();
    }

    /// Gives how many checkpoints of deleted projects are left.
    async fn round(&self, now: Timestamp, stop: &CancellationToken) -> Result<usize, StoreError> {
        let kept = self.kept().await?;
        let left_behind = self.sweep(kept, now, stop).await?;
        let checked = self.known(|known| known.checked);
        if stop.is_cancelled() {
            return Ok(left_behind);
        }
        if checked.is_none_or(|at| now.duration_since(at) >= FULL_CHECK) {
            self.verify().await?;
        }
        self.renew(now).await?;
        Ok(left_behind)
    }

    fn known<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What checkpoints take on the disk, as of the last round, and what they may.
    pub fn disk(&self) -> (u64, u64) {
        (self.known(|known| known.bytes), self.disk_limit)
    }

    /// Every checkpoint, least recently used first. A row whose files are gone is forgotten on the way.
    pub async fn kept(&self) -> Result<Vec<KeptCheckpoint>, StoreError> {
        let collecting = self.collecting.lock().await;
        // Before the files: a row is written when its files are there.
        let owners = self.store.checkpoint_owners().await?;
        let named = self.store.named_checkpoint_keys().await?;
        let infos = match self.driver.checkpoints().await {
            Ok(infos) => infos,
            Err(error) => {
                tracing::warn!(%error, "the driver cannot say which checkpoints there are");
                return Ok(Vec::new());
            }
        };
        let there: HashSet<&CheckpointKey> = infos.iter().map(|info| &info.key).collect();
        let whole = named.iter().filter(|named| named.whole).map(|named| &named.key);
        for gone in owners.keys().chain(whole).filter(|key| !there.contains(key)) {
            // Its files are gone: what is based on it is of no use either.
            forget_checkpoint(&self.store, &*self.driver, gone, "its files are gone").await?;
        }
        drop(collecting);
        let templates = self.store.templates().await?;
        let needed = self.needed(&infos, &templates, &named).await?;
        let of_named = |key: &CheckpointKey| named.iter().find(|named| named.key == *key).map(|named| &named.project);
        let mut kept: Vec<KeptCheckpoint> = infos
            .into_iter()
            .map(|info| KeptCheckpoint {
                project: match owners.get(&info.key) {
                    Some(project) => project.clone(),
                    None => of_named(&info.key).cloned().or_else(|| labelled(&info)),
                },
                recipes: templates
                    .iter()
                    .filter(|template| template.key == info.key)
                    .map(|template| template.recipe.clone())
                    .collect(),
                needed: needed.contains(&info.key),
                info,
            })
            .collect();
        kept.sort_by_key(|kept| kept.info.last_used);
        self.known(|known| known.bytes = kept.iter().map(|kept| kept.info.bytes).sum());
        Ok(kept)
    }

    /// The projects with an enabled pool, and the recipe that each is to follow now.
    async fn enabled_pools(&self) -> Result<Vec<(ProjectRow, String)>, StoreError> {
        let heads = self.store.branch_heads().await?;
        let mut enabled = Vec::new();
        for (project, pool) in self.store.enabled_pools().await? {
            let recipe = self.pools.target_recipe(&project, &pool, &heads).await;
            enabled.push((project, recipe));
        }
        Ok(enabled)
    }

    /// The current templates of all pools, the checkpoints with a name, and all their parents.
    async fn needed(
        &self,
        infos: &[CheckpointInfo],
        templates: &[TemplateRow],
        named: &[NamedKey],
    ) -> Result<HashSet<CheckpointKey>, StoreError> {
        let mut current: Vec<&CheckpointKey> = named.iter().map(|named| &named.key).collect();
        for (project, recipe) in self.enabled_pools().await? {
            current.extend(serving(templates, &project, &recipe).map(|template| &template.key));
        }
        Ok(with_below(infos.iter(), current))
    }

    /// What deleted projects have left: their secrets are in it. A template of another project, or a parent of one, is not theirs alone.
    async fn left_behind(&self, kept: &[KeptCheckpoint]) -> Result<HashSet<CheckpointKey>, StoreError> {
        let projects = self.store.all_projects().await?;
        let projects: HashSet<ProjectId> = projects.into_iter().map(|project| project.id).collect();
        let templates = self.store.templates().await?;
        let living = templates.iter().filter(|template| projects.contains(&template.project));
        let used = with_below(
            kept.iter().map(|kept| &kept.info),
            living.map(|template| &template.key).collect(),
        );
        let is_left = |kept: &&KeptCheckpoint| {
            let is_gone = kept.project.as_ref().is_some_and(|project| !projects.contains(project));
            is_gone && !used.contains(&kept.info.key)
        };
        Ok(kept.iter().filter(is_left).map(|kept| kept.info.key.clone()).collect())
    }

    /// Removes what no pool needs: what was not used for long, what deleted projects have left, and, while there is too much, whatever
    /// was used longest ago. Gives how many of deleted projects are still parents of something.
    async fn sweep(
        &self,
        kept: Vec<KeptCheckpoint>,
        now: Timestamp,
        stop: &CancellationToken,
    ) -> Result<usize, StoreError> {
        let mut bytes: u64 = kept.iter().map(|kept| kept.info.bytes).sum();
        let owners = self.store.checkpoint_owners().await?;
        let left_behind = self.left_behind(&kept).await?;
        let mut left: Vec<KeptCheckpoint> = kept.into_iter().filter(|kept| !kept.needed).collect();
        // Leaves first, and again, until nothing more can go.
        loop {
            let before = left.len();
            let mut stays = Vec::new();
            for kept in left {
                if stop.is_cancelled() {
                    // The next server removes the others.
                    return Ok(0);
                }
                let info = &kept.info;
                let old = now.duration_since(info.last_used) >= UNNEEDED_KEPT;
                let unknown = !owners.contains_key(&info.key);
                // Of a VM in use, and without a name: it is there for the VMs that are based on it, and for nothing else.
                let in_between = info.labels.contains_key(INSTANCE_LABEL);
                // A build that is under way has it under its feet, or writes its row in a moment.
                let young = now.duration_since(info.created) < SignedDuration::from_mins(5);
                let ownerless = left_behind.contains(&info.key);
                let goes = (unknown && (in_between || !young)) || old || ownerless || bytes > self.disk_limit;
                let _collecting = self.collecting.lock().await;
                if !goes || self.driver.remove_checkpoint(&info.key).await.is_err() {
                    stays.push(kept);
                    continue;
                }
                tracing::info!(key = %info.key, bytes = info.bytes, "removed a checkpoint that no pool needs");
                bytes = bytes.saturating_sub(info.bytes);
                self.store.forget_checkpoint(&info.key, false, now).await?;
            }
            left = stays;
            if left.len() == before {
                break;
            }
        }
        self.known(|known| known.bytes = bytes);
        if bytes > self.disk_limit {
            tracing::warn!(
                bytes,
                limit = self.disk_limit,
                "the checkpoints that pools need take more than they may; give them more with --template-disk"
            );
        }
        Ok(left.iter().filter(|kept| left_behind.contains(&kept.info.key)).count())
    }

    /// Checks every byte of every checkpoint. A damaged one is not used any more; the pool builds it again.
    pub async fn verify(&self) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        for kept in self.kept().await? {
            let key = kept.info.key;
            verified.checked += 1;
            if let Err(error) = self.driver.check_checkpoint(&key, CheckDepth::Full).await {
                let Some(fault) = error.checkpoint_fault() else {
                    tracing::warn!(%error, %key, "a checkpoint could not be checked");
                    continue;
                };
                let reason = fault.to_string();
                let _collecting = self.collecting.lock().await;
                forget_checkpoint(&self.store, &*self.driver, &key, &reason).await?;
                verified.faults.push((key, reason));
            }
        }
        self.known(|known| known.checked = Some(Timestamp::now()));
        if !verified.faults.is_empty() {
            self.wake.wake();
        }
        Ok(verified)
    }

    /// Orders a new template, from the image on, for every pool whose template is too old.
    async fn renew(&self, now: Timestamp) -> Result<(), StoreError> {
        for (project, recipe) in self.enabled_pools().await? {
            let Some(template) = self.store.template(&project.id, &recipe).await? else {
                continue;
            };
            let old = now.duration_since(template.created_at) >= self.max_age;
            let last = self.known(|known| known.renewed.get(&project.id).copied());
            let pause = RENEWAL_PAUSE.min(self.max_age);
            if !old || last.is_some_and(|last| now.duration_since(last) < pause) {
                continue;
            }
            tracing::info!(project = %project.id, made = %template.created_at, "the template is old; a new one is made");
            self.known(|known| known.renewed.insert(project.id.clone(), now));
            self.pools.renew_template(&project).await?;
        }
        Ok(())
    }
}

/// The project of a checkpoint of a VM in use.
fn labelled(info: &CheckpointInfo) -> Option<ProjectId> {
    info.labels.get(PROJECT_LABEL)?.parse().ok()
}

/// These checkpoints and all their parents.
fn with_below<'a>(
    infos: impl Iterator<Item = &'a CheckpointInfo>,
    from: Vec<&'a CheckpointKey>,
) -> HashSet<CheckpointKey> {
    let parents: HashMap<&CheckpointKey, Option<&CheckpointKey>> =
        infos.map(|info| (&info.key, info.parent.as_ref())).collect();
    let mut all = HashSet::new();
    for key in from {
        let mut at = Some(key);
        while let Some(key) = at {
            all.insert(key.clone());
            at = parents.get(key).copied().flatten();
        }
    }
    all
}
