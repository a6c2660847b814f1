//! The project that is measured: a small git repository made here, three set-up commands, VMs of 1 GiB. Needs no network.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use hearth_api::claim::{ClaimReply, ClaimRequest};
use hearth_api::exec::ExecRequest;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::{FollowEvent, InstanceStatus};
use hearth_api::pool::{PatchPool, SetupCommand, TestRequest};
use hearth_api::project::{CreateProject, RepoInput, VmSize};
use tokio::process::Command;

use crate::server::Server;
use crate::{Bench, say, vm};

/// Name of the repository: `org/name`.
const REPOSITORY: &str = "local/bench-app";
/// Where it is in a VM.
pub(crate) const CHECKOUT: &str = "/home/bench-app";
/// What the set-up leaves there.
pub(crate) const ANSWER: &str = "/home/bench-app/answer.txt";
const BRANCH: &str = "main";
/// Files of the repository; a small service has as many.
const FILES: usize = 200;
/// How long the first and the last command take: they only wait, so that it is known.
pub(crate) const OWN_TIME: Duration = Duration::from_secs(1);
/// Filling a pool on a busy machine without hardware virtualisation.
const FILL_LIMIT: Duration = Duration::from_secs(300);
/// Seventy VMs of 1 GiB, by name; they cost a tenth of it.
const MEMORY_MIB: &str = "131072";
/// Between two looks at the pool: less than a hundredth of what is waited for.
const CHECK_EVERY: Duration = Duration::from_millis(10);

pub(crate) struct Project {
    pub(crate) server: Server,
    pub(crate) id: ProjectId,
    pub(crate) repository: PathBuf,
}

/// The set-up commands; another `first` or `last` makes others of the first and the last one.
pub(crate) fn commands(first: usize, last: usize) -> Result<Vec<SetupCommand>> {
    let command = |name: &str, command: String| {
        Ok(SetupCommand {
            name: name.parse()?,
            command: command.try_into()?,
            background: None,
            timeout_seconds: None,
        })
    };
    let wait = OWN_TIME.as_secs();
    [
        command("fetch", format!("sleep {wait}; echo {first} >{CHECKOUT}/first.txt")),
        command(
            "build",
            format!(
                "cd {CHECKOUT} && mkdir -p built && for at in $(seq 1 {FILES}); do echo \"module $at\" >built/$at.txt; done \
                 && cat src/*.txt built/*.txt | sha256sum >built.txt"
            ),
        ),
        command("greet", format!("sleep {wait}; echo \"built, round {last}\" >{ANSWER}")),
    ]
    .into_iter()
    .collect()
}

pub(crate) fn argv_true() -> Result<ExecRequest> {
    Ok(ExecRequest {
        argv: Some(vec!["/bin/true".parse()?]),
        ..ExecRequest::default()
    })
}

/// The server runs it by `bash -c`.
pub(crate) fn cat_answer() -> Result<ExecRequest> {
    Ok(ExecRequest {
        command: Some(format!("cat {ANSWER}").try_into()?),
        ..ExecRequest::default()
    })
}

impl Project {
    /// Starts the server and makes the project; nothing is booted yet.
    pub(crate) async fn make(bench: &Bench) -> Result<Self> {
        say("starting the server");
        let repository = bench.args.folder.join("repository/bench-app.git");
        make_repository(&repository).await?;
        let data = bench.args.folder.join("server");
        let server = Server::start(&bench.args.hearth, &data, None, &["--memory", MEMORY_MIB]).await?;
        let body = CreateProject {
            name: "bench".parse()?,
            description: None,
            task_code: None,
            repos: vec![RepoInput {
                repo_full_name: REPOSITORY.parse()?,
                branch: BRANCH.parse()?,
                url: Some(format!("file://{}", repository.display()).try_into()?),
                lfs: None,
                submodules: None,
            }],
            image: None,
            project_setup: None,
            vm_size: Some(VmSize::Small),
            max_vms: None,
            git_identity: None,
            lfs: None,
            submodules: None,
        };
        let id = server.client.create_project(&body).await?.id;
        let project = Self { server, id, repository };
        project.set_commands(commands(0, 0)?).await?;
        Ok(project)
    }

    pub(crate) async fn set_commands(&self, commands: Vec<SetupCommand>) -> Result<()> {
        let body = PatchPool {
            setup_commands: Some(Some(commands)),
            ..PatchPool::default()
        };
        self.server.client.patch_pool(&self.id, &body).await?;
        Ok(())
    }

    /// Switches the pool on, with so many VMs as its target size, or off.
    pub(crate) async fn set_target(&self, target: usize) -> Result<()> {
        let body = PatchPool {
            enabled: Some(target > 0),
            target_size: (target > 0).then(|| i64::try_from(target)).transpose()?,
            ..PatchPool::default()
        };
        self.server.client.patch_pool(&self.id, &body).await?;
        Ok(())
    }

    /// Until so many VMs stand ready and no other is being made or left.
    pub(crate) async fn wait_for(&self, ready: usize) -> Result<()> {
        let settled = async || {
            let status = self.server.client.get_pool(&self.id).await?.status;
            Ok(status.ready == ready as u64
                && status.provisioning == 0
                && vm::folders(&self.server.data).len() == ready)
        };
        self.wait_until("the pool is as wished", settled).await
    }

    pub(crate) async fn wait_for_ready(&self, ready: usize) -> Result<()> {
        let full = async || Ok(self.server.client.get_pool(&self.id).await?.status.ready >= ready as u64);
        self.wait_until("the pool is full", full).await
    }

    async fn wait_until(&self, what: &str, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !done().await? {
            if begin.elapsed() > FILL_LIMIT {
                let status = self.server.client.get_pool(&self.id).await?.status;
                bail!("not within {} s: {what}; it is {status:?}", FILL_LIMIT.as_secs());
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        Ok(())
    }

    pub(crate) async fn claim(&self, body: &ClaimRequest) -> Result<(ClaimReply, Duration)> {
        let begin = Instant::now();
        let reply = self.server.client.claim(&self.id, body).await?;
        Ok((reply, begin.elapsed()))
    }

    /// Until a command has ended and its output is here.
    pub(crate) async fn exec(&self, id: &InstanceId, body: &ExecRequest) -> Result<Duration> {
        let begin = Instant::now();
        let reply = self.server.client.exec(id, body).await?;
        let took = begin.elapsed();
        let is_cat = body.command.as_ref().is_some_and(|command| command.contains(ANSWER));
        let printed = reply.stdout.starts_with("built") || !is_cat;
        if reply.exit_code != Some(0) || !printed {
            bail!("a command in a claimed VM failed: {}{}", reply.stdout, reply.stderr);
        }
        Ok(took)
    }

    pub(crate) async fn release(&self, id: &InstanceId) -> Result<()> {
        self.server.client.release(id).await?;
        Ok(())
    }

    /// From the request until the VM is ready; it stays.
    pub(crate) async fn test_boot(
        &self,
        commands: Option<Vec<SetupCommand>>,
        cache: bool,
    ) -> Result<(InstanceId, Duration)> {
        let client = &self.server.client;
        let body = TestRequest {
            setup_commands: commands.map(Some),
        };
        let begin = Instant::now();
        let id = client.test_pool(&self.id, &body, cache).await?.id;
        let mut events = client.follow(&id).await?;
        while let Some(event) = events.try_next().await? {
            if let FollowEvent::Ended { status, failure_reason } = event {
                let took = begin.elapsed();
                if status != Some(InstanceStatus::Ready) {
                    bail!("a test boot failed: {}", failure_reason.unwrap_or_default());
                }
                return Ok((id, took));
            }
        }
        bail!("a test boot's log ended too early")
    }

    /// Removes test boots and whatever else stands there.
    pub(crate) async fn clear(&self) -> Result<()> {
        let body = hearth_api::pool::ClearRequest { replenish: Some(false) };
        self.server.client.clear_pool(&self.id, &body).await?;
        self.wait_for(0).await
    }

    /// Makes the template of the project as it is now; the pool stays off.
    pub(crate) async fn make_template(&self) -> Result<()> {
        say("preparing the project once");
        self.test_boot(None, true).await?;
        self.clear().await
    }

    /// Moves the repository on by one commit.
    pub(crate) async fn commit(&self, round: usize) -> Result<()> {
        fs::write(self.repository.join("src/1.txt"), format!("round {round}\n"))?;
        commit(&self.repository, "Another round").await
    }

    /// Removes the VMs and ends the server.
    pub(crate) async fn end(self) -> Result<()> {
        self.server.client.delete_project(&self.id).await?;
        let begin = Instant::now();
        while !vm::folders(&self.server.data).is_empty() {
            if begin.elapsed() > FILL_LIMIT {
                bail!("the server does not remove the project's VMs");
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        self.server.stop().await
    }
}

async fn make_repository(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("src"))?;
    fs::write(
        folder.join("README.md"),
        "# bench-app\n\nMade by `cargo xtask bench`.\n",
    )?;
    for at in 1..=FILES {
        fs::write(
            folder.join(format!("src/{at}.txt")),
            format!("line of file {at}\n").repeat(at),
        )?;
    }
    git(folder, &["init", "--quiet", "--initial-branch", BRANCH]).await?;
    commit(folder, "A small project").await
}

async fn commit(folder: &Path, message: &str) -> Result<()> {
    git(folder, &["add", "."]).await?;
    let author = ["-c", "user.name=Hearth bench", "-c", "user.email=bench@localhost"];
    let words = [&author[..], &["commit", "--quiet", "-m", message]].concat();
    git(folder, &words).await
}

pub(crate) async fn git(folder: &Path, words: &[&str]) -> Result<()> {
    let done = Command::new("git").arg("-C").arg(folder).args(words).status().await;
    if !done.context("git cannot be started")?.success() {
        bail!("git {} failed", words.join(" "));
    }
    Ok(())
}
