//! `kill -9` of the real server with real VMs: the next one continues, and nothing is lost or left over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Ran, run, run_at_terminal};

/// How long a real VM may take to boot on a busy machine without hardware virtualisation.
const BOOT: Duration = Duration::from_secs(400);

pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    process: Child,
    /// Every VM that was ever seen.
    vms: BTreeSet<String>,
}

fn start(folder: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.join("data"))
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Server {
    /// A test that fails in the middle leaves no server and, as far as that still works, no VM.
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        self.try_run(&["project", "delete", "p", "--yes"]);
        let began = Instant::now();
        while !self.running().is_empty() && began.elapsed() < Duration::from_secs(20) {
            // pause between two looks
            std::thread::sleep(Duration::from_millis(100));
        }
        // It may have ended meanwhile.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        let images = std::env::var_os("HEARTH_TEST_DATA")
            .expect("HEARTH_TEST_DATA is not set: `cargo xtask test NAME` builds a guest image and sets it");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("data")).unwrap();
        std::os::unix::fs::symlink(PathBuf::from(images).join("images"), folder.path().join("data/images")).unwrap();
        let process = start(folder.path());
        let server = Self {
            folder,
            process,
            vms: BTreeSet::new(),
        };
        server.wait("the server answers", || server.try_run(&["project", "list"]).code == 0);
        server
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        command
            .args(args)
            .env("HEARTH_RUNTIME_DIR", self.folder.path().join("run"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn try_run(&self, args: &[&str]) -> Ran {
        run(self.command(args))
    }

    pub(crate) fn run(&self, args: &[&str]) -> String {
        let ran = self.try_run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}\n{}", ran.stderr, self.log());
        ran.stdout
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn wait(&self, what: &str, so: impl Fn() -> bool) {
        let began = Instant::now();
        while !so() {
            assert!(began.elapsed() < BOOT, "never came about: {what}\n{}", self.log());
            // pause between two looks
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn instances(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.run(&["--json", "pool", "instances", "p"])).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    fn count(&self, status: &str) -> usize {
        self.instances().iter().filter(|it| it["status"] == status).count()
    }

    fn kill_and_restart(&mut self) {
        self.vms.extend(self.folders());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = start(self.folder.path());
        self.wait("the next server answers", || {
            self.try_run(&["project", "list"]).code == 0
        });
    }

    fn folders(&self) -> BTreeSet<String> {
        let vms = std::fs::read_dir(self.folder.path().join("data/vms"));
        vms.into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    /// The checkpoints on the disk, half-made ones included.
    fn templates(&self) -> BTreeSet<String> {
        let templates = std::fs::read_dir(self.folder.path().join("data/templates"));
        templates
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    /// The VMs whose process lives, of all that were ever seen.
    fn running(&self) -> BTreeSet<String> {
        let arguments: Vec<_> = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .map(|words| String::from_utf8_lossy(&words).into_owned())
            .filter(|words| words.contains("qemu-system"))
            .collect();
        let known = self.vms.union(&self.folders()).cloned().collect::<BTreeSet<_>>();
        known
            .into_iter()
            .filter(|vm| arguments.iter().any(|words| words.contains(vm.as_str())))
            .collect()
    }
}

#[test]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn the_next_server_goes_on_and_nothing_is_lost_or_left_over() {
    let mut server = Server::new();
    server.run(&["project", "create", "p", "--size", "small"]);
    server.run(&[
        "pool",
        "set",
        "p",
        "--enabled",
        "--target",
        "1",
        "--command",
        "a: sleep 1",
    ]);
    server.wait("one is ready", || server.count("ready") == 1);
    let claim: Value = serde_json::from_str(&server.run(&["--json", "claim", "p", "--task", "T"])).unwrap();
    let id = claim["id"].as_str().unwrap();
    server.run(&["exec", id, "--shell", "echo kept >/root/work"]);
    // The refill is a fork of a moment; whatever it was doing, the server dies.
    server.kill_and_restart();
    // A changed set-up is built: the server dies when it is ordered, while its command runs, while the VM is frozen, and
    // while the template is forked.
    for (at, moment) in ["wished", "running", "freezing", "forking"].into_iter().enumerate() {
        let before = server.templates();
        let command = format!("a: sleep 1; echo {at}");
        server.run(&["pool", "set", "p", "--enabled", "--command", &command]);
        server.wait(moment, || match moment {
            "wished" => true,
            "running" => server.count("provisioning") == 1,
            "freezing" => server.templates().iter().any(|name| name.starts_with('.')) || server.templates() != before,
            _ => server.templates().iter().filter(|name| !name.starts_with('.')).count() > before.len(),
        });
        server.kill_and_restart();
    }
    assert_eq!(server.run(&["exec", id, "--", "cat", "/root/work"]), "kept\n");
    let typed = b"cat /root/work; tty; stty size; echo $TERM $((40+2)); exit 9\r";
    let (code, shown) = run_at_terminal(server.command(&["shell", id]), typed);
    for text in ["kept\r\n", "/dev/pts/", "31 99\r\n", "xterm 42\r\n"] {
        assert!(shown.contains(text), "{text:?} is not in {shown}");
    }
    assert_eq!(code, Some(9), "{shown}");
    server.wait("one is ready again", || {
        server.count("ready") == 1 && server.count("provisioning") == 0
    });
    let rows: BTreeSet<String> = server
        .instances()
        .iter()
        .map(|it| it["instanceId"].as_str().unwrap().to_owned())
        .collect();
    server.wait("only what has a row is left", || {
        server.running() == rows && server.folders() == rows
    });
    let half_made = |name: &String| name.starts_with('.');
    assert!(!server.templates().iter().any(half_made), "{:?}", server.templates());
    assert!(server.run(&["template", "verify"]).contains("all are whole"));
    let again: Value = serde_json::from_str(&server.run(&["--json", "claim", "p", "--task", "T"])).unwrap();
    // What was done in the VM meanwhile made its lease longer.
    let without_lease = |reply: &Value| {
        let mut reply = reply.clone();
        let ends: jiff::Timestamp = reply["expiresAt"].take().as_str().unwrap().parse().unwrap();
        (reply, ends)
    };
    let ((again, later), (claim, ends)) = (without_lease(&again), without_lease(&claim));
    assert_eq!(again, claim, "the same task gets the same VM");
    assert!(later >= ends, "{later} is before {ends}");
    server.run(&["release", id]);
    server.run(&["project", "delete", "p"]);
    server.wait("every VM is gone", || {
        server.running().is_empty() && server.folders().is_empty()
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server.process.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(server.process.wait().unwrap().success());
}
