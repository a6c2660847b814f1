//! Instances that are ordered: a test of the set-up, a renewal of the template. Their rows are written here; the loop starts them.

use async_trait::async_trait;
use hearth_api::ids::InstanceId;
use hearth_core::purpose::Purpose;
use jiff::Timestamp;

use crate::recipes::target::Recipes;
use crate::store::{BranchHeads, NewInstance, PoolRow, ProjectRow, Store, StoreError};
use crate::templates::gc::Pools;
use crate::wake::Wake;

/// What an instance is ordered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A person tests the set-up.
    Test {
        /// Stages that are frozen already need not run.
        use_cache: bool,
    },
    /// The template has become old.
    Renewal,
}

impl Order {
    fn purpose(self) -> Purpose {
        match self {
            Self::Test { use_cache } => Purpose::Test { use_cache },
            Self::Renewal => Purpose::Renewal,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Test { .. } => "a test of the set-up was asked for",
            Self::Renewal => "the template has become old",
        }
    }
}

/// Writes orders. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Orders {
    store: Store,
    recipes: Recipes,
    wake: Wake,
}

impl Orders {
    /// `wake`: the loop, which starts what is ordered.
    #[must_use]
    pub fn new(store: Store, recipes: Recipes, wake: Wake) -> Self {
        Self { store, recipes, wake }
    }

    /// Writes the row of an ordered instance (a test boot, a renewal); the loop starts it. The caller chooses
    /// the id, so that it can clean up after a call whose end it did not see.
    pub async fn order_instance(&self, id: &InstanceId, project: &ProjectRow, order: Order) -> Result<(), StoreError> {
        let pool = self.store.pool(&project.id).await?;
        let heads = self.store.branch_heads_of(project).await?;
        let recipe = self.recipes.target(project, pool.as_ref(), &heads).await.recipe;
        let shape = self.recipes.shape(project);
        let new = NewInstance {
            id: id.clone(),
            purpose: order.purpose(),
            ..NewInstance::new(&project.id, recipe, u64::from(shape.memory_mib), order.reason())
        };
        self.store.insert_instance(&new, Timestamp::now()).await?;
        self.wake.wake();
        Ok(())
    }
}

#[async_trait]
impl Pools for Orders {
    async fn target_recipe(&self, project: &ProjectRow, pool: &PoolRow, heads: &BranchHeads) -> String {
        self.recipes.target(project, Some(pool), heads).await.recipe
    }

    async fn renew_template(&self, project: &ProjectRow) -> Result<(), StoreError> {
        self.order_instance(&InstanceId::generate(), project, Order::Renewal)
            .await
    }
}
