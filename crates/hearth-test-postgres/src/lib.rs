//! A PostgreSQL for tests: a cluster of its own in a temporary folder, reached by a unix socket in there, run by a user that is not root.
//! One per test program, and one database per test. It ends with the program that began it, also when that is killed, and its folder
//! goes with it. A test that needs one is ignored: `#[ignore = "needs PostgreSQL (…)"]`.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use nix::unistd::{Uid, User};

/// Set to any value: the servers of front-door tests keep their store in PostgreSQL.
pub const VARIABLE: &str = "HEARTH_TEST_POSTGRES";

/// Debian's folders of PostgreSQL's programs, one per version.
const PROGRAMS: &str = "/usr/lib/postgresql";
/// Who runs it where the tests are root's: the package makes this user.
const RUNS_IT: [&str; 2] = ["postgres", "nobody"];
/// Of any cluster here: no network, and nothing in the log that is no error.
const SETTINGS: &str = "-c listen_addresses= -c log_min_messages=fatal -c max_connections=900";
/// What makes tests quick: nothing outlives them.
const QUICK: &str = "-c fsync=off -c full_page_writes=off -c shared_buffers=64MB -c autovacuum=off";
/// What a person would have: a commit is on the disk when it is answered.
const DURABLE: &str = "-c shared_buffers=1GB -c max_wal_size=8GB";
/// Lasts as long as its standard input, then ends PostgreSQL and removes the folder.
const CLEANER: &str = r#"cat >/dev/null; "$1/run" pg_ctl -D "$1/data" -m immediate stop >/dev/null 2>&1; rm -rf "$1""#;

/// A running cluster.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    /// Its settings beside [`SETTINGS`].
    settings: &'static str,
    databases: AtomicU32,
    /// Its end is the cluster's.
    _cleaner: (Child, Mutex<Option<ChildStdin>>),
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let (cleaner, input) = &mut self._cleaner;
        drop(input.get_mut().unwrap().take());
        drop(cleaner.wait());
    }
}

/// The cluster of this test program.
pub fn shared() -> &'static Postgres {
    static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);
    &SHARED
}

/// The database of a front-door test, where those are to use one.
pub fn wanted() -> Option<String> {
    std::env::var_os(VARIABLE).map(|_| shared().database())
}

/// The folder of PostgreSQL's programs, of the newest version that is installed.
pub fn programs() -> PathBuf {
    let version = |path: &Path| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let versions = std::fs::read_dir(PROGRAMS).into_iter().flatten().flatten();
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| version(path));
    let newest = newest.unwrap_or_else(|| panic!("no PostgreSQL below {PROGRAMS}: `cargo xtask setup` installs it"));
    newest.join("bin")
}

impl Postgres {
    /// A new cluster of the caller's own, for a test that ends it.
    pub fn start() -> Self {
        Self::start_with(QUICK)
    }

    /// A new cluster that loses nothing, as one that is measured.
    pub fn durable() -> Self {
        Self::start_with(DURABLE)
    }

    fn start_with(settings: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("hearth-pg-").tempdir().unwrap().keep();
        let mut switch = String::new();
        if Uid::effective().is_root() {
            let user = RUNS_IT.iter().find_map(|name| User::from_name(name).unwrap()).unwrap();
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).unwrap();
            switch = format!("setpriv --reuid={uid} --regid={gid} --clear-groups ");
        }
        // One program that runs the others as the right user.
        let run = folder.join("run");
        let text = format!(
            "#!/bin/sh\ncd /\nPATH={}:$PATH\nexec {switch}\"$@\"\n",
            programs().display()
        );
        std::fs::write(&run, text).unwrap();
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut cleaner = Command::new("sh")
            .args(["-c", CLEANER, "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends the tests by Ctrl-C must not end what cleans up after them.
            .process_group(0)
            .spawn()
            .unwrap();
        let input = cleaner.stdin.take();
        let cluster = Self {
            folder,
            settings,
            databases: AtomicU32::default(),
            _cleaner: (cleaner, Mutex::new(input)),
        };
        let data = cluster.data();
        cluster.run(&[
            "initdb",
            "-D",
            &data,
            "-U",
            "hearth",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C.UTF-8",
        ]);
        cluster.begin();
        cluster
    }

    fn data(&self) -> String {
        self.folder.join("data").to_string_lossy().into_owned()
    }

    fn run(&self, arguments: &[&str]) {
        let mut command = Command::new(self.folder.join("run"));
        // A server that goes into the background must not hold what the caller reads.
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
            .unwrap();
        if !output.status.success() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            std::io::stderr().write_all(&output.stderr).unwrap();
            panic!("{arguments:?} failed:\n{log}");
        }
    }

    /// Begins again.
    pub fn begin(&self) {
        let socket = format!(
            "{SETTINGS} {} -c unix_socket_directories={}",
            self.settings,
            self.folder.display()
        );
        let log = self.folder.join("log");
        self.run(&[
            "pg_ctl",
            "-D",
            &self.data(),
            "-w",
            "-l",
            &log.to_string_lossy(),
            "-o",
            &socket,
            "start",
        ]);
    }

    /// Ends as in a power cut, until it begins again.
    pub fn end(&self) {
        self.run(&["pg_ctl", "-D", &self.data(), "-m", "immediate", "-w", "stop"]);
    }

    /// A new, empty database: its URL.
    pub fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let socket = self.folder.to_string_lossy().into_owned();
        // Several at once would wait for the template, and fail.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.run(&["createdb", "-h", &socket, "-U", "hearth", "-T", "template0", &name]);
        format!("postgres://hearth@localhost/{name}?host={socket}")
    }
}
