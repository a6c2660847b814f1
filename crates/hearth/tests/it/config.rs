//! The config file of the server: its keys, its faults, what counts before it, and what a running server takes over.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::OnceLock;

use nix::sys::signal::Signal;

use crate::server::{self, Server};
use crate::support::{eventually, hearth, run};

/// What clients need to find a server, and what shows a text.
const NO_KEYS: [&str; 8] = ["ca", "config", "help", "json", "token", "token-file", "url", "version"];

/// `#key = value` without the mark.
fn settings(example: &str) -> String {
    let lines = example.lines().filter_map(|line| line.strip_prefix('#'));
    lines
        .filter(|line| !line.starts_with([' ', '#']))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn example_has_a_key_for_every_option_and_is_a_config_file() {
    let folder = tempfile::tempdir().unwrap();
    let example = run(hearth(&["config", "example"])).stdout;
    let help = run(hearth(&["serve", "--help"])).stdout;
    let options: BTreeSet<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("-h, ").or(Some(line.trim_start())))
        .filter_map(|line| line.strip_prefix("-V, ").or(Some(line)))
        .filter_map(|line| line.strip_prefix("--")?.split([' ', '[', '=']).next())
        .filter(|name| !NO_KEYS.contains(name))
        .collect();
    let settings = settings(&example);
    let keys: BTreeSet<&str> = settings.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(keys, options, "{example}");
    assert!(keys.len() > 25 && keys.contains("tls-cert"), "{keys:?}");

    // As it is it sets nothing; with every key set it is accepted, once the files that it names exist.
    let file = folder.path().join("hearth.toml");
    let named = folder.path().to_str().unwrap();
    // A certificate is in files or from an authority.
    let set = |other: &str| {
        let lines = settings.lines().filter(|line| !line.starts_with(other));
        let lines: Vec<&str> = lines.collect();
        let count = keys.iter().filter(|key| !key.starts_with(other)).count();
        (lines.join("\n").replace("/etc/hearth", named), count)
    };
    for (text, count) in [(example.clone(), 0), set("tls-"), set("acme-")] {
        for quoted in text.split('"').filter(|part| part.starts_with(named)) {
            fs::write(quoted, content(quoted)).unwrap();
        }
        fs::write(&file, text).unwrap();
        let checked = run(hearth(&["config", "check", file.to_str().unwrap()]));
        assert_eq!(checked.code, 0, "{}", checked.stderr);
        assert_eq!(checked.stdout.lines().count(), count, "{}", checked.stdout);
    }
    // As JSON too; and a file that is missing is a fault.
    let json = run(hearth(&["config", "check", file.to_str().unwrap(), "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["settings"]["max-vms"], serde_json::json!(["500"]));
    // So is one that the server would not start with, and all are said.
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let checked = run(hearth(&["config", "check", file.to_str().unwrap()]));
        assert_eq!(checked.code, 2, "{}", checked.stderr);
        checked.stderr
    };
    let said = check("tls-cert = \"/nowhere/cert\"\ntls-key = \"/nowhere/key\"\n");
    assert!(
        said.contains("/nowhere/cert") && said.contains("/nowhere/key"),
        "{said}"
    );
    let junk = folder.path().join("junk");
    fs::write(&junk, "junk").unwrap();
    let junk = junk.display();
    let said = check(&format!(
        "tls-cert = \"{junk}\"\ntls-key = \"{junk}\"\ndatabase = \"mysql://x:s3cret-4711@y/z\"\n"
    ));
    assert!(
        said.contains("no certificate in PEM") && said.contains("the address of the database"),
        "{said}"
    );
    assert!(!said.contains("s3cret-4711"), "{said}");
}

/// What makes a file of the example one that can be used.
fn content(path: &str) -> String {
    static PAIR: OnceLock<(String, String)> = OnceLock::new();
    let (certificate, key) = PAIR.get_or_init(|| {
        let own = rcgen::generate_simple_self_signed(vec!["hearth.example".to_owned()]).unwrap();
        (own.cert.pem(), own.signing_key.serialize_pem())
    });
    match path {
        _ if path.ends_with("tls-cert") || path.ends_with("peer-ca") => certificate.clone(),
        _ if path.ends_with("tls-key") => key.clone(),
        _ => "0123456789abcdef0123456789abcdef".to_owned(),
    }
}

fn refusal(folder: &Path, text: &str) -> String {
    let file = folder.join("bad.toml");
    fs::write(&file, text).unwrap();
    let checked = run(hearth(&["config", "check", file.to_str().unwrap()]));
    let mut command = server::command(folder, &["--config", file.to_str().unwrap()]);
    command.stderr(std::process::Stdio::piped());
    let started = run(command);
    assert_eq!((checked.code, started.code), (2, 2), "{}", started.stderr);
    assert_eq!(checked.stderr, started.stderr, "both say the same");
    checked.stderr
}

#[test]
fn every_fault_is_said_at_once_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let said = refusal(
        folder.path(),
        "max-vms = 10\n\n  max_vmz = 3\nmemory = \"much\"\naccel = \"fast\"\nlisten = [\"nowhere\", 5]\nboot-timeout = [1]\n\
         watch-interval = 1.5\nzebra = 1\n[table]\nmax-vms = 1\n",
    );
    for part in [
        "line 3, column 3: there is no key `max_vmz`; did you mean `max-vms`?",
        "line 4, column 10: memory: write a whole number",
        "line 5, column 9: accel: write one of auto, tcg, kvm",
        "line 6, column 11: listen: write a port like 7717",
        "line 7, column 16: boot-timeout: it takes one value, not a list",
        "line 8, column 18: watch-interval: write a text in quotation marks, or a whole number",
        "line 9, column 1: there is no key `zebra`\n",
        "line 10, column 2: there is no key `table`\n",
        "hearth config example",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    for (text, place) in [
        ("max-vms = 10\nmemory 5\n", "line 2, column 8: "),
        ("\nmemory = 1\nmemory = 2\n", "line 3, column 1: "),
    ] {
        let said = refusal(folder.path(), text);
        assert!(said.contains(place), "{said}");
    }
    // What one setting needs beside it.
    let said = refusal(folder.path(), "tls-cert = \"/nowhere\"\n");
    assert!(said.contains("there must be another one: --tls-key <FILE>"), "{said}");
    // A file that is named must be there; bytes that are no text are refused.
    let missing = run(hearth(&["serve", "--config", "/nowhere/hearth.toml"]));
    assert!(
        missing.code != 0 && missing.stderr.contains("/nowhere/hearth.toml"),
        "{}",
        missing.stderr
    );
    let file = folder.path().join("bytes.toml");
    fs::write(&file, b"\xff\xfe").unwrap();
    let bytes = run(hearth(&["config", "check", file.to_str().unwrap()]));
    assert!(bytes.code == 1 && bytes.stderr.contains("UTF-8"), "{}", bytes.stderr);
}

#[test]
fn command_line_counts_before_environment_before_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("unix:{}", folder.path().join(name).display());
    let file = folder.path().join("hearth.toml");
    fs::write(&file, format!("# a comment\nlisten = \"{}\"\n", path("file.sock"))).unwrap();
    let start = |environment: bool, args: &[&str]| {
        let mut command = server::command(folder.path(), args);
        command.env("HEARTH_CONFIG", &file);
        if environment {
            command.env("HEARTH_LISTEN", path("environment.sock"));
        }
        Server::started(folder.path(), command).url()
    };
    assert_eq!(start(false, &[]), path("file.sock"));
    assert_eq!(start(true, &[]), path("environment.sock"));
    assert!(start(true, &["--listen", "127.0.0.1:0", "--"]).starts_with("http://127.0.0.1:"));
    let mut command = server::command(folder.path(), &[]);
    command
        .env("HEARTH_MAX_VMS", "many")
        .stderr(std::process::Stdio::piped());
    let refused = run(command);
    assert!(
        refused.code == 2 && refused.stderr.contains("HEARTH_MAX_VMS: "),
        "{}",
        refused.stderr
    );
}

/// The status of a request with the admin's token.
fn status(server: &Server) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let request = format!(
        "GET /api/v1/projects HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\n\r\n",
        server.token()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn hangup_takes_over_what_can_change_and_names_what_needs_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hearth.toml");
    fs::write(&file, "requests-per-second = 0\nmemory = 4096\nlisten = 0\n").unwrap();
    let mut server = Server::start(folder.path(), &["--config", file.to_str().unwrap()]);
    for _ in 0..20 {
        assert_eq!(status(&server), "200");
    }
    // A fault in it changes nothing.
    fs::write(&file, "requests-per-second = 1\nmemry = 1\n").unwrap();
    server.signal(Signal::SIGHUP);
    server.says("did you mean `memory`?");
    assert_eq!(status(&server), "200");
    fs::write(&file, "requests-per-second = 1\nmemory = 8192\nlisten = 0\n").unwrap();
    server.signal(Signal::SIGHUP);
    server.says("the settings were read again changed=\"requests-per-second\"");
    server.says("hold after a restart of the server settings=\"memory\"");
    eventually("the new pace holds", || status(&server) == "429");
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}
