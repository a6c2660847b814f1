//! Instances: made, looked at, paused, ended. Each verb is idempotent and leaves nothing half done that the next one would not find.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hearth_api::ids::VmId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{ApiError, part};
use super::cluster::Member;
use super::images::{self, Found};
use super::model::{self, Instance, VmRecord};
use super::options::IncusKind;
use super::{Inner, NETWORK_DEVICE};
use crate::{Created, DriverError, VmShape, VmSpec, VmState};

/// How long Incus may be busy with an instance (another server's call, one that was broken off) before that is an error.
const BUSY: Duration = Duration::from_secs(20);
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How long an instance may take to end when it is forced to, seconds.
const STOP_SECONDS: u32 = 30;
/// How long the system of a VM may take until files can be put into it.
const VM_BOOT: Duration = Duration::from_secs(300);
const VM_PAUSE: Duration = Duration::from_secs(1);

/// An instance, and what it does as far as that is known.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) instance: Instance,
    pub(super) state: Known,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It was asked.
    Is(VmState),
    /// Its member does not answer at the moment.
    Unanswered,
    /// Its member does not answer, and the cluster has given it up.
    Lost,
}

impl Known {
    /// What can be said in a list: a VM is called ended only when the cluster has given its member up.
    pub(super) fn listed(self) -> VmState {
        match self {
            Self::Is(state) => state,
            Self::Unanswered => VmState::Running,
            Self::Lost => VmState::Stopped,
        }
    }
}

/// Checks a size before anything is made of it.
pub(super) fn check_shape(shape: VmShape) -> Result<(), DriverError> {
    if shape.vcpus == 0 || shape.memory_mib == 0 || shape.disk_gib == 0 {
        return Err(DriverError::permanent(
            "a VM needs at least one processor, some memory and some disk",
        ));
    }
    Ok(())
}

impl Inner {
    /// The path of an instance, with what comes after its name.
    pub(super) fn path(&self, name: &str, rest: &str) -> String {
        format!("/1.0/instances/{}{rest}?project={}", part(name), part(&self.project))
    }

    /// Every instance of the project that is ours.
    pub(super) async fn all(&self) -> Result<Vec<Instance>, DriverError> {
        let path = format!("/1.0/instances?recursion=1&project={}", part(&self.project));
        let all: Result<Vec<Instance>, ApiError> = self.api.get(&path).await;
        let mut all = match all {
            Ok(all) => all,
            // The project is made with the first VM.
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error.into_driver("the instances of Incus could not be listed")),
        };
        all.retain(|instance| instance.is_of(&self.options.installation));
        Ok(all)
    }

    /// Members that the cluster has given up.
    pub(super) async fn lost_members(&self) -> Vec<String> {
        match self.cluster.members(&self.api).await {
            Ok(members) => members
                .into_iter()
                .filter(Member::is_lost)
                .map(|member| member.name)
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the cluster's members are not known");
                Vec::new()
            }
        }
    }

    /// What all of these do.
    pub(super) async fn see_all(&self, all: Vec<Instance>) -> Vec<Seen> {
        let all_answer = all.iter().all(|instance| instance.state().is_some());
        let lost = if all_answer {
            Vec::new()
        } else {
            self.lost_members().await
        };
        let see = |instance: Instance| {
            let state = match instance.state() {
                Some(state) => Known::Is(state),
                None if lost.contains(&instance.location) => Known::Lost,
                None => Known::Unanswered,
            };
            Seen { instance, state }
        };
        all.into_iter().map(see).collect()
    }

    /// An instance by its name.
    pub(super) async fn see(&self, name: &str) -> Result<Option<Seen>, DriverError> {
        let got: Result<Instance, ApiError> = self.api.get(&self.path(name, "")).await;
        let instance = match got {
            Ok(instance) => instance,
            Err(error) if error.is_not_found() => return Ok(None),
            // Its member does not answer; the list, which the others have, says where it is.
            Err(ApiError::Refused { .. } | ApiError::Silent(_)) => {
                match self.all().await?.into_iter().find(|instance| instance.name == name) {
                    Some(instance) => instance,
                    None => return Ok(None),
                }
            }
            Err(error) => return Err(error.into_driver(format!("{name} could not be looked at"))),
        };
        if !instance.is_of(&self.options.installation) {
            return Ok(None);
        }
        Ok(self.see_all(vec![instance]).await.pop())
    }

    /// A VM that runs or is paused.
    pub(super) async fn need_alive(&self, id: &VmId) -> Result<Seen, DriverError> {
        let Some(seen) = self.see(id.as_str()).await? else {
            return Err(DriverError::permanent(format!("there is no VM {id}")));
        };
        match seen.state {
            Known::Is(VmState::Stopped) => Err(DriverError::permanent(format!("{id} does not run any more"))),
            Known::Is(_) => Ok(seen),
            Known::Unanswered => Err(unanswered(id, &seen.instance)),
            Known::Lost => Err(DriverError::permanent(format!(
                "{id} is lost: the member {} of the cluster, which runs it, does not answer any more",
                seen.instance.location
            ))),
        }
    }

    /// The record of a VM.
    pub(super) fn record_of(&self, seen: &Seen) -> Result<VmRecord, DriverError> {
        seen.instance.vm_record().ok_or_else(|| {
            DriverError::permanent(format!(
                "the labels of {} in Incus cannot be read: somebody changed them; destroy it",
                seen.instance.name
            ))
        })
    }

    /// A VM of that id that is there already; what is left of one that has ended is removed. The caller holds its gate.
    pub(super) async fn is_there(&self, id: &VmId) -> Result<Option<Created>, DriverError> {
        let Some(seen) = self.see(id.as_str()).await? else {
            return Ok(None);
        };
        match seen.state {
            Known::Is(VmState::Stopped) | Known::Lost => {
                self.remove(id.as_str()).await?;
                Ok(None)
            }
            Known::Is(_) => {
                let image = self.record_of(&seen)?.image;
                Ok(Some(Created { image }))
            }
            Known::Unanswered => Err(unanswered(id, &seen.instance)),
        }
    }

    /// How much memory of each member is promised.
    pub(super) fn promised(all: &[Instance]) -> HashMap<String, u64> {
        let mut promised = HashMap::new();
        for instance in all {
            if let Some(record) = instance.vm_record().filter(|_| instance.vm().is_some()) {
                *promised.entry(instance.location.clone()).or_default() += u64::from(record.shape.memory_mib);
            }
        }
        promised
    }

    /// What every instance of a size is made with.
    pub(super) fn settings(&self, kind: IncusKind, shape: VmShape, labels: BTreeMap<String, String>) -> Value {
        let mut config = labels;
        let mut set = |key: &str, value: &str| drop(config.insert(key.to_owned(), value.to_owned()));
        set("limits.cpu", &shape.vcpus.to_string());
        set("limits.memory", &format!("{}MiB", shape.memory_mib));
        // Labels are nobody's business in the guest.
        set("security.guestapi", "false");
        if kind == IncusKind::Container {
            // Docker and its like work inside; the container stays unprivileged.
            set("security.nesting", "true");
        }
        json!(config)
    }

    pub(super) fn devices(&self, pool: &str, shape: VmShape, is_on_network: bool) -> Value {
        let mut devices = json!({
            "root": { "type": "disk", "path": "/", "pool": pool, "size": format!("{}GiB", shape.disk_gib) },
        });
        if let Some(network) = self.options.settings.network.as_ref().filter(|_| is_on_network) {
            devices[NETWORK_DEVICE] = network_device(network);
        }
        devices
    }

    /// Makes a VM of an image and starts it. The caller holds its gate.
    pub(super) async fn create(&self, spec: &VmSpec) -> Result<Created, DriverError> {
        if let Some(there) = self.is_there(&spec.id).await? {
            return Ok(there);
        }
        check_shape(spec.shape)?;
        let found = self.find_image(spec.image.as_deref()).await?;
        let pool = self.pool().await?;
        let fingerprint = self.fingerprint(&found).await?;
        let all = self.all().await?;
        let memory_mib = u64::from(spec.shape.memory_mib);
        let room = self
            .cluster
            .place(&self.api, &pool.name, memory_mib, &Self::promised(&all), &[])
            .await?;
        let record = VmRecord {
            image: found.digest.clone(),
            agent_version: found.agent_version.clone(),
            shape: spec.shape,
            checkpointable: spec.checkpointable,
            parent: None,
        };
        let labels = model::vm_labels(&self.options.installation, &spec.id, &record);
        let has_agent = matches!(found.from, images::Origin::Ours(_));
        let body = json!({
            "name": spec.id,
            "type": found.kind.as_str(),
            "start": has_agent,
            "profiles": [],
            "source": { "type": "image", "fingerprint": fingerprint },
            "config": self.settings(found.kind, spec.shape, labels),
            "devices": self.devices(&pool.name, spec.shape, true),
        });
        let path = format!("/1.0/instances?project={}{}", part(&self.project), room.target());
        let making = async {
            let made = self.api.run(Method::POST, &path, Some(&body)).await;
            made.map_err(|error| self.not_made(&spec.id, error))?;
            if !has_agent {
                self.start_with_agent(&spec.id, &found).await?;
            }
            Ok(Created {
                image: found.digest.clone(),
            })
        };
        self.or_remove(spec.id.as_str(), making).await
    }

    /// Why an instance was not made. What a size or an image cannot be is said before; a validation of Incus' comes as a failure.
    pub(super) fn not_made(&self, id: &VmId, error: ApiError) -> DriverError {
        const FINAL: [&str; 4] = [
            "Unknown configuration key",
            "Invalid value",
            "is not supported",
            "Invalid config",
        ];
        let what = format!("{id} could not be made");
        match &error {
            ApiError::Failed(message) if FINAL.iter().any(|word| message.contains(word)) => {
                DriverError::permanent(format!("{what}: {error}")).caused_by(error)
            }
            _ => error.into_driver(what),
        }
    }

    /// A container gets the agent before it starts, a VM after: only its own system can write to its disk.
    async fn start_with_agent(&self, id: &VmId, found: &Found) -> Result<(), DriverError> {
        if found.kind == IncusKind::Container {
            self.put_agent(id.as_str()).await?;
            return self.set_state(id.as_str(), "start").await;
        }
        self.set_state(id.as_str(), "start").await?;
        let deadline = Instant::now() + VM_BOOT;
        while let Err(error) = self.put_agent(id.as_str()).await {
            if Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(VM_PAUSE).await;
        }
        let body = json!({
            "command": ["systemctl", "--no-block", "start", "hearth-agent"],
            "wait-for-websocket": false,
            "interactive": false,
        });
        // A unit that is new is found without a reload.
        let started = self
            .api
            .run(Method::POST, &self.path(id.as_str(), "/exec"), Some(&body))
            .await;
        started
            .map(drop)
            .map_err(|error| error.into_driver(format!("the agent in {id} could not be started")))
    }

    /// Waits for what makes an instance; what a failure has left of it is removed.
    pub(super) async fn or_remove<T>(
        &self,
        name: &str,
        making: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let made = making.await;
        if made.is_err()
            && let Err(left) = self.remove(name).await
        {
            tracing::warn!(instance = name, error = %left, "parts of an instance that was not made are left");
        }
        made
    }

    /// Starts, stops, freezes or unfreezes.
    pub(super) async fn set_state(&self, name: &str, action: &str) -> Result<(), DriverError> {
        let body = json!({ "action": action, "force": action == "stop", "timeout": STOP_SECONDS });
        let done = self.while_busy(Method::PUT, &self.path(name, "/state"), &body).await;
        done.map_err(|error| error.into_driver(format!("{name}: {action} failed")))
    }

    /// Pauses or resumes. The caller holds the VM's gate.
    pub(super) async fn set_paused(&self, id: &VmId, wanted: bool) -> Result<(), DriverError> {
        let is_paused = self.need_alive(id).await?.state == Known::Is(VmState::Paused);
        match (is_paused, wanted) {
            (false, true) => self.set_state(id.as_str(), "freeze").await,
            (true, false) => self.set_state(id.as_str(), "unfreeze").await,
            _ => Ok(()),
        }
    }

    /// Ends and removes an instance, whatever it does; success when there is none.
    pub(super) async fn remove(&self, name: &str) -> Result<(), DriverError> {
        let deadline = Instant::now() + BUSY;
        loop {
            let Some(seen) = self.see(name).await? else {
                return Ok(());
            };
            match seen.state {
                Known::Is(VmState::Stopped) => {}
                Known::Is(_) => match self.set_state(name, "stop").await {
                    Ok(()) => {}
                    // It has ended by itself meanwhile, or the next look says why not.
                    Err(error) if Instant::now() < deadline => {
                        tracing::debug!(instance = name, %error, "an instance is stopped again");
                        tokio::time::sleep(BUSY_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                Known::Unanswered | Known::Lost => {
                    return Err(DriverError::retry(format!(
                        "{name} is on the member {} of the cluster, which does not answer: it is removed when that is back",
                        seen.instance.location
                    )));
                }
            }
            match self.api.run(Method::DELETE, &self.path(name, ""), None).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if Instant::now() < deadline && is_busy(&error) => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(ApiError::Forgotten) if Instant::now() < deadline => {}
                Err(error) => {
                    let advice = if error.message().contains("subvolume") {
                        " (a daemon was killed while it made it: remove the empty folder of that name below `containers/` in the storage pool)"
                    } else {
                        ""
                    };
                    return Err(error.into_driver(format!("{name} could not be removed{advice}")));
                }
            }
        }
    }

    /// A change, again while Incus is busy with the instance.
    pub(super) async fn while_busy(&self, method: Method, path: &str, body: &Value) -> Result<(), ApiError> {
        let deadline = Instant::now() + BUSY;
        loop {
            match self.api.run(method.clone(), path, Some(body)).await {
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                done => return done.map(drop),
            }
        }
    }

    /// Changes labels.
    pub(super) async fn label(&self, name: &str, change: &Value) -> Result<(), DriverError> {
        let done = self.while_busy(Method::PATCH, &self.path(name, ""), change).await;
        done.map_err(|error| error.into_driver(format!("the labels of {name} could not be changed")))
    }
}

/// A connection to a network of Incus'.
pub(super) fn network_device(network: &str) -> Value {
    json!({ "type": "nic", "network": network, "name": NETWORK_DEVICE })
}

fn is_busy(error: &ApiError) -> bool {
    let text = error.message();
    ["busy", "in progress", "Instance is running", "already running"]
        .iter()
        .any(|word| text.contains(word))
}

fn unanswered(id: &VmId, instance: &Instance) -> DriverError {
    DriverError::unknown(format!(
        "the member {} of the cluster, which runs {id}, does not answer at the moment",
        instance.location
    ))
}
