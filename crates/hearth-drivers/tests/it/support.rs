//! Helpers of the tests: waiting for something to become true, looking at processes.

use std::future::Future;
use std::time::{Duration, Instant};

/// Waits until `look` gives something; panics with `what` at the deadline.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            begin.elapsed() < deadline,
            "not within {} s: {what}",
            deadline.as_secs()
        );
        // pause between two checks
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Command lines of the living processes whose arguments or environment hold a text.
pub(crate) fn processes_with(text: &str) -> Vec<(i32, String)> {
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let zombie = stat.rsplit_once(") ").is_none_or(|(_, idle)| idle.starts_with('Z'));
        let arguments = read("cmdline");
        if !zombie && u32::try_from(pid) != Ok(std::process::id()) && (holds(&arguments) || holds(&read("environ"))) {
            found.push((pid, String::from_utf8_lossy(&arguments).replace('\0', " ")));
        }
    }
    found
}
