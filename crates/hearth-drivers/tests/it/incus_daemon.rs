//! Daemons of Incus for one test, one or a cluster, each with everything it has in a temporary folder; they end with the test and leave
//! nothing: no process, no mount, no loop device. Needs root and the packages that `cargo xtask setup` installs. Also of other crates' tests.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const DAEMON: &str = "/usr/libexec/incus/incusd";
const READY_SECONDS: &str = "--timeout=60";
const GONE: Duration = Duration::from_secs(30);
const CHECK: Duration = Duration::from_millis(20);
/// The storage pool.
pub(crate) const POOL: &str = "data";
const POOL_SIZE: &str = "8GiB";
/// Addresses of members: this machine's loopback has a whole network of them.
const NETWORK: &str = "127.0.7";
/// A member is given up after so many seconds; Incus takes no less.
const OFFLINE_SECONDS: &str = "11";

/// One daemon.
pub(crate) struct Daemon {
    folder: PathBuf,
    child: Option<Child>,
}

/// The daemons of a test.
pub(crate) struct Daemons {
    all: Vec<Daemon>,
    // Removed last.
    _folder: tempfile::TempDir,
    _port: Option<File>,
}

#[expect(
    dead_code,
    reason = "the tests of two crates have this file, and each uses a part of it"
)]
impl Daemon {
    fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.with_extension("log"))
            .unwrap();
        let mut command = Command::new(DAEMON);
        command
            .args(["--group", "root"])
            .env("INCUS_DIR", &self.folder)
            // The usual one may be another daemon's.
            .env("INCUS_SOCKET", "")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        self.child = Some(
            command
                .spawn()
                .expect("incusd is not installed: run `cargo xtask setup`"),
        );
        let ready = Command::new(DAEMON)
            .args(["waitready", READY_SECONDS])
            .env("INCUS_DIR", &self.folder)
            .env("INCUS_SOCKET", "")
            .output()
            .unwrap();
        assert!(ready.status.success(), "incusd is not ready: {}", self.log());
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("unix.socket")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().unwrap().id()).unwrap())
    }

    /// `kill -9` of the daemon alone: its containers run on.
    pub(crate) fn kill_daemon(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn start_again(&mut self) {
        self.start();
    }

    /// One call; panics when it is refused. Waits for an operation.
    pub(crate) fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let reply = self.try_api(method, path, body);
        reply.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    pub(crate) fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let reply = self.raw(method, path, body)?;
        match reply["type"].as_str() {
            Some("sync") => Ok(reply["metadata"].clone()),
            Some("async") => {
                let operation = reply["operation"]
                    .as_str()
                    .unwrap()
                    .split('?')
                    .next()
                    .unwrap()
                    .to_owned();
                let ended = self.raw("GET", &format!("{operation}/wait?timeout=120"), None)?;
                match ended["metadata"]["status"].as_str() {
                    Some("Success") => Ok(ended["metadata"]["metadata"].clone()),
                    _ => Err(ended.to_string()),
                }
            }
            _ => Err(reply.to_string()),
        }
    }

    fn raw(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let mut stream = UnixStream::connect(self.socket()).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(130))).unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        // The oldest HTTP: no chunks, and the end of the stream is the end of the reply.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: incus\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream
            .write_all(request.as_bytes())
            .map_err(|error| error.to_string())?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).map_err(|error| error.to_string())?;
        let reply = String::from_utf8_lossy(&reply);
        let (_, json) = reply.split_once("\r\n\r\n").ok_or("no reply")?;
        serde_json::from_str(json).map_err(|error| format!("{error}: {json}"))
    }

    /// The first processes of its containers, by the containers' names (`project_name`).
    pub(crate) fn containers(&self) -> Vec<(String, Pid)> {
        let path = self.folder.join("containers").display().to_string();
        let mut found = Vec::new();
        for (pid, words) in processes() {
            // `[lxc monitor] /folder/containers name`
            let Some(rest) = words.strip_prefix("[lxc monitor] ") else {
                continue;
            };
            let Some((of, name)) = rest.split_once(' ') else {
                continue;
            };
            if of != path {
                continue;
            }
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                found.push((name.trim().to_owned(), Pid::from_raw(child)));
            }
        }
        found
    }

    /// `kill -9` of its containers.
    pub(crate) fn kill_containers(&self) {
        for (_, pid) in self.containers() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    fn end(&mut self) {
        self.kill_daemon();
        // A container's monitor takes its cgroups away when the first process in it has ended; a frozen one has to be let go for that.
        let deadline = Instant::now() + GONE;
        while !self.containers().is_empty() && Instant::now() < deadline {
            for (name, pid) in self.containers() {
                let _ = kill(pid, Signal::SIGKILL);
                thaw(&name, pid);
            }
            // pause between two checks
            std::thread::sleep(CHECK);
        }
        while monitors(&self.folder) > 0 && Instant::now() < deadline {
            // pause between two checks
            std::thread::sleep(CHECK);
        }
        for (pid, words) in processes() {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let ours = format!("INCUS_DIR={}", self.folder.display());
            if words.contains("fork") && environ.split(|byte| *byte == 0).any(|one| one == ours.as_bytes()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let mut mounts = mounts_below(&self.folder);
        mounts.sort();
        for mount in mounts.iter().rev() {
            let _ = nix::mount::umount2(mount.as_path(), nix::mount::MntFlags::MNT_DETACH);
        }
        let image = self.folder.join("disks").join(format!("{POOL}.img"));
        let listed = Command::new("losetup").arg("-j").arg(&image).output().unwrap();
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            if let Some((device, _)) = line.split_once(':') {
                drop(Command::new("losetup").args(["-d", device]).output());
            }
        }
    }
}

/// Lets a frozen container go on, to its end.
fn thaw(name: &str, pid: Pid) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        let parts: Vec<&str> = line.splitn(3, ':').collect();
        if let [_, controllers, path] = parts[..] {
            if controllers == "freezer" {
                let _ = fs::write(format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "THAWED");
            } else if controllers.is_empty() {
                let _ = fs::write(format!("/sys/fs/cgroup{path}/cgroup.freeze"), "0");
            }
        }
    }
    let payload = format!("/sys/fs/cgroup/freezer/lxc.payload.{name}/freezer.state");
    let _ = fs::write(payload, "THAWED");
}

fn monitors(folder: &Path) -> usize {
    let begins = format!("[lxc monitor] {}/containers ", folder.display());
    processes()
        .iter()
        .filter(|(_, words)| words.starts_with(&begins))
        .count()
}

/// The living processes, with their words.
fn processes() -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let (Some(pid), Ok(words)) = (pid, fs::read(entry.path().join("cmdline"))) else {
            continue;
        };
        if !words.is_empty() {
            found.push((
                pid,
                String::from_utf8_lossy(&words).replace('\0', " ").trim().to_owned(),
            ));
        }
    }
    found
}

fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places
        .map(PathBuf::from)
        .filter(|place| place.starts_with(folder))
        .collect()
}

impl Daemons {
    /// One daemon that is in no cluster.
    pub(crate) fn one() -> Self {
        let mut daemons = Self::started(1);
        daemons.all[0].api(
            "PUT",
            "/1.0",
            Some(&json!({ "config": { "images.auto_update_interval": "0" } })),
        );
        daemons.prepare();
        daemons
    }

    /// A cluster; its members are called n1, n2 and so on.
    pub(crate) fn cluster(size: usize) -> Self {
        // Addresses are taken by one test at a time.
        let port = File::create(std::env::temp_dir().join("hearth-test-incus-cluster.lock")).unwrap();
        port.lock().unwrap();
        let mut daemons = Self::started(size);
        daemons._port = Some(port);
        let first = address(0);
        let config = json!({
            "core.https_address": first,
            "cluster.https_address": first,
            "cluster.offline_threshold": OFFLINE_SECONDS,
            "images.auto_update_interval": "0",
        });
        daemons.all[0].api("PUT", "/1.0", Some(&json!({ "config": config })));
        daemons.prepare();
        daemons.all[0].api(
            "PUT",
            "/1.0/cluster",
            Some(&json!({ "server_name": "n1", "enabled": true })),
        );
        for at in 1..size {
            daemons.join(at);
        }
        daemons
    }

    fn started(size: usize) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "daemons of Incus need root");
        // The path of a socket holds 108 bytes.
        let folder = tempfile::Builder::new().prefix("hi-").tempdir_in("/tmp").unwrap();
        let all = (1..=size).map(|at| {
            let folder = folder.path().join(format!("n{at}"));
            fs::create_dir(&folder).unwrap();
            Daemon { folder, child: None }
        });
        let mut all: Vec<Daemon> = all.collect();
        all.iter_mut().for_each(Daemon::start);
        Self {
            all,
            _folder: folder,
            _port: None,
        }
    }

    fn prepare(&mut self) {
        let pool = json!({ "name": POOL, "driver": "btrfs", "config": { "size": POOL_SIZE } });
        self.all[0].api("POST", "/1.0/storage-pools", Some(&pool));
    }

    fn join(&mut self, at: usize) {
        let name = format!("n{}", at + 1);
        let first = &self.all[0];
        let asked = first.raw("POST", "/1.0/cluster/members", Some(&json!({ "server_name": name })));
        let token = asked.unwrap()["metadata"]["metadata"].clone();
        let token = json!({
            "server_name": token["serverName"],
            "fingerprint": token["fingerprint"],
            "addresses": token["addresses"],
            "secret": token["secret"],
            "expires_at": token["expiresAt"],
        });
        let certificate = first.api("GET", "/1.0", None)["environment"]["certificate"].clone();
        let key =
            |key: &str, value: &str| json!({ "entity": "storage-pool", "name": POOL, "key": key, "value": value });
        let body = json!({
            "server_name": name,
            "enabled": true,
            "server_address": address(at),
            "cluster_address": address(0),
            "cluster_certificate": certificate,
            "cluster_token": base64(token.to_string().as_bytes()),
            "member_config": [key("size", POOL_SIZE), key("source", "")],
        });
        self.all[at].api("PUT", "/1.0/cluster", Some(&body));
    }

    pub(crate) fn get(&self, at: usize) -> &Daemon {
        &self.all[at]
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> &mut Daemon {
        &mut self.all[at]
    }

    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        self.all.iter().map(Daemon::socket).collect()
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        self.all.iter_mut().for_each(Daemon::end);
        if std::thread::panicking() {
            return;
        }
        for daemon in &self.all {
            assert_eq!(mounts_below(&daemon.folder), Vec::<PathBuf>::new(), "mounts are left");
            assert_eq!(monitors(&daemon.folder), 0, "containers are left");
        }
    }
}

/// The address of a member.
pub(crate) fn address(at: usize) -> String {
    format!("{NETWORK}.{}:18443", at + 1)
}

/// As Incus takes certificates and tokens.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at)) as usize & 63] as char;
            text.push(if at <= chunk.len() { digit } else { '=' });
        }
    }
    text
}
