//! `hearth top` at a terminal, with the real server.

use crate::server::Server;
use crate::support::{run, run_at_terminal_after};

#[test]
fn pools_are_shown_and_q_quits() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--listen", "0"]);
    server.ok(&["project", "create", "demo"]);
    server.ok(&["pool", "set", "demo", "--enabled", "--target", "1"]);
    server.ok(&["claim", "demo", "--task", "T-4711", "--wait", "30"]);
    let (code, shown) = run_at_terminal_after(server.client(&["top"]), "q quit", b"\t\x1b[Bsrq");
    assert_eq!(code, Some(0), "{shown}");
    for text in ["Pools (1)", "demo", "Claims (1)", "T-4711", "memory", "Lease left"] {
        assert!(shown.contains(text), "{text} in {shown}");
    }
    // The terminal is given back: the other screen is left.
    assert!(
        shown.ends_with("\x1b[?25h") || shown.contains("\x1b[?1049l"),
        "{shown:?}"
    );
    let json: serde_json::Value = serde_json::from_str(&server.ok(&["top", "--json"])).unwrap();
    assert_eq!(json["pools"][0]["name"], "demo");
    assert_eq!(json["claims"][0]["taskId"], "T-4711");
    let piped = run(server.client(&["top"]));
    assert!(piped.code == 2 && piped.stderr.contains("--json"), "{}", piped.stderr);
}
