//! Running the real binary in a clean environment.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A project as the API shows it.
pub(crate) const PROJECT: &str = r#"{"id":"prj_1","name":"web","description":null,"taskCode":"WEB",
    "repos":[{"repoFullName":"acme/web","branch":"main"}],
    "createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-01T00:00:00.000Z"}"#;

/// A page with one project.
pub(crate) fn project_page() -> String {
    format!(r#"{{"items":[{PROJECT}],"nextCursor":null,"hasMore":false}}"#)
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary with nothing of this machine in its environment.
pub(crate) fn hearth(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command
        .args(args)
        .env_clear()
        .env("HEARTH_RUNTIME_DIR", "/nonexistent/hearth")
        .env("HEARTH_IMAGES", "/nonexistent/images")
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The binary, set to talk to this server.
pub(crate) fn hearth_at(url: &str, args: &[&str]) -> Command {
    let mut command = hearth(args);
    command.env("HEARTH_URL", url).env("HEARTH_TOKEN", "hearth_test");
    command
}

/// Runs it to its end.
pub(crate) fn run(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs it at a terminal where this is typed; its exit code, and everything that the terminal showed.
pub(crate) fn run_at_terminal(command: Command, typed: &[u8]) -> (Option<i32>, String) {
    run_at_terminal_after(command, "", typed)
}

/// The same, typed when this has been shown.
pub(crate) fn run_at_terminal_after(mut command: Command, prompt: &str, typed: &[u8]) -> (Option<i32>, String) {
    const SIZE: nix::pty::Winsize = nix::pty::Winsize {
        ws_row: 31,
        ws_col: 99,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = nix::pty::openpty(&SIZE, None).unwrap();
    let inner = || terminal.slave.try_clone().unwrap();
    command
        .stdin(inner())
        .stdout(inner())
        .stderr(inner())
        .env("TERM", "xterm");
    let mut child = command.spawn().unwrap();
    // It holds our copies of the terminal's other end.
    drop((command, terminal.slave));
    let mut outer = std::fs::File::from(terminal.master);
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains(prompt) {
        let mut chunk = [0; 1024];
        let read = std::io::Read::read(&mut outer, &mut chunk).unwrap();
        shown.extend_from_slice(&chunk[..read]);
    }
    outer.write_all(typed).unwrap();
    // The end of a terminal that no process holds any more is an error.
    let _ = std::io::Read::read_to_end(&mut outer, &mut shown);
    (
        child.wait().unwrap().code(),
        String::from_utf8_lossy(&shown).into_owned(),
    )
}

/// Runs it with this on its standard input.
pub(crate) fn run_with_stdin(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Waits until it is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    const DEADLINE: Duration = Duration::from_secs(30);
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < DEADLINE, "never came about: {what}");
        // pause between two checks
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A living server's entry for local clients: it lives as long as the returned file is open.
pub(crate) fn local_server(folder: &Path, pid: u32, url: &str) -> std::fs::File {
    let token = folder.join(format!("token-{pid}"));
    std::fs::write(&token, "hearth_local\n").unwrap();
    let entry = serde_json::json!({
        "url": url, "tokenFile": token, "pid": pid, "dataDir": folder.join(format!("data-{pid}")),
    });
    let path = folder.join(format!("server-{pid}.json"));
    std::fs::write(&path, entry.to_string()).unwrap();
    let file = std::fs::File::open(path).unwrap();
    file.lock().unwrap();
    file
}

/// The folder, open to its owner alone.
pub(crate) fn private(folder: &Path) -> &Path {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    folder
}
