//! Forks and checkpoints of a real VM in use: what only a real guest can show.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fork::id;
use crate::harness::{BOOT, Server};
use crate::vms::{clean_up, exec, server_with};

/// Counts in its memory, and answers with the number.
const COUNTER: &str = "
import http.server, threading, time
count = 0
def run():
    global count
    while True:
        count += 1
        time.sleep(0.05)
threading.Thread(target=run, daemon=True).start()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(count).encode())
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', 3000), Answer).serve_forever()
";
/// Lines that a command in the VM prints while it is forked.
const LINES: usize = 60;

async fn printed(server: &Server, of: &str, command: &str) -> String {
    let ran = exec(server, of, command).await;
    assert_eq!(ran["exitCode"], 0, "{command}: {ran}");
    ran["stdout"].as_str().unwrap().trim().to_owned()
}

/// The number that the server in a VM answers with, once it answers.
async fn count(server: &Server, of: &str) -> u64 {
    let begin = Instant::now();
    loop {
        let request = server.request(Method::GET, &format!("/instances/{of}/ports/3000/"));
        let reply = request.send().await.unwrap();
        let text = reply.text().await.unwrap();
        if let Ok(count) = text.trim().parse() {
            return count;
        }
        assert!(begin.elapsed() < BOOT, "{text}");
        crate::harness::pause().await;
    }
}

/// What tells a VM from others.
async fn identity(server: &Server, of: &str) -> Vec<String> {
    let command =
        "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
    let text = printed(server, of, command).await;
    let parts: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(parts.len(), 4, "{text}");
    parts
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_real_vm_in_use_is_forked_kept_and_restored() {
    let server = server_with(|_| {}).await;
    let project = server.project(json!({ "name": "forks", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(BOOT, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({ "taskId": "T1" })).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let parent = id(&claim);
    let session = json!({ "request": { "argv": ["python3", "-c", COUNTER] }, "tag": "counter" });
    server.post(&format!("/instances/{parent}/sessions"), session).await;
    let before = count(&server, parent).await;
    printed(&server, parent, "echo one >/root/disk").await;

    // A command with a caller prints on while the VM is forked.
    let command = format!("for i in $(seq {LINES}); do echo $i; sleep 0.1; done");
    let request = server.request(Method::POST, &format!("/instances/{parent}/exec"));
    let running = tokio::spawn(request.json(&json!({ "command": command })).send());
    let began = Instant::now();
    let reply = server
        .post(&format!("/instances/{parent}/fork"), json!({ "count": 3 }))
        .await;
    println!(
        "forked three ways in {:?}, stopped for {} ms",
        began.elapsed(),
        reply["pausedMs"]
    );
    let forks: Vec<Value> = reply["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["claim"].clone())
        .collect();
    let mut seen: BTreeSet<String> = identity(&server, parent).await.into_iter().collect();
    let counts = join_all(forks.iter().map(|fork| count(&server, id(fork)))).await;
    for (fork, first) in forks.iter().zip(counts) {
        let of = id(fork);
        assert!(first >= before, "{first} after {before}");
        let parts = identity(&server, of).await;
        assert_eq!(parts[0], fork["instanceId"].as_str().unwrap());
        for part in parts {
            assert!(seen.insert(part.clone()), "{part} is another VM's too");
        }
        let sessions = server.get(&format!("/instances/{of}/sessions")).await;
        let session = &sessions["items"][0];
        assert_eq!(
            (&session["tag"], &session["status"]),
            (&json!("counter"), &json!("running"))
        );
        assert!(count(&server, of).await > first, "it counts on");
        assert_eq!(printed(&server, of, "cat /root/disk").await, "one");
        printed(&server, of, &format!("echo {of} >/root/disk")).await;
        let now = printed(&server, of, "date +%s").await.parse::<i64>().unwrap();
        assert!(
            (now - jiff::Timestamp::now().as_second()).abs() < 5,
            "the clock says {now}"
        );
    }
    let ended: Value = running.await.unwrap().unwrap().json().await.unwrap();
    let lines: Vec<String> = (1..=LINES).map(|line| line.to_string()).collect();
    assert_eq!(ended["exitCode"], 0, "{ended}");
    assert_eq!(ended["stdout"].as_str().unwrap().lines().collect::<Vec<_>>(), lines);
    assert_eq!(printed(&server, parent, "cat /root/disk").await, "one");
    // A session of a copy is signalled by itself.
    let signal = format!("/instances/{}/sessions/counter/signal", id(&forks[0]));
    server.post(&signal, json!({ "signal": "KILL" })).await;
    assert!(count(&server, parent).await > before && count(&server, id(&forks[1])).await > before);

    // Kept, and restored after more was done.
    let kept = count(&server, parent).await;
    let made = server
        .post(&format!("/instances/{parent}/checkpoint"), json!({ "name": "kept" }))
        .await;
    assert!(made["bytes"].as_u64().unwrap() > 0);
    printed(&server, parent, "echo two >/root/disk").await;
    let later = async {
        while count(&server, parent).await < kept + 100 {
            crate::harness::pause().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), later).await.unwrap();
    server
        .post(&format!("/instances/{parent}/restore"), json!({ "checkpoint": "kept" }))
        .await;
    let restored = count(&server, parent).await;
    assert!(restored >= kept, "{restored} after {kept}");
    assert_eq!(printed(&server, parent, "cat /root/disk").await, "one");
    let from = server
        .post(
            &format!("{pool}/claim"),
            json!({ "checkpoint": "kept", "taskId": "T2" }),
        )
        .await;
    assert!(count(&server, id(&from)).await >= kept);
    // A fork of what was restored: a fork of a fork.
    let reply = server.post(&format!("/instances/{parent}/fork"), json!({})).await;
    let last = reply["items"][0]["claim"].clone();
    assert!(count(&server, id(&last)).await >= restored);
    clean_up(server, &project).await;
}
