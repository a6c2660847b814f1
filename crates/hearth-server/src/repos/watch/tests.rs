//! The watch with a real store, real git and the fake driver, without its HTTP door.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_api::ids::ProjectId;
use hearth_api::pool::PatchPool;
use hearth_api::project::VmSize;
use hearth_core::checkout::Remote;
use hearth_core::tenant::FIRST_TENANT;
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Pushed, Watch};
use crate::repos::mirrors::Mirrors;
use crate::repos::sources::{Sources, known_hosts};
use crate::secrets::cipher::Cipher;
use crate::store::{ClaimRules, ProjectRow, RepoSource, Store};
use crate::wake::Wake;

/// How long a predicate may take to hold.
const SOON: Duration = Duration::from_secs(30);
/// An interval so long that no timed poll happens during a test.
const SELDOM: Duration = Duration::from_secs(3600);
/// A poll so often that a test need not wait.
const OFTEN: Duration = Duration::from_millis(200);

struct House {
    folder: tempfile::TempDir,
    store: Store,
    watch: Watch,
    _end: tokio_util::sync::DropGuard,
}

impl House {
    async fn new(interval: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cipher = Arc::new(Cipher::open(&folder.path().join("key")).unwrap());
        let store = Store::open(&folder.path().join("db"), cipher, None).await.unwrap();
        let mirrors = folder.path().join("mirrors");
        std::fs::create_dir(&mirrors).unwrap();
        let sources = Sources::new(&[], known_hosts(&mirrors));
        let mirrors = Mirrors::new(mirrors, sources);
        let watch = Watch::new(store.clone(), mirrors, Wake::default(), interval, SOON);
        let stop = CancellationToken::new();
        tokio::spawn({
            let (watch, stop) = (watch.clone(), stop.clone());
            async move { watch.run(stop).await }
        });
        Self {
            folder,
            store,
            watch,
            _end: stop.drop_guard(),
        }
    }

    /// A repository with one commit on `main`.
    fn repo(&self, name: &str) -> Repo {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let repo = Repo(folder);
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo.commit();
        repo
    }

    /// A project whose enabled pool follows this branch.
    async fn follow(&self, repo: &Repo, branch: &str) {
        let id = ProjectId::generate();
        let now = Timestamp::now();
        let project = ProjectRow {
            id: id.clone(),
            tenant: FIRST_TENANT.to_owned(),
            // Names are unique in a tenant.
            name: id.to_string(),
            description: None,
            task_code: "P".to_owned(),
            repos: vec![RepoSource {
                repo_full_name: "acme/app".parse().unwrap(),
                branch: branch.parse().unwrap(),
                url: repo.url(),
                lfs: true,
                submodules: true,
            }],
            image: None,
            vm_size: VmSize::Small,
            project_setup: None,
            setup: None,
            max_vms: None,
            claim_rules: ClaimRules::default(),
            git_identity: None,
            variables_version: 0,
            credentials_version: 0,
            template_epoch: 0,
            created_at: now,
            updated_at: now,
        };
        self.store.insert_project(&project).await.unwrap();
        let enable: PatchPool = serde_json::from_value(json!({ "enabled": true })).unwrap();
        self.store.change_pool(&id, &enable, now).await.unwrap().unwrap();
    }

    async fn head(&self, repo: &Repo, branch: &str) -> Option<String> {
        let remote = repo.remote();
        let heads = self.store.branch_heads_at(std::slice::from_ref(&remote)).await.unwrap();
        heads.commit(&remote, branch).map(str::to_owned)
    }

    async fn until_head(&self, repo: &Repo, branch: &str, commit: &str) {
        let deadline = Instant::now() + SOON;
        while self.head(repo, branch).await.as_deref() != Some(commit) {
            assert!(Instant::now() < deadline, "the head of {branch} was never noted");
            pause().await;
        }
    }
}

async fn pause() {
    // pause between two checks
    tokio::time::sleep(Duration::from_millis(20)).await;
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} never came to be");
        pause().await;
    }
}

struct Repo(PathBuf);

impl Repo {
    fn url(&self) -> String {
        format!("file://{}", self.0.display())
    }

    fn remote(&self) -> Remote {
        Remote {
            tenant: FIRST_TENANT.to_owned(),
            project: None,
            url: self.url(),
        }
    }

    fn git(&self, args: &[&str]) -> String {
        git(&self.0, args)
    }

    /// One more commit; its name.
    fn commit(&self) -> String {
        let who = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        self.git(&[&who[..], &["commit", "--quiet", "--allow-empty", "-m", "x"]].concat());
        self.git(&["rev-parse", "HEAD"])
    }
}

fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(folder).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn push() -> Pushed {
    let body = json!({ "repository": { "full_name": "acme/app" } });
    Pushed::read(body.as_object().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pools_and_branches_of_one_repository_cost_one_look() {
    let house = House::new(SELDOM).await;
    let repo = house.repo("app");
    repo.git(&["branch", "dev"]);
    let commit = repo.git(&["rev-parse", "HEAD"]);
    for branch in ["main", "main", "dev"] {
        house.follow(&repo, branch).await;
    }
    house.until_head(&repo, "main", &commit).await;
    house.until_head(&repo, "dev", &commit).await;
    // All three were noticed at once, or, if the watch began in between, one by one.
    assert!((1..=3).contains(&house.watch.polls()), "{}", house.watch.polls());
    assert_eq!(house.watch.faults(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_head_is_recorded_when_its_commit_is_on_the_host() {
    let house = House::new(OFTEN).await;
    let repo = house.repo("app");
    house.follow(&repo, "main").await;
    for _ in 0..3 {
        let commit = repo.commit();
        house.until_head(&repo, "main", &commit).await;
        let mirror = std::fs::read_dir(house.folder.path().join("mirrors")).unwrap();
        let mirror = mirror.map(|entry| entry.unwrap().path()).next().unwrap();
        assert_eq!(git(&mirror, &["cat-file", "-t", &commit]), "commit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_a_thousand_hooks_is_one_look_or_two() {
    let house = House::new(SELDOM).await;
    let repo = house.repo("app");
    house.follow(&repo, "main").await;
    let first = repo.git(&["rev-parse", "HEAD"]);
    house.until_head(&repo, "main", &first).await;
    let commit = repo.commit();
    for _ in 0..1000 {
        assert_eq!(house.watch.hook(&push()), 1);
    }
    house.until_head(&repo, "main", &commit).await;
    assert!((2..=3).contains(&house.watch.polls()), "{}", house.watch.polls());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_interval_it_looks_once_and_then_only_for_a_hook() {
    let house = House::new(Duration::ZERO).await;
    let repo = house.repo("app");
    let commit = repo.git(&["rev-parse", "HEAD"]);
    house.follow(&repo, "main").await;
    house.until_head(&repo, "main", &commit).await;
    let commit = repo.commit();
    house.watch.hook_unread();
    house.until_head(&repo, "main", &commit).await;
    assert_eq!(house.watch.polls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_vanishes_is_a_fault_until_it_is_back() {
    let house = House::new(OFTEN).await;
    let repo = house.repo("app");
    house.follow(&repo, "main").await;
    let first = repo.git(&["rev-parse", "HEAD"]);
    house.until_head(&repo, "main", &first).await;
    let (remote, away) = (repo.remote(), house.folder.path().join("away"));
    std::fs::rename(&repo.0, &away).unwrap();
    let fault = || house.watch.fault(&remote, "main");
    until("a fault that was found twice", || {
        fault().is_some_and(|fault| fault.times >= 2)
    })
    .await;
    let fault_now = fault().unwrap();
    assert_eq!((&fault_now.branch, &fault_now.remote), (&None, &remote));
    assert!(fault_now.message.contains("cannot be reached"), "{}", fault_now.message);
    assert!(fault_now.since <= Timestamp::now());
    std::fs::rename(&away, &repo.0).unwrap();
    until("the end of the fault", || fault().is_none()).await;
    assert_eq!(house.head(&repo, "main").await, Some(first));
    assert_eq!(house.watch.faults(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_is_gone_is_its_own_fault_and_keeps_its_head() {
    let house = House::new(OFTEN).await;
    let repo = house.repo("app");
    repo.git(&["branch", "dev"]);
    let commit = repo.git(&["rev-parse", "HEAD"]);
    house.follow(&repo, "main").await;
    house.follow(&repo, "dev").await;
    house.until_head(&repo, "dev", &commit).await;
    repo.git(&["branch", "--delete", "--force", "dev"]);
    let remote = repo.remote();
    until("the fault", || house.watch.fault(&remote, "dev").is_some()).await;
    let faults = house.watch.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].branch.as_deref(), Some("dev"));
    assert!(faults[0].message.contains("no branch `dev`"), "{}", faults[0].message);
    assert_eq!(house.watch.fault(&remote, "main"), None);
    assert_eq!(house.head(&repo, "dev").await, Some(commit));
    let news = repo.commit();
    house.until_head(&repo, "main", &news).await;
    repo.git(&["branch", "dev"]);
    house.until_head(&repo, "dev", &news).await;
    until("the end of the fault", || house.watch.faults().is_empty()).await;
}
