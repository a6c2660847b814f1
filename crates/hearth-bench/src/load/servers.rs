//! The servers of a run, and their pools.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use hearth_api::client::Client;
use hearth_api::ids::ProjectId;
use hearth_api::pool::PatchPool;
use hearth_api::project::{CreateProject, VmSize};

use crate::server::Server;

/// How long all pools may take to be full.
const FILL_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at what is waited for.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// Enough for any number of VMs that are none.
const MEMORY_MIB: &str = "100000000";
/// What servers of one database have in common: what opens the secrets in it, and the first token.
const SHARED: [&str; 2] = ["secret.key", "admin-token"];
/// Pools that are made at the same time.
const AT_ONCE: usize = 8;

/// Running servers of one store.
pub(crate) struct Servers(Vec<Server>);

impl Servers {
    /// `database`: none for SQLite. Each has room for `vms`.
    pub(crate) async fn start(
        hearth: &Path,
        folder: &Path,
        database: Option<&str>,
        count: usize,
        vms: usize,
    ) -> Result<Self> {
        let mut all = Vec::new();
        for number in 0..count {
            let data = folder.join(number.to_string());
            if number > 0 {
                fs::create_dir_all(&data)?;
                for file in SHARED {
                    fs::copy(folder.join("0").join(file), data.join(file))?;
                }
            }
            let vms = vms.to_string();
            let mut args = vec!["--driver", "fake", "--provision-concurrency", "8"];
            args.extend(["--memory", MEMORY_MIB, "--max-vms", &vms]);
            all.push(Server::start(hearth, &data, database, &args).await?);
        }
        Ok(Self(all))
    }

    /// The client of a request: each goes to the next server.
    pub(crate) fn client(&self, request: usize) -> &Client {
        &self.0[request % self.0.len()].client
    }

    /// Makes so many pools, and waits until each has so many VMs ready.
    pub(crate) async fn fill(&self, pools: usize, of_a_pool: usize) -> Result<Vec<ProjectId>> {
        let make = async |number: usize| {
            let client = self.client(number);
            let body = CreateProject {
                name: format!("load-{number}").parse()?,
                description: None,
                task_code: None,
                repos: Vec::new(),
                image: None,
                project_setup: None,
                vm_size: Some(VmSize::Small),
                // What is claimed counts, too: none is made anew while claims are counted.
                max_vms: Some(u32::try_from(of_a_pool)?),
                git_identity: None,
                lfs: None,
                submodules: None,
            };
            let id = client.create_project(&body).await?.id;
            let body = PatchPool {
                enabled: Some(true),
                target_size: Some(i64::try_from(of_a_pool)?),
                ..PatchPool::default()
            };
            client.patch_pool(&id, &body).await?;
            Ok::<_, anyhow::Error>(id)
        };
        let made = futures::stream::iter(0..pools).map(make).buffer_unordered(AT_ONCE);
        let pools: Vec<ProjectId> = made.try_collect().await?;
        let begin = Instant::now();
        for pool in &pools {
            while self.client(0).get_pool(pool).await?.status.ready < of_a_pool as u64 {
                if begin.elapsed() > FILL_LIMIT {
                    bail!("the pools are not full after {} s", FILL_LIMIT.as_secs());
                }
                tokio::time::sleep(CHECK_EVERY).await;
            }
        }
        Ok(pools)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        try_join_all(self.0.into_iter().map(Server::stop)).await.map(drop)
    }
}
