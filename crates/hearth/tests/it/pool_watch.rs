//! `hearth pool status --watch`: the pool whenever it changes, until it is stopped.

use std::io::{BufRead as _, BufReader};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page};

const SOON: Duration = Duration::from_secs(30);

/// A pool of which one more is ready at every second look.
fn server() -> Fake {
    let looks = AtomicU64::new(0);
    Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/warm-pool") => {
            let ready = looks.fetch_add(1, Ordering::SeqCst) / 2;
            Reply::ok(&format!(
                r#"{{"allowed":true,"config":null,"status":{{"ready":{ready},"provisioning":0,"failed":0}},"metadata":null}}"#
            ))
        }
        line if line.contains("/projects?") => Reply::ok(&project_page()),
        _ => Reply::not_found(),
    })
}

fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (tell, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[test]
fn a_watched_pool_is_shown_once_for_each_change_until_it_is_stopped() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let fake = server();
        let mut watching = hearth_at(&fake.url, &["pool", "status", "web", "--watch", "--json"])
            .spawn()
            .unwrap();
        let lines = lines_of(watching.stdout.take().unwrap());
        for ready in 0..3 {
            let line = lines.recv_timeout(SOON).unwrap();
            let shown: serde_json::Value = serde_json::from_str(&line).unwrap();
            // What is as it was is not shown again.
            assert_eq!(shown["status"]["ready"], ready, "{line}");
        }
        kill(Pid::from_raw(watching.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(watching.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn a_pool_that_is_deleted_while_it_is_watched_ends_the_watching_with_the_servers_answer() {
    let looks = AtomicU64::new(0);
    let fake = Fake::start(move |request| match request.line.as_str() {
        line if line.ends_with("/warm-pool") && looks.fetch_add(1, Ordering::SeqCst) == 0 => Reply::ok(
            r#"{"allowed":true,"config":null,"status":{"ready":0,"provisioning":0,"failed":0},"metadata":null}"#,
        ),
        line if line.contains("/projects?") => Reply::ok(&project_page()),
        _ => Reply::not_found(),
    });
    let ran = crate::support::run(hearth_at(&fake.url, &["pool", "status", "web", "--watch", "--json"]));
    assert_eq!((ran.code, ran.stdout.lines().count()), (1, 1), "{ran:?}");
    assert!(ran.stderr.contains("there is no such thing"), "{}", ran.stderr);
}
