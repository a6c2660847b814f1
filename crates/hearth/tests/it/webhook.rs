//! Webhooks at the real server: its secret comes from the environment and goes nowhere.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;

use serde_json::Value;

use crate::support::{eventually, hearth};

const SECRET: &str = "secret-of-the-webhooks";

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path) -> Server {
    let data = folder.join("data");
    let mut command = hearth(&["serve", "--driver", "fake", "--listen", "127.0.0.1:0"]);
    command
        .arg("--data-dir")
        .arg(data)
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .env("HEARTH_WEBHOOK_SECRET", SECRET)
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("RUST_LOG", "trace")
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(folder.join("log")).unwrap());
    Server(command.spawn().unwrap())
}

/// Where it listens, once it does.
fn address(folder: &Path) -> Option<String> {
    let entry = std::fs::read_dir(folder.join("run")).ok()?.next()?.ok()?;
    let entry: Value = serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok()?;
    entry["url"].as_str()?.strip_prefix("http://").map(str::to_owned)
}

/// Status line and body of the reply to a webhook.
fn send(address: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let body = r#"{"project":{"path_with_namespace":"acme/app"}}"#;
    let request = format!(
        "POST /hooks/git HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-gitlab-event: Push Hook\r\nx-gitlab-token: {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn holds_secret(path: &Path) -> bool {
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path).unwrap();
        return entries.any(|entry| holds_secret(&entry.unwrap().path()));
    }
    let content = std::fs::read(path).unwrap_or_default();
    content.windows(SECRET.len()).any(|part| part == SECRET.as_bytes())
}

#[test]
fn the_secret_is_in_no_log_no_argument_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let mut found = None;
    eventually("the server listens", || {
        found = address(folder.path());
        found.is_some()
    });
    let address = found.unwrap();
    let right = send(&address, SECRET);
    assert!(right.starts_with("HTTP/1.1 202"), "{right}");
    assert!(right.ends_with(r#"{"repositories":0}"#), "{right}");
    let wrong = send(&address, "other");
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    assert!(!right.contains(SECRET) && !wrong.contains(SECRET));
    assert!(!holds_secret(Path::new(&format!("/proc/{}/cmdline", server.0.id()))));
    drop(server);
    assert!(
        std::fs::read_to_string(folder.path().join("log"))
            .unwrap()
            .contains("/hooks/git")
    );
    assert!(!holds_secret(folder.path()));
}
