//! Which set-up a VM was made by, and what changed since. The pass notes each set-up that a pool is to follow, so that what is made by
//! it can later be distinguished from what another one makes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_api::claim::{ClaimReply, SetUpPart};
use hearth_api::ids::ProjectId;
use hearth_core::recipe::{same_set_up, set_up_of};
use hearth_core::set_up::{OwnCommand, SetUp};
use jiff::Timestamp;

use super::target::{own_commands, set_up};
use crate::store::{InstanceRow, PoolRow, ProjectRow, Store, StoreError};

/// What was noted last of each project: the set-up's name, and when the project was changed then. A cache.
type Noted = HashMap<ProjectId, (String, Timestamp)>;

/// The set-ups of all projects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SetUps {
    store: Store,
    noted: Arc<Mutex<Noted>>,
}

impl SetUps {
    /// None noted yet by this server.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            noted: Arc::default(),
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a pool is to follow, when that is news. `recipe`: the one that it is to follow.
    pub async fn note(&self, project: &ProjectRow, pool: Option<&PoolRow>, recipe: &str) -> Result<(), StoreError> {
        let now = (set_up_of(recipe).to_owned(), project.updated_at);
        if self.noted().get(&project.id) == Some(&now) {
            return Ok(());
        }
        let set_up = set_up(project, pool);
        self.store.note_set_up(&project.id, &set_up, Timestamp::now()).await?;
        self.noted().insert(project.id.clone(), now);
        Ok(())
    }

    /// Says in a reply that the VM was made by another set-up than this project's pool is to follow, and what differs.
    pub async fn tell_stale(
        &self,
        project: &ProjectRow,
        pool: Option<&PoolRow>,
        wanted: &str,
        reply: &mut ClaimReply,
    ) -> Result<(), StoreError> {
        if same_set_up(&reply.recipe, wanted) {
            return Ok(());
        }
        self.note(project, pool, wanted).await?;
        reply.stale = true;
        reply.stale_since = self.store.set_up_since(&project.id).await?;
        let old = self.store.set_up(&project.id, set_up_of(&reply.recipe)).await?;
        reply.stale_parts = old.map_or_else(Vec::new, |old| changed(&old, &set_up(project, pool)));
        Ok(())
    }

    /// The named commands of the set-up that an instance was made by.
    pub async fn commands_of(&self, project: &ProjectRow, row: &InstanceRow) -> Result<Vec<OwnCommand>, StoreError> {
        let pool = self.store.pool(&project.id).await?;
        let name = set_up_of(&row.recipe);
        if set_up(project, pool.as_ref()).name == name {
            return Ok(own_commands(project));
        }
        let own = self.store.set_up(&project.id, name).await?;
        // It was made before set-ups were recorded, so its set-up is not known.
        Ok(own.map_or_else(|| own_commands(project), |own| own.commands))
    }
}

fn changed(old: &SetUp, new: &SetUp) -> Vec<SetUpPart> {
    let names = new
        .parts
        .iter()
        .filter(|(name, digest)| old.parts.get(*name) != Some(*digest));
    let part = |(name, _): (&String, &String)| serde_json::from_value(serde_json::Value::from(name.as_str())).ok();
    names.filter_map(part).collect()
}
