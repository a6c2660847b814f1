//! Moving a checkout in a claimed VM to where its branch is now. The host brings what is missing as one pack, so that the VM needs
//! no network, no credentials and little time; only a clean tree on the commit that Hearth put there is moved.

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

/// Where a repository has its packs, below the checkout.
const PACKS: &str = ".git/objects/pack";
/// Mode of a pack and its index, as git makes them.
const PACK_MODE: u32 = 0o444;
/// Says that a repository is there, below the checkout.
const HEAD: &str = ".git/HEAD";
/// A tip of another branch that was fetched so long ago is new enough for a claim.
const BRANCH_FRESH: Duration = Duration::from_secs(15);
/// Time limit of what git does in the VM, and on the host for it.
const MOVE_PATIENCE: Duration = Duration::from_secs(120);
/// What the script below ends with when the tree is not as Hearth left it.
const NOT_OURS: i32 = 3;
/// The tree stays as it is unless it is clean and on the commit that Hearth put there. A guest that is emulated computes every
/// program anew that runs in it the first time, so there are two: one look, and the move. The tip of the remote branch is
/// written as git would write it.
const SCRIPT: &str = "nl='\n'\n\
                      said=$(git status --porcelain=v2 --branch --no-ahead-behind --untracked-files=no) || exit 3\n\
                      case \"$said\" in \"# branch.oid $HAVE$nl\"*) ;; *) exit 3 ;; esac\n\
                      case \"$said\" in *\"$nl\"[!#]*) exit 3 ;; esac\n\
                      ref=.git/refs/remotes/origin/$BRANCH\n\
                      [ -d \"${ref%/*}\" ] || mkdir -p \"${ref%/*}\" || exit 1\n\
                      echo \"$TARGET\" >\"$ref\" && git checkout --quiet -B \"$BRANCH\" --track \"origin/$BRANCH\"";
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
    /// The host's git does not say what changed.
    #[error("what changed cannot be told: {0}")]
    Diff(#[from] GitError),
    /// The set-up left changes in the tree.
    #[error("its tree has changes or commits of its own")]
    NotClean,
    /// The set-up moved or removed it.
    #[error("its repository is not where it was: {0}")]
    NoRepository(String),
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
        let (name, remote) = (&self.checkout.repo_full_name, self.checkout.remote());
        let tip = match mirrors.fetch(name, &remote, self.branch, patience, wanted).await {
            Err(MirrorError::NoBranch { .. }) => return Ok(None),
            tip => tip?,
        };
        if tip.commit == self.from.commit && self.branch == self.from.branch {
            return Ok(None);
        }
        let needs_update = self.needs_update(&tip).await?;
        self.bring(agent, &tip).await?;
        self.run(agent, &tip.commit).await?;
        Ok(Some(Moved {
            needs_update,
            commit: tip.commit,
        }))
    }

    /// Puts what is missing beside the repository's other packs. Nothing refers to it yet.
    async fn bring(&self, agent: &AgentClient, tip: &Tip) -> Result<(), MoveError> {
        let Some(pack) = tip.pack_since(&self.from.commit, MOVE_PATIENCE).await? else {
            return Ok(());
        };
        let place = |below: &str| format!("{}/{below}", self.from.path);
        let refused = |error| match error {
            AgentError::Refused { message, .. } => MoveError::NoRepository(message),
            error => MoveError::Agent(error),
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

    async fn run(&self, agent: &AgentClient, target: &str) -> Result<(), MoveError> {
        let variables = [
            ("HAVE", self.from.commit.as_str()),
            ("TARGET", target),
            ("BRANCH", self.branch),
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
