//! Answers what programs in claimed VMs ask: git for the project's credential, ssh for a signature with the project's key. One stream of
//! each claimed VM's agent is kept open for the questions. Each answer reads the rows anew: one that was replaced is given at once, and
//! nobody gets any when the claim has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt as _;
use hearth_api::credential::CredentialKind;
use hearth_api::ids::VmId;
use hearth_core::state::InstanceState;
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::requests::{GuestQuestion, GuestRequest, HostAnswer, HostReply, MAX_SSH_MESSAGE};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connections::{ConnectError, Connections};
use crate::secrets::git_credentials::{self, Place};
use crate::secrets::key_agent::KeyAgent;
use crate::store::{ClaimedVm, Store, StoreError};

/// How often claimed VMs are looked for; a claim says that there is one.
const ROUND: Duration = Duration::from_secs(2);
/// How long an agent may take to connect.
const PATIENCE: Duration = Duration::from_secs(5);
/// A task's first command has the VM to itself for so long: opening one more stream in an emulated guest costs that command 4 ms.
const AFTER_CLAIM: Duration = Duration::from_millis(300);
/// After a lost stream it is opened again so soon …
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// … and at the latest after this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Questions of one VM that are answered at a time.
const AT_ONCE: usize = 4;
/// What an agent that does not know a path answers.
const NOT_FOUND: u16 = 404;

/// Messages of the SSH agent's protocol.
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// An answer: there are no keys.
const NO_IDENTITIES: [u8; 5] = [12, 0, 0, 0, 0];

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestRequests {
    store: Store,
    connections: Connections,
    /// The VMs whose questions are read, or whose agent asks none.
    served: Arc<Mutex<HashMap<VmId, Served>>>,
    /// A VM was claimed.
    claimed: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// A task reads its questions.
    Now,
    /// Its agent is older than questions.
    Never,
}

impl GuestRequests {
    /// Answers nothing until [`GuestRequests::run`].
    #[must_use]
    pub fn new(store: Store, connections: Connections) -> Self {
        Self {
            store,
            connections,
            served: Arc::default(),
            claimed: Arc::default(),
        }
    }

    /// A VM was claimed.
    pub fn run_soon(&self) {
        self.claimed.notify_one();
    }

    /// Until the server stops.
    pub async fn run(&self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        loop {
            match self.store.claimed_vms().await {
                Ok(claimed) => {
                    for vm in self.begin(claimed) {
                        tasks.spawn(self.clone().serve(vm));
                    }
                }
                Err(error) => tracing::warn!(%error, "which VMs are claimed could not be read; it is tried again"),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.claimed.notified() => tokio::time::sleep(AFTER_CLAIM).await,
                Some(_) = tasks.join_next() => {}
                () = tokio::time::sleep(ROUND) => {}
            }
        }
        tasks.shutdown().await;
    }

    /// Those that nobody serves yet.
    fn begin(&self, claimed: Vec<ClaimedVm>) -> Vec<ClaimedVm> {
        let mut served = self.served();
        served.retain(|vm, how| *how == Served::Now || claimed.iter().any(|one| one.vm == *vm));
        let mut new = Vec::new();
        for one in claimed {
            if !served.contains_key(&one.vm) {
                served.insert(one.vm.clone(), Served::Now);
                new.push(one);
            }
        }
        new
    }

    fn served(&self) -> MutexGuard<'_, HashMap<VmId, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the questions of one VM until its claim has ended.
    async fn serve(self, vm: ClaimedVm) {
        let mut pause = FIRST_PAUSE;
        while self.is_claimed(&vm).await.unwrap_or(true) {
            // Nothing in it asks anything.
            if self.connections.current(&vm.vm).is_none() && self.connections.is_paused(&vm.vm).await {
                tokio::time::sleep(ROUND).await;
                continue;
            }
            match self.read(&vm).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(ConnectError::Agent(AgentError::Refused { status: NOT_FOUND, .. })) => {
                    tracing::debug!(instance = %vm.id, "its agent is too old to ask for git credentials");
                    self.served().insert(vm.vm, Served::Never);
                    return;
                }
                Err(error) => {
                    tracing::debug!(instance = %vm.id, %error, "what is asked in a VM cannot be read now");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            tokio::time::sleep(pause).await;
        }
        self.served().remove(&vm.vm);
    }

    /// Answers until the stream ends.
    async fn read(&self, vm: &ClaimedVm) -> Result<(), ConnectError> {
        let agent = self.connections.get(&vm.vm, PATIENCE).await?;
        let requests = agent.guest_requests().await?;
        requests
            .take_while(|request| {
                if let Err(error) = request {
                    tracing::debug!(instance = %vm.id, %error, "no more is asked in a VM");
                }
                futures::future::ready(request.is_ok())
            })
            .for_each_concurrent(AT_ONCE, async |request| {
                if let Ok(request) = request {
                    self.reply(vm, &agent, request).await;
                }
            })
            .await;
        Ok(())
    }

    async fn reply(&self, vm: &ClaimedVm, agent: &AgentClient, request: GuestRequest) {
        let answer = match self.answer(vm, request.question).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(instance = %vm.id, %error, "a program in a VM asked for a credential, which could not be read");
                let message = "Hearth could not read the project's credentials; its log says why".to_owned();
                HostAnswer::Failed { message }
            }
        };
        let id = request.id;
        if let Err(error) = agent.answer_request(&HostReply { id, answer }).await {
            tracing::debug!(instance = %vm.id, %error, "an answer did not reach a VM");
        }
    }

    async fn is_claimed(&self, vm: &ClaimedVm) -> Result<bool, StoreError> {
        let row = self.store.instance(&vm.id).await?;
        let is_it = |row: &crate::store::InstanceRow| {
            row.state == InstanceState::Claimed && row.vm == vm.vm && row.vm_ended.is_none()
        };
        Ok(row.as_ref().is_some_and(is_it))
    }

    async fn answer(&self, vm: &ClaimedVm, question: GuestQuestion) -> Result<HostAnswer, StoreError> {
        if !self.is_claimed(vm).await? {
            let message = "the claim of this VM has ended".to_owned();
            return Ok(HostAnswer::Failed { message });
        }
        match question {
            GuestQuestion::GitCredential {
                protocol,
                host,
                username,
            } => self.credential(vm, &protocol, &host, username).await,
            GuestQuestion::SshAgent { message } => self.ask_keys(vm, &message).await,
            GuestQuestion::Unknown => Ok(HostAnswer::Nothing),
        }
    }

    async fn credential(
        &self,
        vm: &ClaimedVm,
        protocol: &str,
        host: &str,
        asked: Option<String>,
    ) -> Result<HostAnswer, StoreError> {
        let Some(place) = Place::asked(protocol, host) else {
            return Ok(HostAnswer::Nothing);
        };
        let all = self.store.credentials(&vm.project).await?;
        let Some(row) = git_credentials::find(all, &place) else {
            return Ok(HostAnswer::Nothing);
        };
        // An address that names another user than the credential is of is for another credential.
        let asked = asked.filter(|asked| !asked.is_empty());
        if let (Some(asked), Some(own)) = (&asked, &row.username)
            && asked != own
        {
            return Ok(HostAnswer::Nothing);
        }
        tracing::info!(instance = %vm.id, project = %vm.project, host = row.host, "git in a claimed VM got the project's credential");
        Ok(HostAnswer::GitCredential {
            username: asked.unwrap_or_else(|| git_credentials::username(&row).to_owned()),
            password: row.secret,
        })
    }

    /// What an SSH agent with the project's keys says.
    async fn ask_keys(&self, vm: &ClaimedVm, message: &str) -> Result<HostAnswer, StoreError> {
        let message = BASE64.decode(message).unwrap_or_default();
        let signs = message.first() == Some(&SIGN_REQUEST);
        if !(signs || message.first() == Some(&REQUEST_IDENTITIES)) {
            return Ok(HostAnswer::Nothing);
        }
        let all = self.store.credentials(&vm.project).await?;
        let keys: Vec<String> = all
            .into_iter()
            .filter(|row| row.kind == CredentialKind::Key)
            .map(|row| row.secret)
            .collect();
        if keys.is_empty() {
            return Ok(if signs {
                HostAnswer::Nothing
            } else {
                ssh_answer(&NO_IDENTITIES)
            });
        }
        let answer = async {
            let agent = KeyAgent::start(keys.iter().map(String::as_str))
                .await
                .map_err(|error| error.to_string())?;
            agent.ask(&message).await.map_err(|error| error.to_string())
        };
        match answer.await {
            Ok(answer) if answer.len() <= MAX_SSH_MESSAGE => {
                if signs {
                    tracing::info!(instance = %vm.id, project = %vm.project, "ssh in a claimed VM used a key of the project");
                }
                Ok(ssh_answer(&answer))
            }
            Ok(_) => Ok(HostAnswer::Nothing),
            Err(error) => {
                tracing::warn!(instance = %vm.id, error, "a project's SSH key could not be used");
                Ok(HostAnswer::Nothing)
            }
        }
    }
}

fn ssh_answer(message: &[u8]) -> HostAnswer {
    HostAnswer::SshAgent {
        message: BASE64.encode(message),
    }
}
