//! Making a fork somebody of its own, and its clock right. The guest does the work; this end brings what only the host has:
//! time and randomness.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::time::Instant;

use super::{AgentClient, AgentError, json, unix_nanos};
use crate::{Activate, Activated, ENTROPY_BYTES, HandOver, HostKey, SHORT_FILES, ShortFile, paths};

/// The guest's clock may differ by this much from the host's after it was set.
pub const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);
/// After half of the patience this will do: a host whose processors are overloaded answers no sooner, and nothing in a VM minds.
const CLOCK_LATE: Duration = Duration::from_millis(250);
/// When the patience is over this will do: the clock is set again when the VM is claimed.
const CLOCK_LATEST: Duration = Duration::from_secs(2);
/// How long the clock of a VM that was just forked is set anew until one round trip was quick enough. Only a host that is busy over
/// and over needs more than one try.
const CLOCK_PATIENCE: Duration = Duration::from_secs(6);
/// After so many times the patience it is given up: the VM takes seconds to answer at all.
const CLOCK_GIVEN_UP: u32 = 10;
/// The same of a VM that a task takes: the task waits.
const CLOCK_AT_HAND_OVER: Duration = Duration::from_secs(1);
/// As often it is tried at once; then after a pause, so that a busy host is not made busier.
const CLOCK_AT_ONCE: u32 = 12;
/// Between two tries then.
const CLOCK_PAUSE: Duration = Duration::from_millis(200);
/// What an agent that does not know a path answers.
const NOT_FOUND: u16 = 404;

/// Who a VM is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIdentity {
    /// A DNS label.
    pub hostname: String,
    /// 32 small hexadecimal digits; a random one when absent.
    pub machine_id: Option<String>,
    /// A key for the VM's SSH server, where it has one of this kind.
    pub rsa_host_key: Option<HostKey>,
}

impl AgentClient {
    /// Gives a fork an identity, fresh randomness and the time, and closes what was open to the outside before the freeze.
    /// After an error the VM must not be used: it may still be somebody else in part.
    pub async fn activate(&self, identity: &NewIdentity) -> Result<Activated, AgentError> {
        let mut entropy = [0; ENTROPY_BYTES];
        getrandom::fill(&mut entropy)
            .map_err(|error| AgentError::Protocol(format!("the host has no random bytes to give: {error}")))?;
        let wanted = Activate {
            unix_nanos: unix_nanos(SystemTime::now())?,
            entropy: BASE64.encode(entropy),
            hostname: identity.hostname.clone(),
            machine_id: identity.machine_id.clone(),
            rsa_host_key: identity.rsa_host_key.clone(),
        };
        let reply = self.post(paths::ACTIVATE, &wanted).await;
        let reply = reply.map_err(|error| match error {
            AgentError::Refused { status: NOT_FOUND, .. } => AgentError::Refused {
                code: None,
                status: NOT_FOUND,
                message: "it is too old to give a forked VM an identity of its own: build the image again".into(),
            },
            other => other,
        })?;
        let activated = json(reply).await?;
        self.sync_clock(CLOCK_PATIENCE).await?;
        Ok(activated)
    }

    /// Gives the VM's SSH server an RSA key, which it reads at once.
    pub async fn set_rsa_host_key(&self, key: &HostKey) -> Result<(), AgentError> {
        self.post(paths::RSA_HOST_KEY, key).await.map(drop)
    }

    /// Gives a VM that a task takes the time (as [`AgentClient::sync_clock`] does) and the files. One request, because in a VM that
    /// has just been resumed each costs milliseconds.
    pub async fn hand_over(&self, files: Vec<ShortFile>) -> Result<(), AgentError> {
        if files.is_empty() {
            return self.sync_clock(CLOCK_AT_HAND_OVER).await.map(drop);
        }
        if files.iter().map(|file| file.text.len()).sum::<usize>() > SHORT_FILES {
            return self.write_all(files).await;
        }
        let begin = Instant::now();
        let unix_nanos = unix_nanos(SystemTime::now())?;
        let order = HandOver { unix_nanos, files };
        match self.post(paths::HAND_OVER, &order).await {
            Ok(_) if begin.elapsed() <= CLOCK_TOLERANCE => Ok(()),
            Ok(_) => self.sync_clock(CLOCK_AT_HAND_OVER).await.map(drop),
            // Older than protocol 8.
            Err(AgentError::Refused { status: NOT_FOUND, .. }) => self.write_all(order.files).await,
            Err(error) => Err(error),
        }
    }

    async fn write_all(&self, files: Vec<ShortFile>) -> Result<(), AgentError> {
        self.sync_clock(CLOCK_AT_HAND_OVER).await?;
        for ShortFile { path, mode, text } in files {
            self.write_file(&path, mode, text).await?;
        }
        Ok(())
    }

    /// Sets the guest's clock to the host's, as near as [`CLOCK_TOLERANCE`], and gives the largest possible difference. Where that
    /// does not come about for lack of processor time it is tried for so long, and the longer it takes the less exact it need be: an
    /// overloaded host is no reason to give a VM up.
    /// What the request takes on its way is allowed for by the half of what the one before took, there and back.
    pub async fn sync_clock(&self, patience: Duration) -> Result<Duration, AgentError> {
        let started = Instant::now();
        let mut on_the_way = Duration::ZERO;
        for attempt in 1.. {
            let begin = Instant::now();
            self.set_clock(SystemTime::now() + on_the_way).await?;
            let took = begin.elapsed();
            // It was set at some moment in between.
            let last = on_the_way.max(took.saturating_sub(on_the_way));
            let tried = started.elapsed();
            if last <= will_do(tried, patience) {
                return Ok(last);
            }
            if attempt >= CLOCK_AT_ONCE && tried >= patience * CLOCK_GIVEN_UP {
                return Err(AgentError::Protocol(format!(
                    "its clock cannot be set better than to {} ms, tried for {} s: the host or the VM is too busy",
                    last.as_millis(),
                    tried.as_secs()
                )));
            }
            if attempt >= CLOCK_AT_ONCE {
                tokio::time::sleep(CLOCK_PAUSE).await;
            }
            on_the_way = (took / 2).min(CLOCK_TOLERANCE);
        }
        Err(AgentError::NoAnswer)
    }
}

/// How far the clock may be off when it was tried for so long.
fn will_do(tried: Duration, patience: Duration) -> Duration {
    if tried >= patience {
        CLOCK_LATEST
    } else if tried >= patience / 2 {
        CLOCK_LATE
    } else {
        CLOCK_TOLERANCE
    }
}
