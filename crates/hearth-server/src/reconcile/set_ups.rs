//! Which set-up a VM was made by, and what changed since. The pass notes each set-up that a pool is to follow, so that what is made by
//! it can later be told from what another one makes.

use std::collections::HashMap;

use hearth_api::claim::{ClaimReply, SetUpPart};
use hearth_api::ids::ProjectId;
use hearth_core::recipe::{same_set_up, set_up_of};
use hearth_core::set_up::{OwnCommand, SetUp};
use jiff::Timestamp;

use super::Reconciler;
use crate::provision::blueprint::{own_commands, set_up};
use crate::store::{InstanceRow, PoolRow, ProjectRow, StoreError};

/// What was noted last of each project: the set-up's name, and when the project was changed then. A cache.
pub(super) type Noted = HashMap<ProjectId, (String, Timestamp)>;

impl Reconciler {
    /// Notes what a pool is to follow, when that is news. `recipe`: the one that it is to follow.
    pub(super) async fn note_set_up(
        &self,
        project: &ProjectRow,
        pool: Option<&PoolRow>,
        recipe: &str,
    ) -> Result<(), StoreError> {
        let now = (set_up_of(recipe).to_owned(), project.updated_at);
        if self.set_ups().get(&project.id) == Some(&now) {
            return Ok(());
        }
        let set_up = set_up(project, pool);
        self.context
            .store
            .note_set_up(&project.id, &set_up, Timestamp::now())
            .await?;
        self.set_ups().insert(project.id.clone(), now);
        Ok(())
    }

    /// Says in a reply that the VM was made by another set-up than this project's pool is to follow, and what differs.
    pub(super) async fn tell_stale(
        &self,
        project: &ProjectRow,
        pool: Option<&PoolRow>,
        wanted: &str,
        reply: &mut ClaimReply,
    ) -> Result<(), StoreError> {
        if same_set_up(&reply.recipe, wanted) {
            return Ok(());
        }
        let store = &self.context.store;
        self.note_set_up(project, pool, wanted).await?;
        reply.stale = true;
        reply.stale_since = store.set_up_since(&project.id).await?;
        let old = store.set_up(&project.id, set_up_of(&reply.recipe)).await?;
        reply.stale_parts = old.map_or_else(Vec::new, |old| changed(&old, &set_up(project, pool)));
        Ok(())
    }

    /// The named commands of the set-up that an instance was made by.
    pub async fn commands_of(&self, project: &ProjectRow, row: &InstanceRow) -> Result<Vec<OwnCommand>, StoreError> {
        let store = &self.context.store;
        let pool = store.pool(&project.id).await?;
        let name = set_up_of(&row.recipe);
        if set_up(project, pool.as_ref()).name == name {
            return Ok(own_commands(project));
        }
        let own = store.set_up(&project.id, name).await?;
        // One that was made before set-ups were noted: nobody knows better.
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
