//! What `hearth top` shows, as the server says it at one moment.

use futures::{StreamExt as _, TryStreamExt as _};
use hearth_api::client::{Client, ClientError};
use hearth_api::error::ErrorCode;
use hearth_api::explain::HostUse;
use hearth_api::find::ClaimItem;
use hearth_api::project::Project;
use serde::Serialize;

use crate::failure::Failure;
use crate::text::clean_line;

/// Pools that are asked about at once: a token has a limit of requests.
const AT_ONCE: usize = 4;
/// Most pools that are shown; a longer list is no glance.
const MOST: usize = 100;

/// Everything.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seen {
    pub(super) pools: Vec<Pool>,
    /// Pools that are not among them.
    pub(super) more: usize,
    pub(super) claims: Vec<ClaimItem>,
    /// As the pools' explanations tell it; unknown where there is no pool.
    pub(super) host: Option<HostUse>,
}

/// One pool.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) enabled: bool,
    pub(super) target: u64,
    pub(super) ready: u64,
    pub(super) provisioning: u64,
    pub(super) failed: u64,
    pub(super) waiting: u64,
    pub(super) summary: String,
}

impl Pool {
    /// It has less than it should and nothing is on its way, or claims wait.
    pub(super) fn needs_a_look(&self) -> bool {
        self.enabled && (self.waiting > 0 || (self.ready < self.target && self.provisioning == 0))
    }
}

impl Seen {
    pub(super) async fn ask(client: &Client) -> Result<Self, Failure> {
        let projects = client.list_all_projects().await?;
        let more = projects.len().saturating_sub(MOST);
        let asked = futures::stream::iter(projects.into_iter().take(MOST)).map(|project| pool(client, project));
        let asked: Vec<_> = asked.buffered(AT_ONCE).try_collect().await?;
        let mut host = None;
        let mut pools = Vec::new();
        for (pool, of_host) in asked.into_iter().flatten() {
            pools.push(pool);
            host = Some(of_host);
        }
        Ok(Self {
            pools,
            more,
            claims: client.list_claims(None).await?.items,
            host,
        })
    }
}

/// `None` for a project that was deleted meanwhile.
async fn pool(client: &Client, project: Project) -> Result<Option<(Pool, HostUse)>, ClientError> {
    let both = async {
        let view = client.get_pool(&project.id).await?;
        Ok((view, client.explain_pool(&project.id).await?))
    };
    let (view, explained) = match both.await {
        Ok(both) => both,
        Err(ClientError::Api {
            code: Some(ErrorCode::NotFound),
            ..
        }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let config = view.config.as_ref();
    let pool = Pool {
        name: clean_line(&project.name),
        enabled: config.is_some_and(|config| config.enabled),
        target: config.map_or(0, |_| explained.target),
        ready: explained.status.ready,
        provisioning: explained.status.provisioning,
        failed: explained.status.failed,
        waiting: explained.waiting_claims,
        summary: clean_line(&explained.summary),
    };
    Ok(Some((pool, explained.host)))
}
