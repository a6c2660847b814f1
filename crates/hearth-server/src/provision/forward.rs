//! Moving a checkout in a claimed VM to where its branch is now. The host brings what is missing as one pack, so that the VM needs
//! no network and no credentials; only a clean tree on the commit that Hearth put there is moved.

use std::path::Path;
use std::time::Duration;

use globset::{Glob, GlobSet, GlobSetBuilder};
use hearth_api::agent::client::{AgentClient, AgentError};
use hearth_api::agent::{ExecEnd, ExecSpec};
use hearth_api::claim::ClaimedRepo;
use hearth_api::instance::RepoSettings;

use super::blueprint::Checkout;
use super::git::{GitError, git_fed};
use super::mirrors::{MirrorError, Mirrors, Tip, Wanted};
use super::scripts::Phase;
use super::steps::millis;

/// Where packs lie for a moment.
const PACK: &str = "/run/hearth/forward.pack";
/// Mode of the pack.
const PACK_MODE: u32 = 0o600;
/// An empty pack: its header and its checksum.
const EMPTY_PACK_BYTES: usize = 32;
/// A tip of another branch that was fetched so long ago is new enough for a claim.
const BRANCH_FRESH: Duration = Duration::from_secs(15);
/// Time limit of what git does in the VM.
const MOVE_PATIENCE: Duration = Duration::from_secs(120);
/// What the script below ends with when the tree is not as Hearth left it.
const NOT_OURS: i32 = 3;
/// Nothing is touched unless the tree is clean and on the commit that Hearth put there.
const SCRIPT: &str = "[ \"$(git rev-parse HEAD)\" = \"$HAVE\" ] && [ -z \"$(git status --porcelain --untracked-files=no)\" ] || exit 3\n\
                      if [ -s \"$PACK\" ]; then git unpack-objects -q <\"$PACK\"; fi\n\
                      git update-ref \"refs/remotes/origin/$BRANCH\" \"$TARGET\"\n\
                      git checkout --quiet -B \"$BRANCH\" --track \"origin/$BRANCH\"";
/// Files that say which dependencies a checkout has: when one of them changes, what was installed is not what is wanted.
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
pub struct Move<'a> {
    /// What the project says of it.
    pub checkout: &'a Checkout,
    /// Where it is.
    pub from: &'a ClaimedRepo,
    /// The branch it is to be on.
    pub branch: &'a str,
    /// The commit that the branch was last seen at, where that is known.
    pub commit: Option<&'a str>,
    /// What its settings file says.
    pub settings: Option<&'a RepoSettings>,
}

/// Where a checkout went.
#[derive(Debug)]
pub struct Moved {
    /// Its commit now.
    pub commit: String,
    /// A file changed that its script `updateAfterCheckout` is there for.
    pub needs_update: bool,
}

/// Why a checkout stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The host does not have what is missing.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The host's git could not pack it.
    #[error("what is missing cannot be packed: {0}")]
    Pack(#[from] GitError),
    /// The set-up left changes in the tree.
    #[error("its tree has changes or commits of its own")]
    NotClean,
    /// Git in the VM said no.
    #[error("git in the VM said: {0}")]
    Refused(String),
    /// The VM itself cannot be trusted any more.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Move<'_> {
    /// Moves it. `None` when it is there already, or the repository has no such branch. `patience`: for the host's fetch.
    pub async fn carry_out(
        &self,
        mirrors: &Mirrors,
        agent: &AgentClient,
        patience: Duration,
    ) -> Result<Option<Moved>, MoveError> {
        let wanted = self.commit.map_or(Wanted::Fetched(BRANCH_FRESH), Wanted::Commit);
        let Checkout {
            repo_full_name, url, ..
        } = self.checkout;
        let tip = match mirrors.fetch(repo_full_name, url, self.branch, patience, wanted).await {
            Err(MirrorError::NoBranch { .. }) => return Ok(None),
            tip => tip?,
        };
        if tip.commit == self.from.commit && self.branch == self.from.branch {
            return Ok(None);
        }
        let needs_update = self.needs_update(&tip).await?;
        let pack = tip.pack_since(&self.from.commit).await?;
        agent.write_file(PACK, PACK_MODE, pack).await?;
        self.run(agent, &tip.commit).await?;
        Ok(Some(Moved {
            needs_update,
            commit: tip.commit,
        }))
    }

    async fn run(&self, agent: &AgentClient, target: &str) -> Result<(), MoveError> {
        let variables = [
            ("HAVE", self.from.commit.as_str()),
            ("TARGET", target),
            ("BRANCH", self.branch),
            ("PACK", PACK),
        ];
        let spec = ExecSpec {
            shell: Some(SCRIPT.to_owned()),
            cwd: Some(self.from.path.clone()),
            env: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            timeout_ms: Some(millis(MOVE_PATIENCE)),
            ..ExecSpec::default()
        };
        let output = agent.exec_collect(&spec, 4096).await?;
        match output.end {
            ExecEnd::Exited { code: Some(0), .. } => Ok(()),
            ExecEnd::Exited {
                code: Some(NOT_OURS), ..
            } => Err(MoveError::NotClean),
            ExecEnd::Exited { .. } => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(MoveError::Refused(said))
            }
            // It may have stopped anywhere.
            _ => Err(AgentError::Protocol("moving the checkout did not end".to_owned()).into()),
        }
    }

    /// Whether its script is there for one of the files that change.
    async fn needs_update(&self, tip: &Tip) -> Result<bool, GitError> {
        if self.checkout.scripts.script(Phase::UpdateAfterCheckout).is_none() {
            return Ok(false);
        }
        let changed = tip.changed_since(&self.from.commit).await?;
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
            // A pattern that is none watches everything: rather once too often.
            set.add(Glob::new(pattern).ok()?);
        }
        set.build().ok()
    }
}

impl Tip {
    /// A pack of everything that this commit has and that one has not; empty when nothing is missing.
    async fn pack_since(&self, have: &str) -> Result<Vec<u8>, GitError> {
        let options = [
            "pack-objects",
            "-q",
            "--revs",
            "--thin",
            "--stdout",
            "--delta-base-offset",
        ];
        let wish = format!("{}\n^{have}\n", self.commit);
        let pack = git_fed(self.mirror(), options, wish.into_bytes(), MOVE_PATIENCE)
            .await?
            .stdout;
        Ok(if pack.len() <= EMPTY_PACK_BYTES {
            Vec::new()
        } else {
            pack
        })
    }

    /// The files that differ between that commit and this one.
    async fn changed_since(&self, have: &str) -> Result<Vec<std::path::PathBuf>, GitError> {
        let options = ["diff", "--name-only", "-z", "--no-renames", have, &self.commit];
        let said = git_fed(self.mirror(), options, Vec::new(), MOVE_PATIENCE).await?.stdout;
        let names = said.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names
            .map(|name| Path::new(&*String::from_utf8_lossy(name)).to_owned())
            .collect())
    }
}
