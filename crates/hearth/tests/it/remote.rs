//! A working day with a real VM from outside: a server in it by HTTP, by a link and by a forwarded port; OpenSSH's ssh, scp, port forwarding,
//! rsync, and git over it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::killed::Server;
use crate::support::{Ran, run};

/// What one program may take in an emulated VM on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server in a VM that knows one page, says what it was asked with, and echoes one WebSocket message.
const DEV_SERVER: &str = r#"
import base64, hashlib, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            self.send_response(101)
            self.send_header("Connection", "Upgrade"); self.send_header("Upgrade", "websocket")
            self.send_header("Sec-WebSocket-Accept", accept); self.end_headers(); self.wfile.flush()
            head = self.rfile.read(2); mask = self.rfile.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(text)]) + text); self.wfile.flush()
            self.close_connection = True
            return
        body = ("served " + self.path + " as " + self.headers["Host"] + " " + str(self.headers.get("Authorization"))).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Handler).serve_forever()
"#;

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Day {
    server: Server,
    home: tempfile::TempDir,
    id: String,
    token: String,
    address: String,
}

impl Day {
    fn begin() -> Self {
        let server = Server::new();
        server.run(&["project", "create", "p"]);
        server.run(&["env", "set", "p", "GREETING=two words # \"q\""]);
        server.run(&["pool", "set", "p", "--enabled", "--target", "1"]);
        let id = server
            .run(&["claim", "p", "--task", "Day", "--wait", "400", "--id-only"])
            .trim()
            .to_owned();
        let token = std::fs::read_to_string(server.folder.path().join("data/admin-token")).unwrap();
        let log = std::fs::read_to_string(server.folder.path().join("log")).unwrap();
        let at = log.find("http://127.0.0.1:").unwrap() + "http://".len();
        let address = log[at..].split('/').next().unwrap().to_owned();
        let day = Self {
            server,
            home: tempfile::tempdir().unwrap(),
            id,
            token: token.trim().to_owned(),
            address,
        };
        let script = day.home.path().join("dev.py");
        std::fs::write(&script, DEV_SERVER).unwrap();
        day.server.run(&["cp", script.to_str().unwrap(), "Day:/home/dev.py"]);
        day.server.run(&[
            "exec",
            "Day",
            "--",
            "bash",
            "-c",
            "setsid python3 /home/dev.py >/dev/null 2>&1 &",
        ]);
        day
    }

    fn in_home(&self, mut command: Command) -> Ran {
        command.env("HOME", self.home.path());
        run(command)
    }

    /// A program that reads `~/.ssh/config`, told where that is.
    fn ssh_client(&self, program: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HEARTH_RUNTIME_DIR", self.server.folder.path().join("run"));
        command
            .env("GIT_SSH_COMMAND", format!("ssh -F {}", self.config()))
            .stdin(Stdio::null());
        self.in_home(command)
    }

    fn config(&self) -> String {
        self.home.path().join("config").to_str().unwrap().to_owned()
    }

    fn works(&self, program: &str, arguments: &[&str]) -> String {
        let ran = self.ssh_client(program, arguments);
        assert_eq!(ran.code, 0, "{program} {arguments:?}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// What is answered to these lines of a request.
    fn http(&self, to: &str, lines: &str, more: &[u8]) -> String {
        let mut connection = TcpStream::connect(to).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(lines.as_bytes()).unwrap();
        connection.write_all(b"\r\n\r\n").unwrap();
        connection.write_all(more).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn a_server_is_seen_from_outside(day: &Day) {
    // It takes its time to begin.
    day.server.wait("the server in the VM listens", || {
        let ports: Value = serde_json::from_str(&day.server.run(&["--json", "ports", "Day"])).unwrap();
        ports["items"].as_array().unwrap().iter().any(|one| {
            one["port"] == 3000 && one["address"] == "127.0.0.1" && one["command"].as_str().unwrap().contains("dev.py")
        })
    });
    let path = format!("/api/v1/instances/{}/ports/3000/page?a=1", day.id);
    let ask = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}",
        day.address, day.token
    );
    let answer = day.http(&day.address, &ask, b"");
    assert!(answer.ends_with("served /page?a=1 as localhost:3000 None"), "{answer}");
    // A WebSocket: one masked message, and its echo.
    let ask = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        day.address, day.token
    );
    let message: Vec<u8> = [0x81, 0x84, 1, 2, 3, 4]
        .into_iter()
        .chain(b"ping".iter().zip([1, 2, 3, 4]).map(|(a, b)| a ^ b))
        .collect();
    let answer = day.http(&day.address, &ask, &message);
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\u{4}ping"),
        "{answer:?}"
    );
    // A link, by name: it works without a token.
    let link = day.server.run(&["share", "Day", "3000", "--for", "2h"]);
    let (host, query) = link.trim().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let answer = day.http(
        &day.address,
        &format!("GET /x{query} HTTP/1.1\r\nHost: {host}\r\nConnection: close"),
        b"",
    );
    assert!(answer.ends_with("served /x as localhost:3000 None"), "{answer}");
    let answer = day.http(
        &day.address,
        &format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close"),
        b"",
    );
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    // A port of this machine.
    let mut forward = day.server.command(&["forward", "Day", "3000:0"]);
    let mut forward = Running(forward.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(forward.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let (local, _) = line.split_once(" -> ").unwrap();
    let answer = day.http(local, "GET /y HTTP/1.1\r\nHost: here\r\nConnection: close", b"");
    assert!(answer.ends_with("served /y as here None"), "{answer}");
}

fn openssh_works_in_it(day: &Day) {
    let config = day.in_home(day.server.command(&["ssh-config"]));
    assert_eq!(config.code, 0, "{}", config.stderr);
    std::fs::write(day.config(), config.stdout).unwrap();
    let config = day.config();
    let ran = day.in_home(
        day.server
            .command(&["ssh", "Day", "--", "-T", "echo $GREETING; exit 7"]),
    );
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (7, "two words # \"q\"\n"),
        "{}",
        ran.stderr
    );
    // Files, byte for byte.
    let sent: Vec<u8> = (0..1_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (here, back) = (day.home.path().join("blob"), day.home.path().join("back"));
    std::fs::write(&here, &sent).unwrap();
    day.works(
        "scp",
        &["-q", "-F", &config, here.to_str().unwrap(), "Day.hearth:/home/blob"],
    );
    day.works(
        "scp",
        &["-q", "-F", &config, "Day.hearth:/home/blob", back.to_str().unwrap()],
    );
    assert!(std::fs::read(&back).unwrap() == sent);
    let tree = day.home.path().join("tree");
    std::fs::create_dir_all(tree.join("a")).unwrap();
    std::fs::write(tree.join("a/b"), "text").unwrap();
    let shell = format!("ssh -F {config}");
    day.works(
        "rsync",
        &[
            "-a",
            "-e",
            &shell,
            &format!("{}/", tree.display()),
            "Day.hearth:/home/tree/",
        ],
    );
    let ssh = |command: &str| day.works("ssh", &["-F", &config, "Day.hearth", command]);
    assert_eq!(ssh("cat /home/tree/a/b; nohup sleep 4711 >/dev/null 2>&1 &"), "text");
    // What was started lives on, its connection's server does not; and nothing listens for SSH.
    assert_eq!(ssh("pgrep -cx sleep; ss -Hltn 'sport = :22' | wc -l"), "1\n0\n");
    let repo = "git init -q /home/repo && cd /home/repo && git -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m first";
    ssh(repo);
    let clone = day.home.path().join("clone");
    day.works(
        "git",
        &["clone", "-q", "Day.hearth:/home/repo", clone.to_str().unwrap()],
    );
    assert!(
        day.works("git", &["-C", clone.to_str().unwrap(), "log", "--oneline"])
            .ends_with(" first\n")
    );
    // A forwarded port: the program waits until it stands.
    let mut forwarding = Command::new("ssh");
    forwarding.args([
        "-F",
        &config,
        "-o",
        "ExitOnForwardFailure=yes",
        "-W",
        "localhost:3000",
        "Day.hearth",
    ]);
    forwarding
        .env("HOME", day.home.path())
        .env("HEARTH_RUNTIME_DIR", day.server.folder.path().join("run"));
    let mut forwarding = Running(forwarding.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut input = forwarding.0.stdin.take().unwrap();
    input
        .write_all(b"GET /z HTTP/1.1\r\nHost: ssh\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    forwarding.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("served /z as ssh None"), "{answer}");
    drop(input);
}

#[test]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn vm_is_a_remote_machine_for_http_and_openssh() {
    let day = Day::begin();
    a_server_is_seen_from_outside(&day);
    openssh_works_in_it(&day);
    // Nothing of the keys is on the VM's disk, and a stranger's key does not open it.
    let found = day.server.run(&[
        "exec",
        "Day",
        "--",
        "bash",
        "-c",
        "ls /etc/ssh /root/.ssh 2>/dev/null | grep -c -e host_key -e authorized; stat -f -c %T /run/hearth/ssh",
    ]);
    assert_eq!(found, "0\ntmpfs\n");
    day.server.run(&["release", "Day"]);
    let ran = day.ssh_client("ssh", &["-F", &day.config(), &format!("{}.hearth", day.id), "true"]);
    assert_eq!(ran.code, 255, "{}", ran.stderr);
    day.server.run(&["project", "delete", "p", "--yes"]);
}
