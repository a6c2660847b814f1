//! What `hearth doctor` finds of Incus.

use serde::Deserialize;
use serde_json::Value;

use super::Inner;
use super::api::part;
use super::options::IncusKind;
use super::place::Pool;
use crate::DriverError;
use crate::host::Finding;

/// Incus' features of the API that the driver needs besides those of every version 6.
const OLDEST_MAJOR: u32 = 6;
const INCUS: &str = "Incus";

#[derive(Debug, Deserialize)]
struct Space {
    space: Used,
}

#[derive(Debug, Deserialize)]
struct Used {
    #[serde(default)]
    used: u64,
    #[serde(default)]
    total: u64,
}

fn reason(error: &DriverError) -> String {
    error.to_string()
}

impl Inner {
    pub(super) async fn findings(&self) -> Vec<Finding> {
        let server: Value = match self.api.get("/1.0").await {
            Ok(server) => server,
            Err(error) => {
                return vec![Finding::fail(
                    INCUS,
                    error.to_string(),
                    "install it (`apt-get install incus`), let this user reach it (group incus-admin), or say where it is with --incus",
                )];
            }
        };
        let mut findings = vec![version(&server)];
        if server["auth"].as_str() != Some("trusted") {
            findings.push(Finding::fail(
                "Incus' trust",
                "Incus does not know this client's certificate",
                "add it there: `incus config trust add-certificate FILE`",
            ));
            return findings;
        }
        findings.push(self.instances(&server));
        findings.push(self.members().await);
        match self.find_pool().await {
            Ok(pool) => {
                findings.push(copying(&pool));
                findings.push(self.space(&pool).await);
            }
            Err(error) => findings.push(Finding::fail(
                "storage pool",
                reason(&error),
                "make one, like `incus storage create default btrfs`, or name one with --incus-pool",
            )),
        }
        findings.push(self.network().await);
        findings
    }

    /// Whether instances of the kind that is asked for can be made.
    fn instances(&self, server: &Value) -> Finding {
        const NAME: &str = "instances";
        let drivers = server["environment"]["driver"].as_str().unwrap_or_default();
        let has = |driver: &str| drivers.split(" | ").any(|one| one == driver);
        match self.options.settings.kind {
            IncusKind::Container if has("lxc") => Finding::ok(
                NAME,
                "unprivileged containers with nesting: native speed, the host's kernel is shared",
            ),
            IncusKind::VirtualMachine if has("qemu") => Finding::ok(NAME, "virtual machines under KVM"),
            kind => Finding::fail(
                NAME,
                format!("Incus there makes no {}s (it has {drivers})", kind.as_str()),
                "choose the other kind with --incus-type, or see Incus' log for what is missing",
            ),
        }
    }

    async fn members(&self) -> Finding {
        const NAME: &str = "members";
        match self.cluster.members(&self.api).await {
            Ok(members) if members.is_empty() => Finding::ok(NAME, "one daemon that is in no cluster"),
            Ok(members) => {
                let away: Vec<String> = members
                    .iter()
                    .filter(|member| !member.is_online())
                    .map(|member| format!("{} ({}: {})", member.name, member.status.to_lowercase(), member.message))
                    .collect();
                let summary = format!("a cluster of {} members", members.len());
                if away.is_empty() {
                    Finding::ok(NAME, summary)
                } else {
                    Finding::warn(
                        NAME,
                        format!("{summary}; not in use: {}", away.join(", ")),
                        "see `incus cluster list`",
                    )
                }
            }
            Err(error) => Finding::fail(NAME, error.to_string(), "see `incus cluster list`"),
        }
    }

    async fn space(&self, pool: &Pool) -> Finding {
        const NAME: &str = "pool's space";
        const GIB: u64 = 1 << 30;
        let path = format!("/1.0/storage-pools/{}/resources", part(&pool.name));
        let asked: Result<Space, _> = self.api.get(&path).await;
        let fix = "make it larger (`incus storage set POOL size=…`), or name another one with --incus-pool";
        match asked {
            Ok(Space { space }) => {
                let free = space.total.saturating_sub(space.used) / GIB;
                let summary = format!("{free} GiB free in the storage pool {}", pool.name);
                match free {
                    0..3 => Finding::fail(NAME, summary, fix),
                    3..20 => Finding::warn(NAME, summary, fix),
                    _ => Finding::ok(NAME, summary),
                }
            }
            Err(error) => Finding::warn(NAME, format!("the storage pool does not say it: {error}"), fix),
        }
    }

    async fn network(&self) -> Finding {
        const NAME: &str = "network";
        let Some(network) = &self.options.settings.network else {
            return Finding::warn(
                NAME,
                "VMs have no network: they reach nothing but Hearth",
                "name one of `incus network list` with --incus-network",
            );
        };
        match self.api.get::<Value>(&format!("/1.0/networks/{}", part(network))).await {
            Ok(found) => Finding::ok(
                NAME,
                format!(
                    "VMs are on {network} ({}), whose rules say what they reach",
                    found["type"].as_str().unwrap_or("network")
                ),
            ),
            Err(error) => Finding::fail(
                NAME,
                error.to_string(),
                "name one of `incus network list` with --incus-network",
            ),
        }
    }
}

fn version(server: &Value) -> Finding {
    let environment = &server["environment"];
    let version = environment["server_version"]
        .as_str()
        .unwrap_or("of an unknown version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let summary = format!("Incus {version}");
    if major.is_some_and(|major| major < OLDEST_MAJOR) {
        return Finding::warn(
            INCUS,
            format!("{summary} is older than {OLDEST_MAJOR}.0 and was never tried"),
            "install a newer one",
        );
    }
    Finding::ok(INCUS, summary)
}

/// What the pool does best.
fn copying(pool: &Pool) -> Finding {
    const NAME: &str = "storage pool";
    let summary = format!("{} ({}); forks are {}", pool.name, pool.driver, pool.copies.how);
    if pool.copies.cheap {
        return Finding::ok(NAME, summary);
    }
    Finding::warn(
        NAME,
        summary,
        "a pool of btrfs, zfs, lvm with a thin pool, or ceph copies a VM in no time",
    )
}
