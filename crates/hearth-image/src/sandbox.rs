//! Namespaces of their own for what the build runs: mounts and processes in them end with it, and an ordinary user is root in
//! them, with a range of ids to own files. Made by `unshare` from util-linux. Knows nothing of Debian or images.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hearth_host::program;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::ImageError;

/// How a build goes through a proxy; apt reads these.
const PROXY_VARIABLES: [&str; 6] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// How long the processes of a cancelled build may take to be gone; they are killed, so it is a matter of milliseconds.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// `mmdebstrap` and what it calls, and the packages that bring them.
const PROGRAMS: [(&str, &str); 7] = [
    ("bash", "bash"),
    ("unshare", "util-linux"),
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("mke2fs", "e2fsprogs"),
    ("chroot", "coreutils"),
    ("awk", "mawk"),
];

/// A way into namespaces that has been tried.
#[derive(Debug)]
pub(super) struct Sandbox {
    flags: Vec<&'static str>,
}

/// Where a program is, or an error that names its package.
pub(super) fn need(name: &'static str, package: &'static str) -> Result<PathBuf, ImageError> {
    program::find(name).ok_or_else(|| ImageError::Missing {
        what: name.to_owned(),
        package,
    })
}

impl Sandbox {
    /// Looks for the programs and tries the namespaces.
    pub(super) async fn new() -> Result<Self, ImageError> {
        for (name, package) in PROGRAMS {
            need(name, package)?;
        }
        let mut flags = vec!["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let is_root = nix::unistd::geteuid().is_root();
        if !is_root {
            need("newuidmap", "uidmap")?;
            flags.extend(["--user", "--map-root-user", "--map-auto"]);
        }
        let sandbox = Self { flags };
        let mut command = sandbox.command();
        command.arg("true");
        let output = program::run(command, &[])
            .await
            .map_err(ImageError::io("unshare could not be run"))?;
        if output.status.success() {
            return Ok(sandbox);
        }
        let reason = program::last_output(&output.stderr);
        if !is_root && (reason.contains("/etc/subuid") || reason.contains("/etc/subgid")) {
            let id = nix::unistd::geteuid();
            let user = nix::unistd::User::from_uid(id)
                .ok()
                .flatten()
                .map_or_else(|| id.to_string(), |user| user.name);
            return Err(ImageError::NoSubordinateIds { user });
        }
        Err(ImageError::NoNamespaces { reason })
    }

    /// `unshare` with its flags; the program to run is still to be added.
    fn command(&self) -> Command {
        let mut command = program::clean("unshare");
        command.args(&self.flags);
        // The flags are not options of the program that follows.
        command.arg("--");
        command
    }

    /// Runs a script to its end and hands over each line it (or anything below it) prints; all of them go to `log` too.
    /// The script gets a standard input that ends when we do. Cancelled, everything in the namespaces is dead on return.
    pub(super) async fn run_script(
        &self,
        script: &Path,
        variables: &[(&str, OsString)],
        log: &Path,
        cancel: &CancellationToken,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<ExitStatus, ImageError> {
        let run = || ImageError::io(format!("{} could not be run", script.display()));
        let mut log = std::fs::File::create(log).map_err(ImageError::io(format!("{}", log.display())))?;
        let (reader, writer) = std::io::pipe().map_err(run())?;
        let mut command = self.command();
        command.arg("bash").arg(script).kill_on_drop(true).stdin(Stdio::piped());
        command.stdout(writer.try_clone().map_err(run())?).stderr(writer);
        for name in PROXY_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", "/root")
            .envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().map_err(run())?;
        // Our copies of the pipe's writing end: the end of the file must mean that nobody writes any more.
        drop(command);
        let lifeline = child.stdin.take();
        let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(run())?;
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = tokio::select! {
                count = reader.read_until(b'\n', &mut line) => count.map_err(run())?,
                () = cancel.cancelled() => {
                    drop(lifeline);
                    child.start_kill().map_err(run())?;
                    child.wait().await.map_err(run())?;
                    let mut rest = Vec::new();
                    let at_end = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut rest);
                    // Past the deadline there is nothing more to do; the next build sweeps what is left.
                    let _ = tokio::time::timeout(END_DEADLINE, at_end).await;
                    return Err(ImageError::Cancelled);
                }
            };
            if count == 0 {
                break;
            }
            // A log that cannot be written (full disk) is no reason to stop before the script says so itself.
            let _ = log.write_all(&line);
            on_line(String::from_utf8_lossy(&line).trim_end());
        }
        child.wait().await.map_err(run())
    }

    /// Removes a folder whose files may belong to ids that only the namespace can touch. Success when it is not there.
    pub(super) async fn remove_tree(&self, path: &Path) -> Result<(), ImageError> {
        match tokio::fs::remove_dir_all(path).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => {}
        }
        let mut command = self.command();
        command.args(["rm", "-rf", "--"]).arg(path);
        command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.output().await.map_err(ImageError::io("rm could not be run"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(ImageError::Tool {
            program: "rm",
            detail: program::last_output(&output.stderr),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("script.sh");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[tokio::test]
    #[ignore = "needs system packages (all: cargo xtask test; alone: cargo xtask test NAME)"]
    async fn a_cancelled_script_leaves_no_process_and_no_mount() {
        let folder = tempfile::tempdir().unwrap();
        let point = folder.path().join("mounted");
        std::fs::create_dir(&point).unwrap();
        let path = script(
            folder.path(),
            "mount -t tmpfs none \"$POINT\"; touch \"$POINT/inside\"; setsid sleep 4321.77 & echo ready; sleep 4321.77",
        );
        let sandbox = Sandbox::new().await.unwrap();
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let result = sandbox
            .run_script(
                &path,
                &[("POINT", point.clone().into())],
                &folder.path().join("log"),
                &cancel,
                |line| {
                    if line == "ready" {
                        stop.cancel();
                    }
                },
            )
            .await;
        assert!(matches!(result, Err(ImageError::Cancelled)), "{result:?}");
        assert!(!point.join("inside").exists());
        let left = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.windows(7).any(|part| part == b"4321.77"))
        });
        assert!(!left);
    }

    #[tokio::test]
    #[ignore = "needs system packages (all: cargo xtask test; alone: cargo xtask test NAME)"]
    async fn lines_and_exit_code_come_through_and_are_logged() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), "echo one; echo two >&2; id -u; exit 3");
        let sandbox = Sandbox::new().await.unwrap();
        let mut lines = Vec::new();
        let log = folder.path().join("log");
        let status = sandbox
            .run_script(&path, &[], &log, &CancellationToken::new(), |line| {
                lines.push(line.to_owned())
            })
            .await
            .unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, ["one", "two", "0"]);
        assert_eq!(std::fs::read_to_string(log).unwrap(), "one\ntwo\n0\n");
    }
}
