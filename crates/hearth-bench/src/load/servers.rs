//! The servers of a run, and their pools.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use hearth_api::client::Client;
use hearth_api::ids::ProjectId;
use hearth_api::pool::PatchPool;
use hearth_api::project::{CreateProject, VmSize};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How long a server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(60);
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
pub(crate) struct Servers(Vec<(Child, Client)>);

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
            fs::create_dir_all(&data)?;
            if number > 0 {
                for file in SHARED {
                    fs::copy(folder.join("0").join(file), data.join(file))?;
                }
            }
            all.push(start(hearth, &data, database, vms).await?);
        }
        Ok(Self(all))
    }

    /// The client of a request: each goes to the next server.
    pub(crate) fn client(&self, request: usize) -> &Client {
        &self.0[request % self.0.len()].1
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
        for (child, _) in &self.0 {
            if let Some(pid) = child.id() {
                // It may have ended between the two lines.
                let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM);
            }
        }
        for (mut child, _) in self.0 {
            let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
            ended.context("a server does not stop")??;
        }
        Ok(())
    }
}

async fn start(hearth: &Path, data: &Path, database: Option<&str>, vms: usize) -> Result<(Child, Client)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    let address = listener.local_addr()?.to_string();
    drop(listener);
    let log = File::create(data.join("server.log"))?;
    let mut command = Command::new(hearth);
    command
        .arg("--data-dir")
        .arg(data)
        .args(["serve", "--driver", "fake", "--listen", &address])
        .args(["--requests-per-second", "0", "--memory", MEMORY_MIB])
        .args(["--max-vms", &vms.to_string(), "--provision-concurrency", "8"])
        .env("HEARTH_RUNTIME_DIR", data.join("run"))
        .env_remove("HEARTH_URL")
        .env_remove("HEARTH_TOKEN")
        .env_remove("HEARTH_DATABASE");
    if let Some(database) = database {
        command.env("HEARTH_DATABASE", database);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("the server cannot be started")?;
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the server ended at once ({status}); its log is in {}", data.display());
        }
        if let Ok(token) = fs::read_to_string(data.join("admin-token")) {
            let client = Client::new(&format!("http://{address}"), token.trim())?;
            if client.health().await.is_ok() {
                return Ok((child, client));
            }
        }
        if begin.elapsed() > START_LIMIT {
            bail!("the server did not answer in time; its log is in {}", data.display());
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}
