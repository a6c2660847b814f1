//! `kill -9` of the real server with real VMs: the next one continues, and nothing is lost or left over.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
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
    start_at(folder, "127.0.0.1:0")
}

fn start_at(folder: &Path, address: &str) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["serve", "--listen", address, "--data-dir"])
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
        let is_left = || !self.running().is_empty() || !self.folders().is_empty();
        while is_left() && began.elapsed() < Duration::from_secs(20) {
            // pause between two checks
            std::thread::sleep(Duration::from_millis(100));
        }
        // With SIGTERM it takes the network of its VMs along. It may have ended meanwhile.
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let began = Instant::now();
        while self.process.try_wait().is_ok_and(|ended| ended.is_none()) && began.elapsed() < Duration::from_secs(20) {
            // pause between two checks
            std::thread::sleep(Duration::from_millis(100));
        }
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

    /// Where clients of this machine find it.
    pub(crate) fn url(&self) -> String {
        let entry = self
            .folder
            .path()
            .join(format!("run/server-{}.json", self.process.id()));
        let entry: Value = serde_json::from_slice(&std::fs::read(entry).unwrap()).unwrap();
        entry["url"].as_str().unwrap().to_owned()
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

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn wait(&self, what: &str, so: impl Fn() -> bool) {
        let began = Instant::now();
        while !so() {
            assert!(began.elapsed() < BOOT, "never came about: {what}\n{}", self.log());
            // pause between two checks
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

    /// Where it listens.
    fn address(&self) -> String {
        let log = self.log();
        let (_, rest) = log.rsplit_once("http://127.0.0.1:").expect("the log names the address");
        let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
        format!("127.0.0.1:{port}")
    }

    fn kill_and_restart(&mut self) {
        self.kill_and_restart_at("127.0.0.1:0");
    }

    fn kill_and_restart_at(&mut self, address: &str) {
        self.vms.extend(self.folders());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = start_at(self.folder.path(), address);
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

#[test]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn a_detached_build_outlives_the_server_and_its_output_is_complete() {
    const STEPS: usize = 400;
    let mut server = Server::new();
    server.run(&["project", "create", "p", "--size", "small"]);
    server.run(&["pool", "set", "p", "--enabled", "--target", "1"]);
    server.wait("one is ready", || server.count("ready") == 1);
    let claim: Value = serde_json::from_str(&server.run(&["--json", "claim", "p", "--task", "T"])).unwrap();
    let id = claim["id"].as_str().unwrap();
    let build = format!("for n in $(seq {STEPS}); do echo step $n; echo warning $n >&2; sleep 0.02; done; exit 7");
    let session = server.run(&["exec", "--detach", "--tag", "build", id, "--shell", &build]);
    let session = session.trim();
    server.wait("it prints", || server.run(&["logs", id, "build"]).contains("step 3\n"));
    // One that is attached stays so: it connects to the next server.
    let mut attached = server
        .command(&["attach", id, session])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(attached.stdout.take().unwrap());
    let mut shown = String::new();
    output.read_line(&mut shown).unwrap();
    let address = server.address();
    server.kill_and_restart_at(&address);
    let again = server.command(&["wait", id, "build"]).status().unwrap();
    assert_eq!(again.code(), Some(7));
    let complete: String = (1..=STEPS).map(|step| format!("step {step}\n")).collect();
    let logs = server.try_run(&["logs", id, session]);
    assert_eq!(logs.stdout, complete);
    assert_eq!(
        logs.stderr.lines().filter(|line| line.starts_with("warning ")).count(),
        STEPS
    );
    output.read_to_string(&mut shown).unwrap();
    let attached = attached.wait_with_output().unwrap();
    assert_eq!(shown, complete);
    assert_eq!(
        attached.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&attached.stderr)
    );
    let list: Value = serde_json::from_str(&server.run(&["ps", id, "--json"])).unwrap();
    assert_eq!(
        (&list["items"][0]["id"], &list["items"][0]["exit"]["exitCode"]),
        (&session.into(), &7.into())
    );
    // Memory that runs out is named, and so is a shell in a terminal that stays.
    server.run(&[
        "exec",
        "--detach",
        "--tag",
        "eats",
        id,
        "--",
        "python3",
        "-c",
        "x = []\nwhile True: x.append(bytearray(1 << 24))",
    ]);
    let eats = server.try_run(&["wait", id, "eats"]);
    assert!(
        eats.code == 137 && eats.stderr.contains("no memory left"),
        "{} {}",
        eats.code,
        eats.stderr
    );
    // A shell of its own takes what runs in it along.
    let typed = b"sleep 5551 &\rtrap '' HUP; sleep 5552 &\r~.";
    let (code, shown) = run_at_terminal(server.command(&["shell", id]), typed);
    assert!(code == Some(0) && shown.contains("the shell was ended"), "{shown}");
    let left = server.try_run(&["exec", id, "--", "pgrep", "-f", "sleep 555"]);
    assert_eq!((left.code, left.stdout.as_str()), (1, ""));
    let (code, shown) = run_at_terminal(
        server.command(&["shell", id, "--session", "work"]),
        b"tty; kept=$((40+2))\r~.",
    );
    assert_eq!(code, Some(0), "{shown}");
    let (code, shown) = run_at_terminal(
        server.command(&["shell", id, "--session", "work"]),
        b"echo it is $kept; exit 9\r",
    );
    assert!(code == Some(9) && shown.contains("it is 42"), "{code:?} {shown}");
    server.run(&["release", id]);
    server.run(&["project", "delete", "p", "--yes"]);
    server.wait("no VM is left", || server.running().is_empty());
}
