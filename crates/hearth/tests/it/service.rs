//! The server as a service: what the service manager is told, sockets that it opens, unix sockets, and the units.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::server::{self, Server};
use crate::support::run;

/// What the service manager is told next that has this in it.
fn told(socket: &UnixDatagram, part: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let read = socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("never told {part}: {error}"));
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        if text.contains(part) {
            return text;
        }
    }
}

#[test]
fn service_manager_is_told_how_the_server_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = server::command(folder.path(), &["--listen", "0"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1500000");
    let mut server = Server::started(folder.path(), command);
    let ready = told(&socket, "READY=1");
    assert!(ready.contains("STATUS=listening on http://127.0.0.1:"), "{ready}");
    told(&socket, "WATCHDOG=1");
    server.signal(Signal::SIGHUP);
    assert!(told(&socket, "RELOADING=1").contains("MONOTONIC_USEC="));
    told(&socket, "READY=1");
    server.signal(Signal::SIGTERM);
    told(&socket, "STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn sockets_of_the_service_manager_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("given")).unwrap();
    let mut command = Command::new("sh");
    command
        .env_clear()
        .args([
            "-c",
            "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve --driver fake",
        ])
        .arg(env!("CARGO_BIN_EXE_hearth"))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    server::set(&mut command, folder.path());
    let server = Server::started(folder.path(), command);
    let given = format!("unix:{}", folder.path().join("given").display());
    assert_eq!(server.url(), given);
    assert!(!server.log().contains("7717"), "{}", server.log());
    server.ok(&["project", "list"]);
    drop(server);
    // It belongs to the service manager.
    assert!(folder.path().join("given").exists());
}

#[test]
fn unix_socket_is_for_user_and_group_and_carries_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("hearth.sock");
    // What a killed server has left is replaced.
    drop(UnixListener::bind(&socket).unwrap());
    let listen = format!("unix:{}", socket.display());
    let mut server = Server::start(folder.path(), &["--listen", &listen, "--listen", "127.0.0.1:0"]);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let client = |args: &[&str]| {
        let mut command = server.client(args);
        command.env("HEARTH_URL", &listen).env("HEARTH_TOKEN", server.token());
        run(command)
    };
    assert_eq!(client(&["project", "create", "demo"]).code, 0);
    assert_eq!(client(&["pool", "set", "demo", "--enabled", "--target", "1"]).code, 0);
    let claimed = client(&["claim", "demo", "--task", "T1", "--wait", "30"]);
    assert_eq!(claimed.code, 0, "{}", claimed.stderr);
    // A WebSocket goes the same way.
    let id = claimed
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("wpi_"))
        .unwrap();
    let ran = client(&["exec", id, "--", "true"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // And the port leads to the same server.
    let by_port = format!("http://127.0.0.1:{}", server.port());
    let mut command = server.client(&["project", "list"]);
    command.env("HEARTH_URL", by_port).env("HEARTH_TOKEN", server.token());
    assert!(run(command).stdout.contains("demo"));
    // Where somebody listens, nobody else does; and a file that is no socket stays.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "mine").unwrap();
    for taken in [&listen, &format!("unix:{}", other.join("file").display())] {
        let mut command = server::command(&other, &["--listen", taken]);
        command.stderr(Stdio::piped());
        let refused = run(command);
        assert!(
            refused.code == 1 && refused.stderr.contains(taken.as_str()),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "mine");
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(!socket.exists(), "it goes with the server");
}

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd")
}

#[test]
fn units_are_accepted_by_systemd_and_leave_vms_alone() {
    let text = fs::read_to_string(units().join("hearth.service")).unwrap();
    for line in [
        "KillMode=process",
        "Delegate=yes",
        "Type=notify",
        "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    // The program is not installed where the test runs.
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_hearth");
    for name in ["hearth.service", "hearth.socket"] {
        let unit = fs::read_to_string(units().join(name)).unwrap();
        let unit = unit.replace("/usr/bin/hearth", program);
        fs::write(folder.path().join(name), unit).unwrap();
    }
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(folder.path().join("hearth.service"))
        .arg(folder.path().join("hearth.socket"))
        .output();
    // Where there is a systemd, it finds no fault.
    let Ok(verified) = verified else { return };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("hearth")).collect();
    assert!(ours.is_empty() && verified.status.success(), "{said}");
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=50"])
        .arg(folder.path().join("hearth.service"))
        .output()
        .unwrap();
    assert!(security.status.success(), "{security:?}");
}
