//! The scripts with the real git, in repositories on this host: nothing of them needs a VM.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{MOVE, NO_REPOSITORY, NOT_OURS, NOT_RECORDED, RECORD};

/// A repository upstream and a clone of it, as a VM has one.
struct World {
    folder: tempfile::TempDir,
}

fn run(folder: &Path, program: &str, words: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(program)
        .args(words)
        .current_dir(folder)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn git(folder: &Path, words: &[&str]) -> String {
    let who = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
    let output = run(folder, "git", &[&who[..], words].concat(), &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn script(folder: &Path, text: &str, variables: &[(&str, &str)]) -> Output {
    run(folder, "bash", &["-eo", "pipefail", "-c", text], variables)
}

fn recorded(folder: &Path) -> Output {
    run(folder, "sh", &["-ec", RECORD], &[])
}

fn write(folder: &Path, name: &str, content: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

impl World {
    /// `main` with the files `lock` and `kept`, and `topic`, which changes `lock` and has `dist.js` and `gen/x` besides.
    fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let up = world.up();
        std::fs::create_dir(&up).unwrap();
        git(&up, &["init", "--quiet", "--initial-branch=main"]);
        world.commit("main", &[("lock", "1\n"), ("kept", "1\n")]);
        git(&up, &["branch", "topic"]);
        world.commit(
            "topic",
            &[("lock", "topic\n"), ("dist.js", "built\n"), ("gen/x", "x\n")],
        );
        world
    }

    fn up(&self) -> PathBuf {
        self.folder.path().join("up")
    }

    fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String {
        let up = self.up();
        if git(&up, &["branch", "--list", branch]).is_empty() {
            git(&up, &["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")]);
        } else {
            git(&up, &["checkout", "--quiet", branch]);
        }
        files.iter().for_each(|(name, content)| write(&up, name, content));
        git(&up, &["add", "--all"]);
        git(&up, &["commit", "--quiet", "--message", "next"]);
        git(&up, &["rev-parse", "HEAD"])
    }

    fn head(&self, branch: &str) -> String {
        git(&self.up(), &["rev-parse", &format!("refs/heads/{branch}")])
    }

    /// A clone on `branch`; what comes later is there as objects alone.
    fn checkout(&self, name: &str, branch: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        git(
            self.folder.path(),
            &["clone", "--quiet", "--template=", "--branch", branch, "up", name],
        );
        folder
    }

    /// Objects of the upstream repository, and no reference.
    fn transfer(&self, folder: &Path, commit: &str) {
        git(
            folder,
            &[
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "../up",
                commit,
            ],
        );
    }
}

fn record(folder: &Path) {
    let output = recorded(folder);
    assert!(output.status.success(), "{output:?}");
}

/// In a VM that a person worked in.
fn go(folder: &Path, target: &str, branch: &str) -> Result<(), i32> {
    go_in(folder, target, branch, "yes")
}

fn go_in(folder: &Path, target: &str, branch: &str, worked_in: &str) -> Result<(), i32> {
    let have = git(folder, &["rev-parse", "HEAD"]);
    let variables = [
        ("HAVE", have.as_str()),
        ("TARGET", target),
        ("BRANCH", branch),
        ("WORKED_IN", worked_in),
    ];
    let output = script(folder, MOVE, &variables);
    assert_eq!(output.status.signal(), None);
    match output.status.code() {
        Some(0) => Ok(()),
        code => Err(code.unwrap()),
    }
}

fn assert_on(folder: &Path, branch: &str, commit: &str) {
    assert_eq!(git(folder, &["symbolic-ref", "HEAD"]), format!("refs/heads/{branch}"));
    assert_eq!(git(folder, &["rev-parse", "HEAD"]), commit);
    let upstream = ["for-each-ref", "--format=%(upstream)", &format!("refs/heads/{branch}")].map(str::to_owned);
    let upstream: Vec<&str> = upstream.iter().map(String::as_str).collect();
    assert_eq!(git(folder, &upstream), format!("refs/remotes/origin/{branch}"));
}

#[test]
fn what_the_set_up_changed_gives_way_and_the_rest_of_it_stays() {
    let world = World::new();
    let (checkout, topic) = (world.checkout("c", "main"), world.head("topic"));
    write(&checkout, "lock", "rewritten by an install\n");
    write(&checkout, "dist.js", "mine\n");
    write(&checkout, "gen", "a file where the branch has a folder\n");
    write(&checkout, "installed/module", "stays\n");
    std::fs::remove_file(checkout.join("kept")).unwrap();
    record(&checkout);
    assert_eq!(go(&checkout, &topic, "topic"), Ok(()));
    assert_on(&checkout, "topic", &topic);
    let all = ["lock", "dist.js", "gen/x", "kept", "installed/module"].map(|name| read(&checkout, name));
    assert_eq!(all, ["topic\n", "built\n", "x\n", "1\n", "stays\n"]);
    assert_eq!(git(&checkout, &["status", "--porcelain"]), "?? installed/");
    // A hand-over that was broken off is taken up again.
    assert_eq!(go(&checkout, &topic, "topic"), Ok(()));
}

#[test]
fn what_somebody_changed_after_the_set_up_is_not_touched() {
    let world = World::new();
    let topic = world.head("topic");
    let changes: [(&str, &str, &str, Result<(), i32>); 6] = [
        ("a file that the set-up changed", "lock", "somebody's\n", Err(NOT_OURS)),
        ("a file that the set-up made", "dist.js", "somebody's\n", Err(NOT_OURS)),
        ("a file that it left alone", "kept", "somebody's\n", Err(NOT_OURS)),
        ("a new file that the branch has", "gen/x", "somebody's\n", Err(NOT_OURS)),
        (
            "a new file below one that the branch has",
            "gen/x/y",
            "somebody's\n",
            Err(NOT_OURS),
        ),
        ("a new file that is in nobody's way", "notes", "somebody's\n", Ok(())),
    ];
    for (number, (what, file, content, expected)) in changes.into_iter().enumerate() {
        let checkout = world.checkout(&format!("c{number}"), "main");
        write(&checkout, "lock", "rewritten by an install\n");
        write(&checkout, "dist.js", "mine\n");
        record(&checkout);
        write(&checkout, file, content);
        assert_eq!(go(&checkout, &topic, "topic"), expected, "{what}");
        assert_eq!(read(&checkout, file), content, "{what}");
    }
    // Where the set-up changed nothing, nothing is remembered, and every change is the user's.
    let clean = world.checkout("clean", "main");
    record(&clean);
    assert!(!clean.join(".git/hearth").exists());
    write(&clean, "kept", "somebody's\n");
    assert_eq!(go(&clean, &topic, "topic"), Err(NOT_OURS));
    let committed = world.checkout("committed", "main");
    record(&committed);
    let have = git(&committed, &["rev-parse", "HEAD"]);
    git(&committed, &["commit", "--quiet", "--allow-empty", "--message", "own"]);
    let variables = [
        ("HAVE", have.as_str()),
        ("TARGET", topic.as_str()),
        ("BRANCH", "topic"),
        ("WORKED_IN", ""),
    ];
    assert_eq!(script(&committed, MOVE, &variables).status.code(), Some(NOT_OURS));
}

#[test]
fn where_nobody_worked_everything_is_the_set_ups() {
    let world = World::new();
    let topic = world.head("topic");
    let checkout = world.checkout("c", "main");
    record(&checkout);
    // A service that the set-up started continues after that.
    write(&checkout, "lock", "by a service\n");
    write(&checkout, "dist.js", "by a service\n");
    write(&checkout, "cache/entry", "by a service\n");
    assert_eq!(go_in(&checkout, &topic, "topic", ""), Ok(()));
    assert_on(&checkout, "topic", &topic);
    assert_eq!(git(&checkout, &["status", "--porcelain"]), "?? cache/");
}

#[test]
fn what_the_set_up_left_is_told() {
    let world = World::new();
    let said = |folder: &Path| String::from_utf8(recorded(folder).stdout).unwrap();
    let main = world.head("main");
    let checkout = world.checkout("c", "main");
    assert_eq!(said(&checkout), format!("# branch.oid {main}\n# branch.head main\n"));
    git(&checkout, &["checkout", "--quiet", "--detach", "origin/topic"]);
    let topic = world.head("topic");
    assert_eq!(
        said(&checkout),
        format!("# branch.oid {topic}\n# branch.head (detached)\n")
    );
    // A repository above is another one.
    std::fs::rename(checkout.join(".git"), checkout.join("moved")).unwrap();
    git(world.folder.path(), &["init", "--quiet"]);
    assert_eq!(recorded(&checkout).status.code(), Some(NO_REPOSITORY));
    assert_eq!(
        script(&checkout, MOVE, &[("BRANCH", "topic")]).status.code(),
        Some(NO_REPOSITORY)
    );
    let unknown = world.checkout("unknown", "main");
    std::fs::create_dir(unknown.join(".git/hearth")).unwrap();
    assert_eq!(go(&unknown, &topic, "topic"), Err(NOT_RECORDED));
}

#[test]
fn tags_that_are_named_like_branches_are_not_taken_for_them() {
    let world = World::new();
    let (up, main, topic) = (world.up(), world.head("main"), world.head("topic"));
    for tag in ["topic", "origin/topic", "heads/topic", "main", "origin/main"] {
        git(&up, &["tag", tag, &main]);
    }
    let checkout = world.checkout("c", "main");
    assert_eq!(git(&checkout, &["tag", "--list"]).lines().count(), 5);
    record(&checkout);
    assert_eq!(go(&checkout, &topic, "topic"), Ok(()));
    assert_on(&checkout, "topic", &topic);
    let next = world.commit("topic", &[("lock", "next\n")]);
    world.transfer(&checkout, &next);
    assert_eq!(go(&checkout, &next, "topic"), Ok(()));
    assert_on(&checkout, "topic", &next);
}

#[test]
fn a_branch_that_became_a_folder_of_branches_and_the_other_way_round_leaves_nothing_of_before() {
    let world = World::new();
    let up = world.up();
    git(&up, &["checkout", "--quiet", "main"]);
    git(&up, &["branch", "rel"]);
    git(&up, &["branch", "old/a"]);
    git(&up, &["branch", "old/b/c"]);
    let (on_main, on_rel) = (world.checkout("main", "main"), world.checkout("rel", "rel"));
    let (loose, on_old) = (world.checkout("loose", "main"), world.checkout("old", "old/a"));
    git(&on_main, &["pack-refs", "--all"]);
    for branch in ["rel", "old/a", "old/b/c"] {
        git(&up, &["branch", "--quiet", "-D", branch]);
    }
    let rel = world.commit("rel/2", &[("lock", "rel\n")]);
    let old = world.commit("old", &[("lock", "old\n")]);
    let refs = |folder: &Path| {
        git(
            folder,
            &["for-each-ref", "--format=%(refname)", "refs/remotes", "refs/heads"],
        )
    };
    for (checkout, own) in [
        (&on_main, "main"),
        (&on_rel, "rel"),
        (&loose, "main"),
        (&on_old, "old/a"),
    ] {
        // As a move of before this one would have left it.
        let copy = checkout.with_extension("copy");
        let copied = run(
            world.folder.path(),
            "cp",
            &["-a", checkout.to_str().unwrap(), copy.to_str().unwrap()],
            &[],
        );
        assert!(copied.status.success());
        for (folder, branch, commit, gone) in [(checkout, "rel/2", &rel, "rel"), (&copy, "old", &old, "old/")] {
            world.transfer(folder, commit);
            record(folder);
            assert_eq!(go(folder, commit, branch), Ok(()), "{own} to {branch}");
            assert_on(folder, branch, commit);
            let left = refs(folder);
            let is_gone = |name: &str| match gone.strip_suffix('/') {
                Some(_) => name.contains(gone),
                None => name.ends_with(&format!("/{gone}")),
            };
            assert!(!left.lines().any(is_gone), "{own} to {branch}: {left}");
            assert!(left.contains("refs/remotes/origin/topic"), "{left}");
            git(folder, &["fsck", "--connectivity-only"]);
        }
    }
    // A local branch with commits of its own is not removed.
    let own = world.checkout("own", "main");
    git(&own, &["checkout", "--quiet", "-b", "new"]);
    git(&own, &["commit", "--quiet", "--allow-empty", "--message", "own"]);
    git(&own, &["checkout", "--quiet", "main"]);
    let new = world.commit("new/2", &[("lock", "new\n")]);
    world.transfer(&own, &new);
    record(&own);
    assert!(go(&own, &new, "new/2").is_err());
    assert!(refs(&own).contains("refs/heads/new\n"));
}
