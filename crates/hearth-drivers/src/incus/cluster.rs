//! The members of a cluster: which of them answer, and which has most room for one more VM. A daemon that is in no cluster is one
//! member without a name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::api::{Api, ApiError, part};
use crate::DriverError;

/// What a daemon that is in no cluster calls its place.
pub(super) const ALONE: &str = "none";
/// How old an answer about members may be: VMs are listed every few seconds.
const FRESH: Duration = Duration::from_secs(2);
/// The same for how large a member is.
const SIZE_FRESH: Duration = Duration::from_secs(30);
/// A storage pool with less than that is full: an image has to be unpacked there.
const LEAST_FREE_BYTES: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// One member.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Member {
    #[serde(rename = "server_name")]
    pub(super) name: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
}

impl Member {
    pub(super) fn is_online(&self) -> bool {
        self.status == "Online"
    }

    /// Whether the cluster has given it up: it has not been heard of for longer than the cluster waits.
    pub(super) fn is_lost(&self) -> bool {
        self.status == "Offline"
    }

    /// Whether something may be placed there without being asked for by name.
    fn takes_more(&self) -> bool {
        self.is_online() && self.config.get("scheduler.instance").is_none_or(|how| how != "manual")
    }
}

#[derive(Debug, Clone, Deserialize)]
struct State {
    sysinfo: SysInfo,
    #[serde(default)]
    storage_pools: BTreeMap<String, PoolState>,
}

#[derive(Debug, Clone, Deserialize)]
struct SysInfo {
    #[serde(default)]
    total_ram: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct PoolState {
    space: Space,
}

#[derive(Debug, Clone, Deserialize)]
struct Space {
    #[serde(default)]
    used: u64,
    #[serde(default)]
    total: u64,
}

/// What a member has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    memory_mib: u64,
    free_bytes: u64,
}

/// What is known of the members.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    members: tokio::sync::Mutex<Option<(Instant, Vec<Member>)>>,
    sizes: Mutex<HashMap<String, (Instant, Size)>>,
    /// What is being made and is in no list yet, MiB.
    begun: Mutex<HashMap<String, u64>>,
}

/// Room that is taken on a member until what takes it is there.
#[derive(Debug)]
pub(super) struct Begun<'a> {
    cluster: &'a Cluster,
    pub(super) member: String,
    memory_mib: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut begun = self.cluster.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mib) = begun.get_mut(&self.member) {
            *mib = mib.saturating_sub(self.memory_mib);
        }
    }
}

impl Begun<'_> {
    /// What has to be added to a path that makes an instance.
    pub(super) fn target(&self) -> String {
        target(&self.member)
    }
}

/// `&target=…`, where there is a choice.
pub(super) fn target(member: &str) -> String {
    if member == ALONE {
        String::new()
    } else {
        format!("&target={}", part(member))
    }
}

impl Cluster {
    /// All members; none for a daemon that is in no cluster.
    pub(super) async fn members(&self, api: &Api) -> Result<Vec<Member>, ApiError> {
        let mut known = self.members.lock().await;
        if let Some((at, members)) = known.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(members.clone());
        }
        let members = match api.get::<Vec<Member>>("/1.0/cluster/members?recursion=1").await {
            Ok(members) => members,
            Err(ApiError::Refused { message, .. })
                if message.contains("not clustered") || message.contains("isn't part of a cluster") =>
            {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        *known = Some((Instant::now(), members.clone()));
        Ok(members)
    }

    /// Chooses where to make a VM of so much memory: of the members that may be used, the one with the most memory that no VM of ours is
    /// promised. `promised` says how much of each is; `prefer` breaks ties.
    pub(super) async fn place(
        &self,
        api: &Api,
        pool: &str,
        memory_mib: u64,
        promised: &HashMap<String, u64>,
        prefer: &[String],
    ) -> Result<Begun<'_>, DriverError> {
        let members = self.members(api).await;
        let members = members.map_err(|error| error.into_driver("the cluster's members are not known"))?;
        if members.is_empty() {
            return Ok(self.begin(ALONE.to_owned(), memory_mib));
        }
        let mut sizes = Vec::new();
        for member in members.iter().filter(|member| member.takes_more()) {
            match self.size(api, &member.name, pool).await {
                Ok(size) => sizes.push((member.name.clone(), size)),
                Err(error) => tracing::debug!(member = member.name, %error, "a member does not say how large it is"),
            }
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let best = best(&sizes, memory_mib, prefer, |member| {
            promised.get(member).copied().unwrap_or_default() + begun.get(member).copied().unwrap_or_default()
        });
        let Some(member) = best else {
            let all: Vec<String> = members
                .iter()
                .map(|member| format!("{} {}", member.name, member.status.to_lowercase()))
                .collect();
            return Err(DriverError::retry(format!(
                "no member of the cluster has {memory_mib} MiB of memory and room in the storage pool {pool} for one more VM ({})",
                all.join(", ")
            )));
        };
        *begun.entry(member.clone()).or_default() += memory_mib;
        Ok(Begun {
            cluster: self,
            member,
            memory_mib,
        })
    }

    fn begin(&self, member: String, memory_mib: u64) -> Begun<'_> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        *begun.entry(member.clone()).or_default() += memory_mib;
        Begun {
            cluster: self,
            member,
            memory_mib,
        }
    }

    async fn size(&self, api: &Api, member: &str, pool: &str) -> Result<Size, ApiError> {
        let known = |sizes: &HashMap<String, (Instant, Size)>| {
            let (at, size) = sizes.get(member)?;
            (at.elapsed() < SIZE_FRESH).then_some(*size)
        };
        if let Some(size) = known(&self.sizes.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(size);
        }
        let state: State = api.get(&format!("/1.0/cluster/members/{}/state", part(member))).await?;
        let space = state.storage_pools.get(pool);
        let size = Size {
            memory_mib: state.sysinfo.total_ram / MIB,
            // A pool that does not say it is not held to be full.
            free_bytes: space.map_or(u64::MAX, |pool| pool.space.total.saturating_sub(pool.space.used)),
        };
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.insert(member.to_owned(), (Instant::now(), size));
        Ok(size)
    }
}

/// The member with the most memory left; `None` when none has enough.
fn best(
    sizes: &[(String, Size)],
    memory_mib: u64,
    prefer: &[String],
    promised: impl Fn(&str) -> u64,
) -> Option<String> {
    let left = |(name, size): &(String, Size)| size.memory_mib.saturating_sub(promised(name));
    sizes
        .iter()
        .filter(|member| member.1.free_bytes >= LEAST_FREE_BYTES && left(member) >= memory_mib)
        .max_by_key(|member| {
            (
                left(member),
                prefer.contains(&member.0),
                // The first by name, so that two servers choose alike.
                std::cmp::Reverse(member.0.clone()),
            )
        })
        .map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(all: [(&str, u64, u64); 3]) -> Vec<(String, Size)> {
        all.map(|(name, memory_mib, free_gib)| {
            let free_bytes = free_gib << 30;
            (name.to_owned(), Size { memory_mib, free_bytes })
        })
        .to_vec()
    }

    #[test]
    fn the_member_with_the_most_memory_left_is_chosen() {
        let all = sizes([("n1", 8000, 50), ("n2", 16000, 50), ("n3", 32000, 0)]);
        let promised = |of: &str| if of == "n2" { 12000 } else { 0 };
        assert_eq!(best(&all, 1000, &[], |_| 0).as_deref(), Some("n2"), "n3 has no disk");
        assert_eq!(best(&all, 1000, &[], promised).as_deref(), Some("n1"));
        assert_eq!(best(&all, 9000, &[], promised), None);
    }

    #[test]
    fn of_equal_members_one_that_has_what_is_needed_is_chosen() {
        let all = sizes([("n1", 8000, 9), ("n2", 8000, 9), ("n3", 8000, 9)]);
        assert_eq!(best(&all, 1000, &["n3".to_owned()], |_| 0).as_deref(), Some("n3"));
        assert_eq!(best(&all, 1000, &[], |_| 0).as_deref(), Some("n1"));
    }
}
