//! What a sandbox uses now, as its guest says it.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use hearth_guest::ExecSpec;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::access::{Key, Sandbox, managed, opened};
use super::fault::{Fault, Refusal};
use super::process::asked;
use crate::http::AppState;

/// Two readings of the processor's times a moment apart, the memory in KiB, and the disk in bytes.
const ASK: &str = "nproc; head -n 1 /proc/stat; sleep 0.2; head -n 1 /proc/stat
awk '/^(MemTotal|MemAvailable|Cached):/ { print $1, $2 }' /proc/meminfo
df -B1 --output=used,size / | tail -n 1";
/// What is kept of what that prints.
const KEPT_BYTES: usize = 64 * 1024;
/// Fields of the processor's times in which it does nothing.
const IDLE: [usize; 2] = [3, 4];

async fn measured(state: &AppState, sandbox: &Sandbox) -> Result<Value, Fault> {
    let spec = ExecSpec {
        argv: Some(["sh", "-c", ASK].map(str::to_owned).to_vec()),
        ..ExecSpec::default()
    };
    let printed = asked(state, sandbox, |agent| async move {
        agent.exec_collect(&spec, KEPT_BYTES).await
    })
    .await?;
    let text = String::from_utf8_lossy(&printed.stdout);
    read(&text, Timestamp::now()).ok_or_else(|| Fault::unavailable("the VM did not say what it uses"))
}

fn read(text: &str, now: Timestamp) -> Option<Value> {
    let mut lines = text.lines();
    let cpus: u32 = lines.next()?.trim().parse().ok()?;
    let times = |line: &str| -> Vec<u64> {
        line.split_whitespace()
            .skip(1)
            .filter_map(|time| time.parse().ok())
            .collect()
    };
    let (before, after) = (times(lines.next()?), times(lines.next()?));
    let passed: Vec<u64> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.saturating_sub(*before))
        .collect();
    let all: u64 = passed.iter().sum();
    let idle: u64 = IDLE.iter().filter_map(|at| passed.get(*at)).sum();
    let used = if all == 0 {
        0.0
    } else {
        100.0 * (all - idle) as f64 / all as f64
    };
    let mut memory = |name: &str| -> Option<u64> {
        let line = lines.next()?;
        let (found, kib) = line.split_once(": ")?;
        (found == name)
            .then(|| kib.trim().parse().ok())?
            .map(|kib: u64| kib * 1024)
    };
    let (total, available, cached) = (memory("MemTotal")?, memory("MemAvailable")?, memory("Cached")?);
    let mut disk = lines
        .next()?
        .split_whitespace()
        .map(|number| number.parse::<u64>().ok());
    let (disk_used, disk_total) = (disk.next()??, disk.next()??);
    Some(json!({
        "timestamp": now.to_string(),
        "timestampUnix": now.as_second(),
        "cpuCount": cpus,
        "cpuUsedPct": (used * 100.0).round() / 100.0,
        "memUsed": total.saturating_sub(available),
        "memTotal": total,
        "memCache": cached,
        "diskUsed": disk_used,
        "diskTotal": disk_total,
    }))
}

/// The control plane's list: what is used now is its only entry, where that is within the time asked for; a paused sandbox uses nothing.
pub async fn list(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let seen = managed(&state, &key, &name).await?;
    let now = Timestamp::now().as_second();
    let end = form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes())
        .find(|(field, _)| field == "end")
        .and_then(|(_, end)| end.parse::<i64>().ok());
    if seen.is_paused() || end.is_some_and(|end| end < now - 1) {
        return Ok(Json(json!([])));
    }
    let unknown = |fault: Fault| match fault {
        Fault::NoSandbox(_) => Refusal::no_sandbox(&name),
        other => ApiUnavailable(other).into(),
    };
    let sandbox = Sandbox::running(&state, &name).await.map_err(unknown)?;
    let metric = measured(&state, &sandbox).await.map_err(unknown)?;
    Ok(Json(json!([metric])))
}

/// What cannot be said now.
struct ApiUnavailable(Fault);

impl From<ApiUnavailable> for Refusal {
    fn from(of: ApiUnavailable) -> Self {
        let why = of.0.sentence().to_owned();
        Self::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

/// The same of the sandbox itself.
pub async fn one(State(state): State<AppState>, headers: HeaderMap) -> Result<Json<Value>, Fault> {
    let sandbox = opened(&state, &headers).await?;
    measured(&state, &sandbox).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_is_read() {
        let text = "2\ncpu  100 0 100 700 100 0 0 0\ncpu  150 0 100 750 100 0 0 0\nMemTotal: 1000\nMemAvailable: 600\nCached: 50\n 4096 8192\n";
        let read = read(text, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(read["cpuUsedPct"], json!(50.0));
        assert_eq!((&read["memUsed"], &read["memCache"]), (&json!(409_600), &json!(51_200)));
        assert_eq!((&read["diskUsed"], &read["diskTotal"]), (&json!(4096), &json!(8192)));
        assert!(super::read("", Timestamp::UNIX_EPOCH).is_none());
    }
}
