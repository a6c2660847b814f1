//! A real server with the fake driver, started as a user starts it: the binary, its arguments, its environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::support::{Ran, eventually, hearth, run};

/// A server that ends with the test.
pub(crate) struct Server {
    child: Child,
    folder: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `hearth serve` in this folder, not started yet: its data is in `data`, its log in `log`.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = hearth(&["serve", "--driver", "fake"]);
    set(&mut command, folder);
    command.args(args);
    command
}

/// The same surroundings for any command that starts a server.
pub(crate) fn set(command: &mut Command, folder: &Path) {
    command
        .env("HEARTH_DATA_DIR", folder.join("data"))
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("log")).unwrap());
}

impl Server {
    /// Starts it and waits until it listens.
    pub(crate) fn start(folder: &Path, args: &[&str]) -> Self {
        Self::started(folder, command(folder, args))
    }

    /// The same with a command of the caller's own.
    pub(crate) fn started(folder: &Path, mut command: Command) -> Self {
        let child = command.spawn().unwrap();
        // It holds the log's file.
        drop(command);
        let mut server = Self {
            child,
            folder: folder.to_owned(),
        };
        eventually("the server listens", || {
            assert!(server.child.try_wait().unwrap().is_none(), "it ended: {}", server.log());
            server.entry().is_some()
        });
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    fn entry(&self) -> Option<Value> {
        let name = format!("server-{}.json", self.child.id());
        serde_json::from_slice(&fs::read(self.folder.join("run").join(name)).ok()?).ok()
    }

    /// Where clients of this machine find it.
    pub(crate) fn url(&self) -> String {
        self.entry().unwrap()["url"].as_str().unwrap().to_owned()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Waits until the log says this.
    pub(crate) fn says(&self, text: &str) {
        eventually(&format!("the log says {text}"), || self.log().contains(text));
    }

    /// The port that the log names.
    pub(crate) fn port(&self) -> u16 {
        let log = self.log();
        // As text, or as JSON.
        let mut after = log
            .split("address=127.0.0.1:")
            .skip(1)
            .chain(log.split("\"address\":\"127.0.0.1:").skip(1));
        let after = after.next().unwrap();
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    /// A client's command, which finds the server by itself.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = hearth(args);
        command.env("HEARTH_RUNTIME_DIR", self.folder.join("run"));
        command
    }

    /// Runs one that must work; what it prints.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let Ran { code, stdout, stderr } = run(self.client(args));
        assert_eq!(code, 0, "{args:?}: {stdout}{stderr}");
        stdout
    }

    pub(crate) fn token(&self) -> String {
        let token = fs::read_to_string(self.folder.join("data/admin-token")).unwrap();
        token.trim().to_owned()
    }
}
