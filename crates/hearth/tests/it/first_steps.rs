//! What a new user sees in the first hour: the program alone, a server's first words, and what is said when something is not right.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::support::{Ran, eventually, hearth, hearth_at, project_page, run};

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let mut command = hearth(&[&["serve"], args].concat());
        command
            .arg("--data-dir")
            .arg(folder.join("data"))
            .env("HEARTH_RUNTIME_DIR", folder.join("run"))
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap());
        Self(command.spawn().unwrap())
    }
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

fn error_of(ran: &Ran) -> Value {
    assert_eq!(ran.stdout, "");
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    let mut whole: Value = serde_json::from_str(&ran.stderr).unwrap();
    whole["error"].take()
}

#[test]
fn program_alone_says_how_to_begin() {
    let ran = run(hearth(&[]));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.lines().count() < 15, "{}", ran.stdout);
    for text in [
        "hearth doctor",
        "hearth image build",
        "hearth serve",
        "hearth claim",
        "--help",
    ] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
}

#[test]
fn with_json_errors_are_json_on_standard_error() {
    let none = run(hearth(&["project", "list", "--json"]));
    let error = error_of(&none);
    assert_eq!(
        (none.code, &error["code"], &error["exitCode"]),
        (3, &json!("no_server"), &json!(3))
    );
    assert!(error["hint"].as_str().unwrap().contains("hearth serve"), "{error}");

    let usage = run(hearth(&["pool", "set", "--json", "web", "--enabled", "--disabled"]));
    let error = error_of(&usage);
    assert_eq!((usage.code, &error["code"]), (2, &json!("usage")));
    assert!(
        error["message"].as_str().unwrap().contains("cannot be used with"),
        "{error}"
    );
    for args in [&["--json"][..], &["pool", "--json"]] {
        let error = error_of(&run(hearth(args)));
        assert_eq!(error["message"], "no command is given", "{error}");
    }
    // Behind `--` stands a command for a VM, whatever it says.
    let theirs = run(hearth(&["exec", "--nonsense", "wpi_1", "--", "tool", "--json"]));
    assert!(
        theirs.code == 2 && theirs.stderr.starts_with("error: "),
        "{}",
        theirs.stderr
    );

    let fake = Fake::start(|_| {
        Reply::json(
            422,
            r#"{"error":{"code":"validation_error","message":"the request is not as it must be",
                "details":[{"path":"name","message":"must not be empty"}]}}"#,
        )
    });
    let refused = run(hearth_at(&fake.url, &["project", "create", "x", "--json"]));
    assert_eq!(refused.code, 1);
    assert_eq!(
        error_of(&refused),
        json!({
            "code": "validation_error", "message": "the request is not as it must be",
            "details": ["name: must not be empty"], "requestId": "req-1", "exitCode": 1,
        })
    );
}

#[test]
fn token_is_revoked_by_its_only_name_and_expired_ones_are_marked() {
    let fake = Fake::start(|request| {
        if request.line.starts_with("DELETE") {
            let id = request.line.rsplit('/').next().unwrap();
            return Reply::ok(&json!({ "id": id, "revoked": true }).to_string());
        }
        let token = |id: &str, name: &str, expires: Value| {
            json!({
                "id": id, "name": name, "owner": "ada", "tenant": "default", "scopes": ["claim"], "projectId": null,
                "createdAt": "2025-01-01T00:00:00.000Z", "lastUsedAt": null, "expiresAt": expires,
            })
        };
        let items = [
            token("tok_1", "ci", json!("2025-02-01T00:00:00.000Z")),
            token("tok_2", "twin", Value::Null),
            token("tok_3", "twin", json!("2125-02-01T00:00:00.000Z")),
        ];
        Reply::ok(&json!({ "items": items }).to_string())
    });
    let revoke = |names: &[&str]| run(hearth_at(&fake.url, &[&["token", "revoke"], names].concat()));
    let twin = revoke(&["ci", "twin"]);
    assert_eq!(twin.code, 2);
    assert!(
        twin.stderr.contains("tok_2") && twin.stderr.contains("tok_3"),
        "{}",
        twin.stderr
    );
    let none = revoke(&["nobody"]);
    assert!(
        none.code == 1 && none.stderr.contains("hearth token list"),
        "{}",
        none.stderr
    );
    assert!(
        fake.requests_of("DELETE").is_empty(),
        "nothing is revoked before all are found"
    );
    let both = revoke(&["ci", "tok_3"]);
    assert_eq!((both.code, both.stderr.as_str()), (0, ""));
    let lines: Vec<String> = fake.requests_of("DELETE").into_iter().map(|it| it.line).collect();
    assert_eq!(lines, ["DELETE /api/v1/tokens/tok_1", "DELETE /api/v1/tokens/tok_3"]);
    let listed = run(hearth_at(&fake.url, &["token", "list"]));
    let line = |name: &str| {
        listed
            .stdout
            .lines()
            .find(|line| line.contains(name))
            .unwrap()
            .to_owned()
    };
    assert!(line("tok_1").contains("expired"), "{}", listed.stdout);
    assert!(
        line("tok_2").contains("never ends") && line("tok_3").contains("2125-02-01"),
        "{}",
        listed.stdout
    );
}

#[test]
fn https_to_a_server_without_tls_says_what_to_write() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // What a plain HTTP server makes of a TLS greeting.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    let ran = run(hearth_at(&format!("https://{address}"), &["project", "list"]));
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("speaks plain HTTP") && ran.stderr.contains("http:// instead of https://"),
        "{}",
        ran.stderr
    );
}

#[test]
fn server_says_where_it_is_what_it_lacks_and_who_can_listen() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let server = Server::start(folder, &["--listen", "0"]);
    eventually("the server has said everything", || {
        log(folder).contains("no VM can be made")
    });
    let said = log(folder);
    for text in ["/docs", "/api/v1", "data/admin-token", "`hearth image build`"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert!(!said.contains("plain HTTP"), "{said}");
    let mut doctor = hearth(&["doctor", "--json"]);
    doctor
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .env("PATH", std::env::var_os("PATH").unwrap());
    let findings: Value = serde_json::from_str(&run(doctor).stdout).unwrap();
    let found = |name: &str| {
        findings
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["name"] == name)
            .cloned()
    };
    let seen = found("server").unwrap();
    assert!(
        seen["status"] == "ok" && seen["summary"].as_str().unwrap().contains("answers (process"),
        "{seen}"
    );
    // Its data folder is the one that was looked at, and its address is not a fault.
    assert!(
        found("disk").unwrap()["summary"]
            .as_str()
            .unwrap()
            .contains(folder.to_str().unwrap())
    );
    assert_eq!(found("port"), None);
    drop(server);

    let public = Server::start(folder, &["--driver", "fake", "--listen", "0.0.0.0:0"]);
    eventually("the server warns", || log(folder).contains("plain HTTP"));
    assert!(!log(folder).contains("no VM can be made"));
    drop(public);
}

#[test]
fn doctor_says_that_a_named_server_does_not_answer() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut doctor = hearth_at(&format!("http://{free}"), &["doctor", "--json"]);
    doctor.env("PATH", std::env::var_os("PATH").unwrap());
    let ran = run(doctor);
    assert_eq!(ran.code, 1);
    let findings: Value = serde_json::from_str(&ran.stdout).unwrap();
    let server = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "server")
        .unwrap();
    assert_eq!(server["status"], "fail");
    assert!(server["fix"].as_str().unwrap().contains("hearth serve"), "{server}");
}

#[test]
fn doctor_does_not_warn_of_the_port_of_the_server_that_answers() {
    let fake = Fake::start(|_| Reply::ok("{}"));
    let address = fake.url.trim_start_matches("http://");
    for (url, warned) in [(fake.url.as_str(), false), ("http://127.0.0.1:1", true)] {
        let mut doctor = hearth_at(url, &["doctor", "--json", "--listen", address]);
        doctor.env("PATH", std::env::var_os("PATH").unwrap());
        let findings: Value = serde_json::from_str(&run(doctor).stdout).unwrap();
        let has_port = findings.as_array().unwrap().iter().any(|it| it["name"] == "port");
        assert_eq!(has_port, warned, "{findings}");
    }
}

#[test]
fn list_of_tokens_names_projects_and_fits_a_page() {
    let fake = Fake::start(|request| {
        if !request.line.contains("/tokens") {
            return Reply::ok(&project_page());
        }
        let token = |project: &str| {
            json!({
                "id": "tok_01a209b7e85e718e81af7e694ccb2946", "name": "pipeline", "owner": "ada", "tenant": "default",
                "scopes": ["project:read", "project:write", "claim"], "projectId": project,
                "createdAt": "2025-01-01T00:00:00.000Z", "lastUsedAt": null, "expiresAt": "2125-02-01T00:00:00.000Z",
            })
        };
        Reply::ok(&json!({ "items": [token("prj_1"), token("prj_gone")] }).to_string())
    });
    let listed = run(hearth_at(&fake.url, &["token", "list"])).stdout;
    assert!(listed.contains(" web ") && listed.contains("prj_gone"), "{listed}");
    assert!(listed.lines().all(|line| line.chars().count() <= 120), "{listed}");
}

#[test]
fn folder_or_address_that_cannot_be_used_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let serve = |args: &[&str], data: &Path| {
        let mut command = hearth(&[&["serve", "--driver", "fake"], args].concat());
        command.arg("--data-dir").arg(data);
        run(command)
    };
    let in_the_way = serve(&["--listen", "0"], &file.join("data"));
    assert!(
        in_the_way.code == 1 && in_the_way.stderr.contains("hint: ") && in_the_way.stderr.contains("--data-dir"),
        "{}",
        in_the_way.stderr
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let busy = serve(&["--listen", &port], &folder.path().join("data"));
    assert!(
        busy.code == 1 && busy.stderr.contains("another program listens there"),
        "{}",
        busy.stderr
    );
    let wrong = serve(&["--listen", "http://127.0.0.1:1"], &folder.path().join("data"));
    assert!(
        wrong.code == 2 && wrong.stderr.contains("0.0.0.0:7717"),
        "{}",
        wrong.stderr
    );
}
