//! What the real server, with credentials in its user's home, sends on behalf of whom.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{eventually, hearth, run};

/// What stands in the home of the server's user.
const SECRET: &str = "c2VydmVyOnNlY3JldA==";

/// A server that ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server whose user has git configuration, a netrc, and an `ssh` that says how it was called.
fn start(folder: &Path, rules: &[String]) -> Server {
    let (home, bin) = (folder.join("home"), folder.join("bin"));
    for folder in [&home, &bin] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let config = format!("[http]\n\textraHeader = X-Secret: {SECRET}\n[credential]\n\thelper = store\n");
    std::fs::write(home.join(".gitconfig"), config).unwrap();
    std::fs::write(home.join(".netrc"), "default login server password secret\n").unwrap();
    let ssh = format!(
        "#!/bin/sh\necho \"HOME=$HOME $*\" >>{}\nexit 1\n",
        folder.join("ssh.log").display()
    );
    std::fs::write(bin.join("ssh"), ssh).unwrap();
    std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = hearth(&["serve", "--driver", "fake", "--listen", "127.0.0.1:0"]);
    command
        .args(rules.iter().flat_map(|rule| ["--source", rule]))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .env("PATH", path)
        .env("HOME", &home)
        .env("SSH_AUTH_SOCK", folder.join("agent"))
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(folder.join("log")).unwrap());
    let child = command.spawn().unwrap();
    let mut found = None;
    eventually("the server listens", || {
        found = address(folder);
        found.is_some()
    });
    let address = found.unwrap();
    Server { child, address }
}

/// Where it listens, once it does.
fn address(folder: &Path) -> Option<String> {
    let entry = std::fs::read_dir(folder.join("run")).ok()?.next()?.ok()?;
    let entry: Value = serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok()?;
    entry["url"].as_str()?.strip_prefix("http://").map(str::to_owned)
}

impl Server {
    fn call(&self, token: &str, line: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (method, path) = line.split_once(' ').unwrap();
        let body = if method == "GET" {
            String::new()
        } else {
            body.to_string()
        };
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{line}: {reply}");
        serde_json::from_str(reply.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Why a test boot of a project with this repository failed.
    fn boot(&self, token: &str, url: &str) -> String {
        let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
        let project = self.call(token, "POST /projects", &json!({ "name": url, "repos": repos }));
        let pool = format!("/projects/{}/warm-pool", project["id"].as_str().unwrap());
        let test = self.call(token, &format!("POST {pool}/test"), &json!({}));
        let path = format!("GET {pool}/instances/{}", test["id"].as_str().unwrap());
        let mut instance = Value::Null;
        eventually("the test boot ends", || {
            instance = self.call(token, &path, &Value::Null);
            instance["status"] != "provisioning"
        });
        instance["failureReason"].as_str().unwrap_or_default().to_owned()
    }
}

/// A server on the loopback that wants credentials and records what it gets.
fn forge() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut head, mut line) = (String::new(), String::new());
            while stream.read_line(&mut line).unwrap_or_default() > 2 {
                head.push_str(&line);
                line.clear();
            }
            kept.lock().unwrap().push(head);
            let no = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"x\"\r\nconnection: close\r\n\
                      content-length: 0\r\n\r\n";
            let _ = stream.get_mut().write_all(no.as_bytes());
        }
    });
    (port, heard)
}

#[test]
fn the_server_users_credentials_go_out_for_the_first_tenant_and_whom_a_rule_lends_them() {
    let folder = tempfile::tempdir().unwrap();
    let (port, heard) = forge();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ssh_port = listener.local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/acme/app.git");
    let ssh_url = format!("ssh://git@127.0.0.1:{ssh_port}/acme/app.git");
    let rules = [
        format!("tenant=beta allow=http://127.0.0.1:{port}"),
        format!("tenant=gamma allow=http://127.0.0.1:{port} credentials=server"),
        format!("tenant=beta allow=ssh://127.0.0.1:{ssh_port}"),
        format!("tenant=gamma allow=ssh://127.0.0.1:{ssh_port} credentials=server"),
    ];
    let server = start(folder.path(), &rules);
    let admin = std::fs::read_to_string(folder.path().join("data/admin-token")).unwrap();
    let admin = admin.trim().to_owned();
    let token = |tenant: &str| {
        let body = json!({ "name": tenant, "tenant": tenant, "scopes": ["project:read", "project:write"] });
        let made = server.call(&admin, "POST /tokens", &body);
        made["token"].as_str().unwrap().to_owned()
    };
    for (token, lends) in [(admin.clone(), true), (token("beta"), false), (token("gamma"), true)] {
        heard.lock().unwrap().clear();
        let _ = std::fs::remove_file(folder.path().join("ssh.log"));
        let reason = server.boot(&token, &url);
        assert!(reason.contains("cannot fetch acme/app"), "{reason}");
        let said = heard.lock().unwrap().concat();
        assert!(said.contains("GET /acme/app.git/info/refs"), "{said}");
        assert_eq!(said.contains(SECRET), lends, "{said}");
        // The netrc and the credential helper give this once the git host asks for it.
        assert_eq!(
            said.to_lowercase()
                .contains("\nauthorization: basic c2vydmvyonnly3jlda=="),
            lends,
            "{said}"
        );
        assert!(!said.to_lowercase().contains("proxy-"), "{said}");
        let reason = server.boot(&token, &ssh_url);
        assert!(reason.contains("cannot fetch acme/app"), "{reason}");
        let called = std::fs::read_to_string(folder.path().join("ssh.log")).unwrap();
        for part in [
            "HOME=/nonexistent ",
            "-F /dev/null",
            "-o IdentityFile=none",
            "-o IdentityAgent=none",
            "-o HostName=127.0.0.1",
            "known_hosts",
        ] {
            assert_eq!(called.contains(part), !lends, "{part}: {called}");
        }
    }
}

#[test]
fn a_rule_that_makes_no_sense_is_refused_before_the_server_starts() {
    for (rule, says) in [
        ("allow=git.corp.example", "is no address"),
        ("tenant=default deny=https://*", "first tenant"),
        ("allow=https://* credentials=server", "not lent to every host"),
    ] {
        let ran = run(hearth(&["serve", "--source", rule]));
        assert_eq!(ran.code, 2, "{rule}");
        assert!(
            ran.stderr.contains("--source") && ran.stderr.contains(says),
            "{}",
            ran.stderr
        );
    }
    let ran = run(hearth(&[
        "serve",
        "--git-base-url",
        "https://user:password@git.example.org",
    ]));
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("must not hold credentials"), "{}", ran.stderr);
}
