//! `hearth serve --driver incus` through the real program: a pool on one daemon, and on a cluster of three that loses a member.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::incus_daemon::{Daemons, POOL};
use crate::support::{Ran, run};

/// How long anything may take on a busy machine: an image is unpacked, a VM boots and is copied to other members.
const LONG: Duration = Duration::from_secs(300);

/// A server, and the daemons that make its VMs.
struct Rig {
    server: Child,
    folder: tempfile::TempDir,
    daemons: Daemons,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.server.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        let _ = self.server.wait();
    }
}

fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args([
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@example.org",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(args)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

impl Rig {
    /// With a repository `acme/web` below `git`, and the image that xtask built.
    fn new(daemons: Daemons) -> Self {
        let images = std::env::var_os("HEARTH_TEST_DATA")
            .expect("HEARTH_TEST_DATA is not set: `cargo xtask test NAME` builds a guest image and sets it");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir_all(path.join("data")).unwrap();
        std::os::unix::fs::symlink(PathBuf::from(images).join("images"), path.join("data/images")).unwrap();
        let work = path.join("work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::create_dir_all(path.join("git/acme")).unwrap();
        git(&work, &["init", "-q"]);
        std::fs::write(work.join("file"), "first\n").unwrap();
        git(&work, &["add", "."]);
        git(&work, &["commit", "-qm", "first"]);
        git(path, &["clone", "-q", "--bare", "work", "git/acme/web.git"]);
        let rig = Self {
            server: serve(path, &daemons),
            folder,
            daemons,
        };
        rig.wait("the server answers", || rig.try_run(&["project", "list"]).code == 0);
        rig
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        command
            .args(args)
            .env("HEARTH_RUNTIME_DIR", self.folder.path().join("run"))
            .stdin(Stdio::null());
        command
    }

    fn try_run(&self, args: &[&str]) -> Ran {
        run(self.command(args))
    }

    fn run(&self, args: &[&str]) -> String {
        let ran = self.try_run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}\n{}", ran.stdout, ran.stderr, self.log());
        ran.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[&["--json"], args].concat())).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn wait(&self, what: &str, so: impl Fn() -> bool) {
        let began = Instant::now();
        while !so() {
            assert!(
                began.elapsed() < LONG,
                "never came about: {what}\n{}{}\n{}",
                self.try_run(&["pool", "explain", "p"]).stdout,
                self.try_run(&["pool", "instances", "p"]).stdout,
                self.log()
            );
            // pause between two checks
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn instances(&self) -> Vec<Value> {
        self.json(&["pool", "instances", "p"])["items"]
            .as_array()
            .unwrap()
            .clone()
    }

    fn ready(&self) -> Vec<String> {
        let ready = self.instances().into_iter().filter(|it| it["status"] == "ready");
        ready.map(|it| it["instanceId"].as_str().unwrap().to_owned()).collect()
    }

    /// What there is in Incus, by a member that answers: names, and where they are.
    fn places(&self, at: usize) -> Vec<(String, String)> {
        let all = self
            .daemons
            .get(at)
            .api("GET", "/1.0/instances?recursion=1&all-projects=true", None);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let all = all.as_array().unwrap().iter();
        all.map(|it| (text(&it["name"]), text(&it["location"]))).collect()
    }

    fn vms(&self, at: usize) -> Vec<(String, String)> {
        let mut all = self.places(at);
        all.retain(|(name, _)| name.starts_with("vm-"));
        all
    }

    fn push(&self, text: &str) -> String {
        let work = self.folder.path().join("work");
        std::fs::write(work.join("file"), text).unwrap();
        git(&work, &["commit", "-qam", text.trim()]);
        git(&work, &["push", "-q", "../git/acme/web.git", "HEAD:main"]);
        git(&work, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// A pool of `target` VMs of a project with a repository, a command and one in the background.
    fn make_pool(&self, target: &str) {
        let url = format!("file://{}", self.folder.path().join("git/acme/web.git").display());
        self.run(&[
            "project",
            "create",
            "p",
            "--size",
            "small",
            "--repo",
            &format!("acme/web={url}"),
        ]);
        let set = [
            "pool",
            "set",
            "p",
            "--target",
            target,
            "--command",
            "a: echo set-up >/root/set-up",
            "--background",
            "b: exec sleep 100000",
        ];
        self.run(&set);
    }
}

fn serve(folder: &Path, daemons: &Daemons) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command
        .args([
            "serve",
            "--driver",
            "incus",
            "--listen",
            "127.0.0.1:0",
            "--watch-interval",
            "2",
        ])
        .args([
            "--size",
            "small=1:512:4",
            "--memory",
            "16384",
            "--incus-pool",
            POOL,
            "--data-dir",
        ])
        .arg(folder.join("data"));
    for socket in daemons.sockets() {
        command.arg("--incus").arg(format!("unix:{}", socket.display()));
    }
    command
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "needs root, Incus and a guest image (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn as_root_a_pool_on_one_daemon_is_tested_filled_claimed_and_follows_its_branch() {
    let mut rig = Rig::new(Daemons::one());
    rig.make_pool("1");
    let tested = rig.run(&["pool", "test", "p"]);
    assert!(tested.contains("warm_pool_setup"), "{tested}");
    rig.run(&["pool", "enable", "p"]);
    rig.wait("one is ready", || rig.ready().len() == 1);
    let claim = rig.json(&["claim", "p", "--task", "T"]);
    assert_eq!(claim["source"], "ready");
    let id = claim["id"].as_str().unwrap();
    let told = rig.run(&[
        "exec",
        id,
        "--shell",
        "cat /root/set-up /home/web/file; pgrep -fc 'sleep 100000'; cat /proc/self/uid_map",
    ]);
    assert!(told.starts_with("set-up\nfirst\n1\n"), "{told}");
    assert!(!told.contains("4294967295"), "it is unprivileged: {told}");
    rig.wait("the next one is ready", || rig.ready().len() == 1);

    // What was done in it is there for the next server, too.
    rig.run(&["exec", id, "--shell", "echo kept >/root/work"]);
    rig.server.kill().unwrap();
    rig.server.wait().unwrap();
    rig.server = serve(rig.folder.path(), &rig.daemons);
    rig.wait("the next server answers", || {
        rig.try_run(&["project", "list"]).code == 0
    });
    assert_eq!(rig.run(&["exec", id, "--", "cat", "/root/work"]), "kept\n");

    // What needs memory says so.
    let forked = rig.try_run(&["fork", id]);
    assert!(forked.code != 0 && forked.stderr.contains("incus"), "{forked:?}");

    let commit = rig.push("second\n");
    rig.wait("a VM of the push is ready", || {
        let claimed = rig.json(&["claim", "p", "--strict", "--wait", "120"]);
        let is_new = claimed["repos"][0]["commit"] == commit.as_str();
        let id = claimed["id"].as_str().unwrap();
        let file = rig.run(&["exec", id, "--", "cat", "/home/web/file"]);
        rig.run(&["release", id]);
        is_new && file == "second\n"
    });
    rig.run(&["release", id]);
    rig.run(&["project", "delete", "p", "--yes"]);
    rig.wait("no VM is left", || rig.vms(0).is_empty());
}

#[test]
#[ignore = "needs root, Incus and a guest image (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn as_root_a_pool_on_a_cluster_is_spread_and_outlives_a_member() {
    let mut rig = Rig::new(Daemons::cluster(3));
    rig.make_pool("5");
    rig.run(&["pool", "enable", "p"]);
    rig.wait("all are ready", || rig.ready().len() == 5);
    let on: BTreeSet<String> = rig.vms(0).into_iter().map(|(_, member)| member).collect();
    assert_eq!(on.len(), 3, "{:?}", rig.places(0));

    // A claim on the member that is lost, and one on another.
    let mut kept = None;
    let mut lost = None;
    while kept.is_none() || lost.is_none() {
        let claim = rig.json(&["claim", "p", "--wait", "120"]);
        let vm = claim["instanceId"].as_str().unwrap().to_owned();
        let id = claim["id"].as_str().unwrap().to_owned();
        let (_, member) = rig.vms(0).into_iter().find(|(name, _)| *name == vm).unwrap();
        let place = if member == "n3" { &mut lost } else { &mut kept };
        match place {
            None => *place = Some((id, vm)),
            Some(_) => drop(rig.run(&["release", &id])),
        }
    }
    let ((kept, _), (lost, lost_vm)) = (kept.unwrap(), lost.unwrap());
    rig.run(&["exec", &kept, "--shell", "echo kept >/root/work"]);
    rig.wait("the pool is full again", || rig.ready().len() == 5);
    let gone: BTreeSet<String> = rig
        .vms(0)
        .into_iter()
        .filter(|vm| vm.1 == "n3")
        .map(|vm| vm.0)
        .collect();
    assert!(gone.len() > 1);

    rig.daemons.get_mut(2).kill_daemon();
    rig.daemons.get(2).kill_containers();
    rig.wait("what was ready there is replaced", || {
        let ready = rig.ready();
        ready.len() == 5 && ready.iter().all(|vm| !gone.contains(vm))
    });
    assert_eq!(rig.run(&["exec", &kept, "--", "cat", "/root/work"]), "kept\n");
    let claim = rig.json(&["claim", "p", "--wait", "120"]);
    assert_eq!(
        rig.run(&["exec", claim["id"].as_str().unwrap(), "--", "cat", "/root/set-up"]),
        "set-up\n"
    );
    // The one that is lost is said to be, and is still the same.
    rig.wait("the claim is said to be lost", || {
        let ran = rig.try_run(&["exec", &lost, "--", "true"]);
        ran.code != 0 && !ran.stderr.is_empty()
    });
    let shown = rig.instances();
    let row = shown.iter().find(|it| it["instanceId"] == lost_vm.as_str()).unwrap();
    assert_eq!(row["status"], "claimed", "{row}");

    rig.daemons.get_mut(2).start_again();
    rig.run(&["release", &lost]);
    rig.wait("nothing is left over", || {
        let names: BTreeSet<String> = rig.vms(0).into_iter().map(|vm| vm.0).collect();
        names.is_disjoint(&gone)
    });
    rig.run(&["project", "delete", "p", "--yes"]);
    rig.wait("no VM is left", || rig.vms(0).is_empty());
}
