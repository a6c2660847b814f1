//! Real VMs whose kernel panics, whose QEMU is killed, and that write to a full disk of the host.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guests::message;
use crate::harness::{BOOT, Server};
use crate::vms::{clean_up, exec, qemu_of, server_with};

/// Lets the kernel panic.
const CRASH: &str = "echo c >/proc/sysrq-trigger";
const PANIC: &str = "\"Kernel panic - not syncing: sysrq triggered crash\"";

/// A pool of small VMs, and a claimed one: the project's path and the claim.
async fn claimed(server: &Server) -> (String, Value) {
    let project = server.project(json!({ "name": "ends", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(BOOT, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    (project, claim)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_panic_and_a_killed_qemu_are_called_what_they_are() {
    let server = server_with(|_| {}).await;
    let (project, claim) = claimed(&server).await;
    let id = claim["id"].as_str().unwrap();
    let message = exec(&server, id, CRASH).await;
    let error = message["error"].as_str().unwrap();
    assert!(error.contains("kernel panicked") && error.contains(PANIC), "{message}");
    let vm = claim["instanceId"].as_str().unwrap();
    let qemu = i32::try_from(qemu_of(vm).unwrap()).unwrap();
    kill(Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    let ended = |it: &Value| it["items"][0]["vmEndedAt"].is_string();
    let claims = server.until(BOOT, "/claims", ended).await;
    let because = claims["items"][0]["vmEndedBecause"].as_str().unwrap();
    // The panic was an earlier boot's.
    assert!(because.contains("its process on the host is gone"), "{because}");
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let commands = json!({ "setupCommands": [{ "name": "crash", "command": CRASH }] });
    let record = server.test_boot(BOOT, &project, commands).await;
    let reason = record["failureReason"].as_str().unwrap();
    assert!(
        reason.starts_with("the guest's kernel panicked during the command `crash`") && reason.contains(PANIC),
        "{reason}"
    );
    clean_up(server, &project).await;
}

/// A small file system on a disk of its own, taken away with the value.
struct SmallDisk(PathBuf);

/// Room for a template and its forks; sparse.
const SIZE: &str = "4G";

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let image = at.with_extension("img");
        std::fs::create_dir_all(at).unwrap();
        let run = |program: &str, words: &[&str], last: &Path| {
            let done = Command::new(program)
                .args(words)
                .arg(&image)
                .arg(last)
                .output()
                .unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        let made = Command::new("truncate")
            .args(["-s", SIZE])
            .arg(&image)
            .status()
            .unwrap();
        assert!(made.success());
        run("mkfs.ext4", &["-q", "-m", "0"], Path::new(SIZE));
        run("mount", &["-o", "loop"], at);
        Self(at.to_owned())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Writes until there is no byte left.
    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        // Space that was only promised is taken.
        drop(file.sync_all());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_vm_on_a_full_disk_stands_still_and_goes_on_when_there_is_room() {
    let mut disk = None;
    let server = server_with(|options| {
        options.probe_interval = Duration::from_secs(20);
        disk = Some(SmallDisk::mount(&options.data_dir));
    })
    .await;
    let disk = disk.unwrap();
    let (project, claim) = claimed(&server).await;
    let id = claim["id"].as_str().unwrap();
    let path = format!("/instances/{id}/exec");
    exec(&server, id, "true").await;
    disk.fill();
    let command = "head -c 48M /dev/urandom >/home/big && sync && dmesg | grep -ci 'i/o error'; wc -c </home/big";
    let work = server.request(Method::POST, &path).json(&json!({ "command": command }));
    let work = tokio::spawn(work.send());
    let is_told = |it: &Value| it.to_string().contains("the disk of the host is full");
    let claims = server.until(BOOT, "/claims", is_told).await;
    println!("{claims:#}");
    let (status, body) = server.call(Method::POST, &path, json!({ "command": "true" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(message(&body).contains("the disk of the host is full"), "{body}");
    std::fs::remove_file(disk.filler()).unwrap();
    let done: Value = work.await.unwrap().unwrap().json().await.unwrap();
    // No error reached the guest, and all of it is there.
    assert_eq!(done["stdout"], format!("0\n{}\n", 48 << 20), "{done}");
    server
        .until(BOOT, "/claims", |it| it["items"][0]["unresponsive"].is_null())
        .await;
    clean_up(server, &project).await;
}
