//! Puts what comes along with a commit into a VM: the objects of Git LFS beside the repository's own, the git folders of submodules
//! below its `.git`. The VM's git then fills the work trees, without a network.

use std::time::Duration;

use hearth_core::checkout::Extras;
use hearth_core::time::millis;
use hearth_guest::client::{AgentClient, AgentError, Upload};
use hearth_guest::{ExecEnd, ExecSpec};

use super::extra_content::{ExtraContent, Submodule};
use super::mirrors::{CloneParts, MirrorCommit, MirrorError, has_commit, objects_as_tar};

/// Time limit of what git does in the VM at a claim.
const PATIENCE: Duration = Duration::from_secs(120);
/// Mode of a pack and its index, as git makes them.
const PACK_MODE: u32 = 0o444;
/// Says so when the VM's image has no git-lfs: the files would be pointers.
const NEEDS_LFS: &str = "command -v git-lfs >/dev/null || { echo 'the repository uses Git LFS, and the image has no git-lfs: \
                         make a new one (`hearth image build`), or do without (`lfs: false`)' >&2; exit 1; }";
/// Bytes of a command's output that are kept for a sentence.
const KEPT_BYTES: usize = 4096;

/// Why something could not be brought.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The host does not have it.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The VM's agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The VM's git said no.
    #[error("git in the VM said: {0}")]
    Refused(String),
}

/// The folder of a checkout's git, and of a submodule's below it.
fn git_folder(path: &str, submodule: Option<&Submodule>) -> String {
    match submodule {
        None => format!("{path}/.git"),
        Some(submodule) => format!("{path}/.git/{}", submodule.folder),
    }
}

/// A clone with everything that comes along; no work tree is filled yet.
pub async fn put_clone(
    agent: &AgentClient,
    path: &str,
    (head, url, branch): (&MirrorCommit, &str, &str),
    extra_content: &ExtraContent,
    extras: Extras,
) -> Result<(), TransferError> {
    let parts = CloneParts {
        branch: Some(branch),
        lfs: &extra_content.lfs,
        skips_lfs: extra_content.uses_lfs && !extras.lfs,
    };
    let tar = head.clone_as_tar(url, parts).await?;
    agent
        .put_tree(&git_folder(path, None), Upload::from_reader(tar))
        .await?;
    for submodule in &extra_content.submodules {
        put_submodule(agent, path, submodule, extras).await?;
    }
    Ok(())
}

async fn put_submodule(
    agent: &AgentClient,
    path: &str,
    submodule: &Submodule,
    extras: Extras,
) -> Result<(), TransferError> {
    let parts = CloneParts {
        branch: None,
        lfs: &submodule.lfs,
        skips_lfs: submodule.uses_lfs && !extras.lfs,
    };
    let tar = submodule.head.clone_as_tar(&submodule.url, parts).await?;
    let folder = git_folder(path, Some(submodule));
    Ok(agent.put_tree(&folder, Upload::from_reader(tar)).await?)
}

/// The command that fills the work tree of a fresh clone.
pub fn fill(path: &str, extra_content: &ExtraContent) -> ExecSpec {
    let reset = "exec git reset --hard";
    let has_lfs = !extra_content.lfs.is_empty()
        || extra_content
            .submodules
            .iter()
            .any(|submodule| !submodule.lfs.is_empty());
    if has_lfs {
        ExecSpec {
            shell: Some(format!("{NEEDS_LFS}\n{reset}")),
            cwd: Some(path.to_owned()),
            ..ExecSpec::default()
        }
    } else {
        git(path, ["reset", "--hard"].map(str::to_owned).into())
    }
}

/// The commands that fill the work trees of submodules, those of one parent together.
pub fn fill_submodules(path: &str, extra_content: &ExtraContent) -> Vec<ExecSpec> {
    fill_some(path, &extra_content.submodules.iter().collect::<Vec<_>>(), false)
}

fn fill_some(path: &str, submodules: &[&Submodule], force: bool) -> Vec<ExecSpec> {
    let mut commands: Vec<(&str, Vec<String>)> = Vec::new();
    for submodule in submodules {
        let (parent, own) = &submodule.within;
        match commands.iter_mut().find(|(other, _)| other == parent) {
            Some((_, paths)) => paths.push(own.clone()),
            None => commands.push((parent, vec![own.clone()])),
        }
    }
    let spec = |(parent, paths): (&str, Vec<String>)| {
        let folder = format!("{path}/{parent}");
        // All of it is there: nothing is fetched.
        let mut words = ["submodule", "update", "--init", "--no-fetch"]
            .map(str::to_owned)
            .to_vec();
        words.extend(force.then(|| "--force".to_owned()));
        words.push("--".to_owned());
        words.extend(paths);
        git(folder.trim_end_matches('/'), words)
    };
    commands.into_iter().map(spec).collect()
}

fn git(folder: &str, words: Vec<String>) -> ExecSpec {
    let mut argv = ["git", "-C", folder].map(str::to_owned).to_vec();
    argv.extend(words);
    ExecSpec {
        argv: Some(argv),
        ..ExecSpec::default()
    }
}

/// Before a checkout is moved: puts what comes along with its new commit and did not with the one before beside what is there. Nothing
/// refers to it yet.
pub async fn put_changes(
    agent: &AgentClient,
    path: &str,
    extra_content: &ExtraContent,
    before: &ExtraContent,
    extras: Extras,
) -> Result<(), TransferError> {
    if !extra_content.lfs.is_empty() && before.lfs.is_empty() {
        let look = ExecSpec {
            shell: Some(NEEDS_LFS.to_owned()),
            ..ExecSpec::default()
        };
        run(agent, look).await?;
    }
    put_lfs(agent, &git_folder(path, None), &extra_content.lfs, &before.lfs).await?;
    for submodule in changed(extra_content, before) {
        let folder = git_folder(path, Some(submodule));
        let Some(old) = before.submodules.iter().find(|old| old.folder == submodule.folder) else {
            put_submodule(agent, path, submodule, extras).await?;
            continue;
        };
        let head = &submodule.head;
        let pack = if has_commit(head.mirror(), &old.head.commit).await {
            head.pack_since(&old.head.commit, PATIENCE).await?
        } else {
            // It comes from elsewhere now.
            head.pack_whole(PATIENCE).await?
        };
        if let Some(pack) = pack {
            // The index last: with it the pack is one.
            for (ending, content) in [("pack", pack.objects), ("idx", pack.index)] {
                let file = format!("{folder}/objects/pack/{}.{ending}", pack.name);
                agent.write_file(&file, PACK_MODE, content).await?;
            }
        }
        put_lfs(agent, &folder, &submodule.lfs, &old.lfs).await?;
    }
    Ok(())
}

async fn put_lfs(
    agent: &AgentClient,
    folder: &str,
    objects: &[super::lfs::LfsObject],
    before: &[super::lfs::LfsObject],
) -> Result<(), TransferError> {
    let is_new = |object: &&super::lfs::LfsObject| !before.iter().any(|old| old.place == object.place);
    let missing: Vec<_> = objects.iter().filter(is_new).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let tar = objects_as_tar(missing);
    Ok(agent.put_tree(folder, Upload::from_reader(tar)).await?)
}

/// The submodules that are not as they were.
fn changed<'a>(extra_content: &'a ExtraContent, before: &'a ExtraContent) -> impl Iterator<Item = &'a Submodule> {
    extra_content.submodules.iter().filter(|submodule| {
        !before.submodules.iter().any(|old| {
            (&old.folder, &old.path, &old.head.commit) == (&submodule.folder, &submodule.path, &submodule.head.commit)
        })
    })
}

/// After a checkout was moved: moves the submodules that are at another commit now. With `force` what the set-up changed in them gives
/// way.
pub async fn move_submodules(
    agent: &AgentClient,
    path: &str,
    extra_content: &ExtraContent,
    before: &ExtraContent,
    force: bool,
) -> Result<(), TransferError> {
    let changed: Vec<_> = changed(extra_content, before).collect();
    for spec in fill_some(path, &changed, force) {
        run(agent, spec).await?;
    }
    Ok(())
}

async fn run(agent: &AgentClient, spec: ExecSpec) -> Result<(), TransferError> {
    let spec = ExecSpec {
        timeout_ms: Some(millis(PATIENCE)),
        ..spec
    };
    let output = agent.exec_collect(&spec, KEPT_BYTES).await?;
    match output.end {
        ExecEnd::Exited { code: Some(0), .. } => Ok(()),
        ExecEnd::Exited { .. } => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(TransferError::Refused(said))
        }
        _ => Err(AgentError::Protocol("bringing a submodule did not end".to_owned()).into()),
    }
}
