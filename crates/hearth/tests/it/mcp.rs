//! Tools for agents: the official client SDK of the Model Context Protocol (Python) calls them, over `hearth mcp` and over `/mcp`. Its story is
//! `xtask/mcp/story.py`.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::killed;
use crate::server::Server;
use crate::support::{Ran, eventually, hearth, run, run_with_stdin};

/// A value that no tool shows.
const SECRET: &str = "known-secret-7d1f4c";
/// The last revision of the protocol with sessions, and the one without.
const REVISIONS: [&str; 2] = ["2025-11-25", "2026-07-28"];

/// A part of the story, told by the official client.
fn tell(url: &str, token: &str, words: [&str; 4]) {
    let python = std::env::var_os("HEARTH_MCP_PYTHON")
        .expect("HEARTH_MCP_PYTHON is not set: `cargo xtask test NAME` installs the client and sets it");
    let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/mcp/story.py");
    let mut command = Command::new(python);
    command
        .arg(story)
        .args(words)
        .env("HEARTH_URL", url)
        .env("HEARTH_TOKEN", token)
        .env("HEARTH_PROGRAM", env!("CARGO_BIN_EXE_hearth"))
        .env("HEARTH_KNOWN_SECRET", SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Ran { code, stdout, stderr } = run(command);
    println!("{stdout}");
    assert_eq!(code, 0, "{words:?}: {stdout}\n{stderr}");
    assert!(!stdout.contains(SECRET) && !stderr.contains(token), "{stdout}{stderr}");
}

#[test]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn an_agent_repairs_a_set_up_and_works_in_a_vm_over_both_ways_and_both_revisions() {
    let server = killed::Server::new();
    let url = server.url();
    let token = server.run(&[
        "token",
        "create",
        "agent",
        "--scope",
        "project:read,project:write,claim",
        "--name-prefix",
        "mcp-",
        "--max-vms",
        "2",
    ]);
    let token = token.trim();
    server.run(&["project", "create", "mcp-story", "--size", "small"]);
    server.run(&["env", "set", "mcp-story", &format!("KNOWN_SECRET={SECRET}")]);
    server.run(&["project", "create", "other"]);
    let [before, now] = REVISIONS;
    tell(&url, token, ["read", "stdio", now, "mcp-story"]);
    tell(&url, token, ["read", "http", before, "mcp-story"]);
    tell(&url, token, ["setup", "stdio", before, "mcp-story"]);
    tell(&url, token, ["work", "http", now, "mcp-story"]);
    // What the tools did is in the audit log as any other request is, with where it came from.
    let audit: Value = serde_json::from_str(&server.run(&["audit", "--json"])).unwrap();
    let by_agent = |operation: &str| {
        let mut entries = audit["items"].as_array().unwrap().iter();
        entries.any(|entry| {
            entry["tokenName"] == "agent" && entry["operation"] == operation && entry["address"] == "127.0.0.1"
        })
    };
    for operation in [
        "test_pool",
        "claim_instance",
        "start_session",
        "write_file",
        "fork_instance",
        "release_instance",
    ] {
        assert!(by_agent(operation), "{operation}: {audit:#}");
    }
    relay_a_worker(&server);
    let log = server.log();
    assert!(!log.contains(SECRET) && !log.contains("rmcp"), "{log}");
    server.run(&["project", "delete", "mcp-story", "--yes"]);
}

/// A worker of a cloud agent in a real VM: it has its secret, which is in no process's arguments, and its end releases the VM.
fn relay_a_worker(server: &killed::Server) {
    let worker = r#"echo registered with $(printf %s "$WORKER_SECRET" | wc -c) characters
printf %s "$WORKER_SECRET" | grep -l -f - /proc/[0-9]*/cmdline
sleep 600"#;
    let mut hook = server.command(&[
        "relay",
        "command",
        "--order",
        "order-1",
        "--project",
        "mcp-story",
        "--pass",
        "WORKER_SECRET",
        "--",
        "bash",
        "-c",
        worker,
    ]);
    hook.env("WORKER_SECRET", SECRET);
    server.wait("a VM is ready", || {
        let pool: Value = serde_json::from_str(&server.run(&["pool", "status", "mcp-story", "--json"])).unwrap();
        pool["status"]["ready"] == 1
    });
    let Ran { code, stderr, .. } = run(hook);
    assert_eq!(code, 0, "{stderr}");
    server.wait("the worker is registered", || {
        server
            .try_run(&["logs", "order-1", "worker"])
            .stdout
            .contains("registered")
    });
    let printed = server.run(&["logs", "order-1", "worker"]);
    assert!(
        printed.contains(&format!("with {} characters", SECRET.len())),
        "{printed}"
    );
    assert!(!printed.contains("cmdline") && !printed.contains(SECRET), "{printed}");
    server.run(&["kill", "order-1", "worker"]);
    server.wait("the VM is released", || {
        !server.run(&["claims", "--json"]).contains("order-1")
    });
}

/// Answers over both ways to the same request.
fn both(server: &Server, token: &str, request: &Value) -> [Value; 2] {
    let mut stdio = hearth(&["mcp"]);
    stdio.env("HEARTH_URL", server.url()).env("HEARTH_TOKEN", token);
    let Ran { code, stdout, stderr } = run_with_stdin(stdio, format!("{request}\n").as_bytes());
    assert_eq!(code, 0, "{stdout}{stderr}");
    let by_stdio = serde_json::from_str(stdout.trim()).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    let (status, answer) = post(server, Some(token), request);
    assert_eq!(status, 200, "{answer}");
    let data = answer.lines().filter_map(|line| line.strip_prefix("data:"));
    let by_http = data
        .filter_map(|data| serde_json::from_str::<Value>(data.trim()).ok())
        .next_back()
        .or_else(|| serde_json::from_str(&answer).ok())
        .unwrap_or_else(|| panic!("{answer}"));
    [by_stdio, by_http]
}

/// A request to `/mcp`: status and body.
fn post(server: &Server, token: Option<&str>, request: &Value) -> (u16, String) {
    let url = format!("{}/mcp", server.url());
    // The client uses what the process has installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut sent = reqwest::Client::new()
        .post(url)
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", request["method"].as_str().unwrap())
        .json(request);
    if let Some(name) = request["params"]["name"].as_str() {
        sent = sent.header("mcp-name", name);
    }
    if let Some(token) = token {
        sent = sent.bearer_auth(token);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let answer = sent.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

fn request(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

#[test]
fn both_ways_have_the_same_tools_and_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.ok(&["project", "create", "mcp-one"]);
    server.ok(&["project", "create", "other"]);
    let token = server.ok(&[
        "token",
        "create",
        "agent",
        "--scope",
        "project:read,project:write,claim",
        "--name-prefix",
        "mcp-",
    ]);
    let token = token.trim();
    let [by_stdio, by_http] = both(&server, token, &request("tools/list", json!({})));
    assert_eq!(by_stdio["result"]["tools"], by_http["result"]["tools"]);
    assert_eq!(by_stdio["result"]["tools"].as_array().unwrap().len(), 12, "{by_stdio}");
    let call = |name: &str, arguments: Value| {
        let [by_stdio, by_http] = both(
            &server,
            token,
            &request("tools/call", json!({ "name": name, "arguments": arguments })),
        );
        assert_eq!(by_stdio["result"]["content"], by_http["result"]["content"]);
        let text = by_http["result"]["content"][0]["text"]
            .as_str()
            .unwrap_or_else(|| panic!("{by_http}"));
        (text.to_owned(), by_http["result"]["isError"] == true)
    };
    // Of a project that its names do not reach there is nothing.
    let (list, _) = call("projects", json!({}));
    assert!(list.contains("mcp-one") && !list.contains("other"), "{list}");
    for (name, arguments, says) in [
        ("projects", json!({ "project": "other" }), "no project"),
        ("claim", json!({ "project": "other", "task_id": "t" }), "no project"),
        (
            "change_setup",
            json!({ "project": "third", "create_from": "https://git.example.org/acme/third" }),
            "begin with `mcp-`",
        ),
        ("claim", json!({ "project": "mcp-one" }), "task_id"),
        (
            "run",
            json!({ "instance": "wpi_1", "command": "true", "cmd": 1 }),
            "unknown field `cmd`",
        ),
        ("nothing", json!({}), "there are projects, change_setup"),
        ("change_setup", json!({ "project": "mcp-one" }), "nothing to change"),
        ("test_setup", json!({}), "give either"),
    ] {
        let (text, is_error) = call(name, arguments);
        assert!(is_error && text.contains(says), "{name}: {text}");
    }
    // The VM of a test boot is nobody's claim, and goes too.
    server.ok(&["pool", "test", "mcp-one"]);
    let boots: Value = serde_json::from_str(&server.ok(&["pool", "instances", "mcp-one", "--json"])).unwrap();
    let boot = boots["items"][0]["id"].as_str().unwrap();
    let release = request(
        "tools/call",
        json!({ "name": "release", "arguments": { "instance": boot } }),
    );
    let (status, answer) = post(&server, Some(token), &release);
    assert!(status == 200 && answer.contains("is over"), "{answer}");
    eventually("the test boot's VM goes", || {
        run(server.client(&["exec", boot, "true"]))
            .stderr
            .contains("was removed")
    });
    // Without a token there is nothing at all.
    let (status, answer) = post(&server, None, &request("tools/list", json!({})));
    assert_eq!(status, 401, "{answer}");
}
