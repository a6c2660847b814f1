//! What an instance costs, and what its console shows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hearth_api::ids::VmId;
use serde::Deserialize;

use super::Inner;
use super::api::{ApiError, part};
use crate::{DriverError, VmUsage};

/// How old the members' figures may be; Incus keeps them as long.
const FRESH: Duration = Duration::from_secs(8);
/// What is in the page cache: files, which can be read again.
const CACHED: &str = "incus_memory_Cached_bytes{";

#[derive(Debug, Deserialize)]
struct State {
    #[serde(default)]
    memory: Memory,
    #[serde(default)]
    disk: Option<HashMap<String, Disk>>,
}

#[derive(Debug, Default, Deserialize)]
struct Memory {
    #[serde(default)]
    usage: u64,
}

#[derive(Debug, Deserialize)]
struct Disk {
    #[serde(default)]
    usage: u64,
}

impl State {
    fn disk_bytes(&self) -> u64 {
        let disks = self.disk.iter().flat_map(HashMap::values);
        disks.map(|disk| disk.usage).sum()
    }
}

/// Bytes of the page cache by instance, as one member said it.
#[derive(Debug, Default)]
pub(super) struct Cached(Option<(Instant, HashMap<String, u64>)>);

impl Inner {
    async fn state(&self, name: &str) -> Result<State, DriverError> {
        let state = self.api.get(&self.path(name, "/state")).await;
        state.map_err(|error| error.into_driver(format!("{name} could not be measured")))
    }

    /// What an instance's own blocks take; 0 where the storage pool does not count.
    pub(super) async fn disk_bytes(&self, name: &str) -> Result<u64, DriverError> {
        Ok(self.state(name).await?.disk_bytes())
    }

    pub(super) async fn usage(&self, id: &VmId) -> Result<VmUsage, DriverError> {
        let state = self.state(id.as_str()).await?;
        // A member tells these figures of its own instances only: of others all counts as the VM's own, which is never too little.
        let cached = self.cached(id.as_str()).await.min(state.memory.usage);
        Ok(VmUsage {
            private_bytes: (state.memory.usage - cached).max(1),
            shared_bytes: cached,
            disk_bytes: state.disk_bytes(),
            saved_bytes: 0,
        })
    }

    async fn cached(&self, name: &str) -> u64 {
        let mut known = self.cached.lock().await;
        let is_fresh = known
            .0
            .as_ref()
            .is_some_and(|(at, all)| at.elapsed() < FRESH && all.contains_key(name));
        if !is_fresh {
            let path = format!("/1.0/metrics?project={}", part(&self.project));
            match self.api.bytes(&path).await {
                Ok(text) => known.0 = Some((Instant::now(), parse(&String::from_utf8_lossy(&text)))),
                Err(error) => tracing::debug!(%error, "Incus does not say what is in the page cache"),
            }
        }
        let all = known.0.as_ref();
        all.and_then(|(_, all)| all.get(name)).copied().unwrap_or_default()
    }

    pub(super) async fn console(&self, id: &VmId, max_bytes: u64) -> Result<Vec<u8>, DriverError> {
        if self.see(id.as_str()).await?.is_none() {
            return Err(DriverError::permanent(format!("there is no VM {id}")));
        }
        let mut text = match self.api.bytes(&self.path(id.as_str(), "/console")).await {
            Ok(text) => text,
            // One that has just begun, or whose member is away.
            Err(ApiError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error.into_driver(format!("the console of {id} could not be read"))),
        };
        let keep = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(text.len());
        Ok(text.split_off(text.len() - keep))
    }
}

/// The figures in Prometheus' form.
fn parse(text: &str) -> HashMap<String, u64> {
    let mut all = HashMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix(CACHED)) {
        let Some((labels, value)) = line.split_once("} ") else {
            continue;
        };
        let name = labels
            .split(',')
            .find_map(|label| label.strip_prefix("name=\"")?.strip_suffix('"'));
        let value: Option<f64> = value.trim().parse().ok();
        if let (Some(name), Some(value)) = (name, value) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "bytes of one machine's memory, which no member tells below 0"
            )]
            all.insert(name.to_owned(), value as u64);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_cache_is_read_by_instance() {
        let text = "# HELP x\nincus_memory_Cached_bytes{name=\"f1\",project=\"h\",type=\"container\"} 3.2182272e+07\n\
                    incus_memory_RSS_bytes{name=\"f1\",project=\"h\",type=\"container\"} 3.5e+06\n\
                    incus_memory_Cached_bytes{project=\"h\",name=\"f2\"} 16384\n";
        let all = parse(text);
        assert_eq!((all["f1"], all["f2"], all.len()), (32_182_272, 16_384, 2));
    }
}
