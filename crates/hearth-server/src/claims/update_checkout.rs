//! Moving a checkout in a claimed VM to where its branch is now. The host brings what is missing as one pack, so that the VM needs
//! no network, no credentials and little time; only a tree in which only the set-up changed files is moved.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use globset::{Glob, GlobSet, GlobSetBuilder};
use hearth_api::claim::ClaimedRepo;
use hearth_api::instance::RepoSettings;
use hearth_core::checkout::{Checkout, with_own_scripts};
use hearth_core::scripts::Phase;
use hearth_guest::client::{AgentClient, AgentError};

use super::Claims;
use super::claim::{ClaimTask, Seen};
use super::handoff::Unfit;
use crate::repos::branches::Asked;
use crate::repos::checkout::{self, CheckoutError};
use crate::repos::extra_content::ExtraContent;
use crate::repos::git::{GitError, git_fed};
use crate::repos::mirrors::{Freshness, MirrorCommit, MirrorError, Mirrors};
use crate::repos::transfer::{self, TransferError};
use crate::store::InstanceRow;

/// The host may fetch a branch for so long while a claim waits, or for as long as the claim itself would still wait.
pub(super) const FETCH_BUDGET: Duration = Duration::from_secs(5);

/// Where a repository has its packs, below the checkout.
const PACKS: &str = ".git/objects/pack";
/// Mode of a pack and its index, as git makes them.
const PACK_MODE: u32 = 0o444;
/// Says that a repository is there, below the checkout.
const HEAD: &str = ".git/HEAD";
/// Files that say which dependencies a checkout has: when one of them changes, the installed ones are out of date.
const LOCK_FILES: [&str; 24] = [
    "**/package-lock.json",
    "**/npm-shrinkwrap.json",
    "**/yarn.lock",
    "**/pnpm-lock.yaml",
    "**/bun.lock",
    "**/bun.lockb",
    "**/deno.lock",
    "**/Cargo.lock",
    "**/go.sum",
    "**/poetry.lock",
    "**/uv.lock",
    "**/pdm.lock",
    "**/Pipfile.lock",
    "**/requirements*.txt",
    "**/Gemfile.lock",
    "**/composer.lock",
    "**/mix.lock",
    "**/flake.lock",
    "**/gradle.lockfile",
    "**/packages.lock.json",
    "**/Package.resolved",
    "**/pubspec.lock",
    "**/Podfile.lock",
    "**/conan.lock",
];

/// One checkout and where it is to go.
#[derive(Debug)]
struct Move<'a> {
    /// What the project says of it.
    pub checkout: &'a Checkout,
    /// Where it is.
    pub from: &'a ClaimedRepo,
    /// The branch it is to be on.
    pub branch: &'a str,
    /// The commit that the branch was last seen at.
    pub commit: &'a str,
    /// What its settings file says.
    pub settings: Option<&'a RepoSettings>,
    /// A person worked in its VM since the set-up ended.
    pub worked_in: bool,
}

/// Where a checkout went.
#[derive(Debug)]
struct Moved {
    /// Its commit now.
    pub commit: String,
    /// A file changed that its script `updateAfterCheckout` is there for.
    pub needs_update: bool,
}

/// Why a checkout stays where it is.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    /// The host does not have what is missing.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The host's git does not say what changed.
    #[error("what changed cannot be determined: {0}")]
    Diff(#[from] GitError),
    /// The VM's git does not do it.
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
}

impl From<AgentError> for MoveError {
    fn from(error: AgentError) -> Self {
        Self::Checkout(error.into())
    }
}

impl From<TransferError> for MoveError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Mirror(error) => error.into(),
            TransferError::Agent(error) => error.into(),
            TransferError::Refused(said) => CheckoutError::Refused(said).into(),
        }
    }
}

impl Move<'_> {
    /// Moves it. `None` when it is there already. `patience`: for the host's fetch.
    async fn carry_out(
        &self,
        mirrors: &Mirrors,
        agent: &AgentClient,
        patience: Duration,
    ) -> Result<Option<Moved>, MoveError> {
        let freshness = Freshness::Commit(self.commit);
        let (name, remote) = (&self.checkout.repo_full_name, self.checkout.remote());
        let head = mirrors.fetch(name, &remote, self.branch, patience, freshness).await?;
        if self.from.cloned() == (self.branch, head.commit.as_str()) {
            return Ok(None);
        }
        if self.from.gone {
            return Err(CheckoutError::NoRepository(self.from.path.clone()).into());
        }
        let needs_update = self.needs_update(&head).await?;
        let (extra_content, before) = self.extra_content(mirrors, &head, patience).await?;
        self.transfer(agent, &head).await?;
        let ClaimedRepo { path, commit, .. } = self.from;
        transfer::put_changes(agent, path, &extra_content, &before, self.checkout.extras()).await?;
        checkout::move_to(agent, path, commit, self.branch, &head.commit, self.worked_in).await?;
        // What it holds now is neither one commit nor the other until this is done.
        let moved = transfer::move_submodules(agent, path, &extra_content, &before, !self.worked_in).await;
        moved.map_err(|error| AgentError::Protocol(format!("{name} is half moved: {error}")))?;
        Ok(Some(Moved {
            needs_update,
            commit: head.commit,
        }))
    }

    /// What comes along with the new commit, and what came with the one before.
    async fn extra_content(
        &self,
        mirrors: &Mirrors,
        head: &MirrorCommit,
        patience: Duration,
    ) -> Result<(Arc<ExtraContent>, Arc<ExtraContent>), MoveError> {
        let (remote, extras) = (self.checkout.remote(), self.checkout.extras());
        let extra_content = mirrors.extra_content(head, &remote, extras, patience).await?;
        if extra_content.is_empty() {
            return Ok((extra_content, Arc::default()));
        }
        let from = mirrors.commit_at(head.repo(), &remote, self.from.cloned().1).await;
        let before = match from {
            Some(from) => mirrors.extra_content(&from, &remote, extras, patience).await?,
            None => Arc::default(),
        };
        Ok((extra_content, before))
    }

    /// Puts what is missing beside the repository's other packs. Nothing refers to it yet.
    async fn transfer(&self, agent: &AgentClient, head: &MirrorCommit) -> Result<(), MoveError> {
        let Some(pack) = head.pack_since(self.from.cloned().1, checkout::PATIENCE).await? else {
            return Ok(());
        };
        let place = |below: &str| format!("{}/{below}", self.from.path);
        let refused = |error| match error {
            AgentError::Refused { .. } => CheckoutError::NoRepository(self.from.path.clone()).into(),
            error => MoveError::from(error),
        };
        // A folder that the set-up took away is not made again.
        agent.read_file(&place(HEAD)).await.map_err(refused)?;
        // The index last: with it the pack is one.
        for (ending, content) in [("pack", pack.objects), ("idx", pack.index)] {
            let path = place(&format!("{PACKS}/{}.{ending}", pack.name));
            agent.write_file(&path, PACK_MODE, content).await.map_err(refused)?;
        }
        Ok(())
    }

    /// Whether its script is there for one of the files that change.
    async fn needs_update(&self, head: &MirrorCommit) -> Result<bool, GitError> {
        if self.checkout.scripts.script(Phase::UpdateAfterCheckout).is_none() {
            return Ok(false);
        }
        let changed = head.changed_since(self.from.cloned().1).await?;
        let watched = self.watches();
        Ok(watched.is_none_or(|set| changed.iter().any(|path| set.is_match(path))))
    }

    /// The files that its script is there for; `None`: all.
    fn watches(&self) -> Option<GlobSet> {
        let own = self
            .settings
            .and_then(|read| read.settings.hooks.update_when_changed.as_ref());
        let patterns = own.map_or(LOCK_FILES.to_vec(), |own| own.iter().map(String::as_str).collect());
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            // An invalid pattern watches everything: the script rather runs once too often.
            set.add(Glob::new(pattern).ok()?);
        }
        set.build().ok()
    }
}

impl Claims {
    /// Updates every checkout to the head of its branch, or to the claim's branch where it has that. Where they are then, and the
    /// places of those whose script `updateAfterCheckout` has something to do. A claim never gets another branch than it asked for
    /// without being told: where it cannot be checked out, another VM is tried. A checkout that only stays behind is named in the reply.
    /// `patience`: for each of the host's fetches.
    pub(super) async fn update_checkouts(
        &self,
        seen: &Seen<'_>,
        task: &ClaimTask,
        asked: Option<&Asked>,
        row: &InstanceRow,
        agent: &AgentClient,
        patience: Duration,
    ) -> Result<(Vec<ClaimedRepo>, Vec<usize>), Unfit> {
        let (checkouts, heads) = (with_own_scripts(&seen.target.checkouts, &row.settings), &seen.heads);
        let (mut repos, mut updates) = (row.repos.clone(), Vec::new());
        for (at, checkout) in checkouts.iter().enumerate() {
            let name = &checkout.repo_full_name;
            let own = asked.and_then(|asked| Some((asked.branch.as_str(), asked.commit(checkout)?)));
            let Some(repo) = repos.iter_mut().find(|repo| repo.path == checkout.path) else {
                match own {
                    Some((branch, _)) => {
                        return Err(Unfit::Stuck(format!(
                            "{name} has the branch `{branch}`, but the VM was set up before {name} was one of the project's repositories; \
                         claim with `strict` to wait for one that has it"
                        )));
                    }
                    None => continue,
                }
            };
            repo.branch_missing = task.branch.is_some() && own.is_none();
            let followed = || {
                Some((
                    checkout.branch.as_str(),
                    heads.commit(&checkout.remote(), &checkout.branch)?,
                ))
            };
            let Some((branch, commit)) = own.or_else(followed) else {
                continue;
            };
            if repo.cloned() == (branch, commit) {
                continue;
            }
            if own.is_none() && repo.cloned.is_some() {
                repo.behind = true;
                repo.why = Some(
                    "its set-up checked something else out; `strict` waits until that has run on what is new"
                        .to_owned(),
                );
                continue;
            }
            let from = repo.clone();
            let settings = row.settings.iter().find(|read| read.repo_full_name == *name);
            let step = Move {
                checkout,
                from: &from,
                branch,
                commit,
                settings,
                worked_in: row.worked_in,
            };
            match step.carry_out(&self.mirrors, agent, patience).await {
                Ok(Some(moved)) => {
                    (repo.branch, repo.commit, repo.cloned) = (branch.to_owned(), moved.commit, None);
                    // Another branch is another task: whatever its files say.
                    if moved.needs_update || task.branch.is_some() {
                        updates.push(at);
                    }
                }
                Ok(None) => {}
                Err(MoveError::Checkout(CheckoutError::Agent(error))) => return Err(error.into()),
                Err(error) if own.is_some() => {
                    let message = format!("{name} cannot be moved to the branch `{branch}`: {error}");
                    return Err(match error {
                        MoveError::Checkout(_) => Unfit::Stuck(message),
                        MoveError::Mirror(_) | MoveError::Diff(_) => Unfit::Host(message),
                    });
                }
                // The VM is good all the same: the reply says that the repository stays behind, and why.
                Err(error) => {
                    let why = self.redactor(row, task).await?.redact(&error.to_string());
                    tracing::warn!(instance = %row.id, repo = name, branch, error = %why, "a checkout stays behind");
                    (repo.behind, repo.why) = (true, Some(why.into()));
                }
            }
        }
        Ok((repos, updates))
    }
}

impl MirrorCommit {
    /// The files that differ between that commit and this one.
    async fn changed_since(&self, have: &str) -> Result<Vec<std::path::PathBuf>, GitError> {
        let options = ["diff", "--name-only", "-z", "--no-renames", have, &self.commit];
        let said = git_fed(self.mirror(), options, Vec::new(), checkout::PATIENCE)
            .await?
            .stdout;
        let names = said.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names
            .map(|name| Path::new(&*String::from_utf8_lossy(name)).to_owned())
            .collect())
    }
}
