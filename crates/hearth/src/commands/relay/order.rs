//! One order of a vendor: the project is found by the repository, a VM claimed with the order's id as key, and the vendor's worker started in it as
//! a session whose end releases the VM. The worker's secret is in this program's memory, in the request, and in the worker's environment; nowhere
//! else.

use std::collections::BTreeMap;

use hearth_api::claim::{ClaimReply, ClaimRequest, ClaimedRepo};
use hearth_api::client::{Client, ClientError};
use hearth_api::exec::ExecRequest;
use hearth_api::find::ProjectFound;
use hearth_api::ids::InstanceId;
use hearth_api::session::StartSession;
use hearth_api::values::{Branch, GuestPath, Name, SessionTag, TaskId, VariableName, VariableValue, Word};
use jiff::Timestamp;

use super::RelayOptions;
use super::outcome::Outcome;

/// The worker's session in its VM.
const TAG: &str = "worker";
/// Where a VM has a commit or a tag checked out that the claim does not name, and then becomes the worker.
const BECOME_WORKER: &str = r#"if [ -n "$HEARTH_REVISION" ]; then
    git checkout --quiet --detach "$HEARTH_REVISION" 2>/dev/null ||
        { git fetch --quiet origin "$HEARTH_REVISION" && git checkout --quiet --detach FETCH_HEAD; } ||
        { echo "the revision $HEARTH_REVISION cannot be checked out" >&2; exit 1; }
fi
exec "$@""#;
/// So often an order that may have another VM gets one after the VM before has ended.
const MOST_VMS: u32 = 100;
/// So often a worker is started in one VM: the one of a delivery before may end in between.
const MOST_STARTS: u32 = 3;
/// Lease of a VM whose worker does not run yet, minutes: a hook that is killed in between leaves it no longer than that.
const UNSTARTED_MINUTES: u64 = 10;
/// Fewest digits of a commit.
const SHORTEST_COMMIT: usize = 7;
/// All of them, as SHA-256.
const LONGEST_COMMIT: usize = 64;

/// What a vendor wants.
pub(super) struct Order {
    /// Names it: the same again is the same order.
    pub(super) key: String,
    /// It has one VM at most, however often it is delivered; else it gets another one when the one before has ended.
    pub(super) once: bool,
    /// URL of the repository that is worked on.
    pub(super) repository: Option<String>,
    /// Branch, commit, tag or full name of one.
    pub(super) revision: Option<String>,
    /// The worker's environment, secrets included.
    pub(super) env: Vec<(&'static str, String)>,
    /// The worker.
    pub(super) worker: Vec<String>,
}

/// What a revision is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Revision {
    /// What may be a branch, and else is a tag.
    Branch(String),
    /// A commit or a tag.
    Other(String),
}

impl Revision {
    fn of(text: &str) -> Self {
        let text = text.trim();
        if let Some(branch) = text.strip_prefix("refs/heads/") {
            return Self::Branch(branch.to_owned());
        }
        let is_commit = (SHORTEST_COMMIT..=LONGEST_COMMIT).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match is_commit || text.starts_with("refs/") {
            true => Self::Other(text.to_owned()),
            false => Self::Branch(text.to_owned()),
        }
    }
}

/// A value of the API, or what is wrong with it.
fn value<T>(what: &str, text: &str) -> Result<T, Outcome>
where
    T: for<'a> TryFrom<&'a str>,
    for<'a> <T as TryFrom<&'a str>>::Error: std::fmt::Display,
{
    T::try_from(text).map_err(|fault| Outcome::Blocked(format!("{what} cannot be used: it {fault}")))
}

impl Order {
    /// Has it carried out, once.
    pub(super) async fn submit(self, client: &Client, options: &RelayOptions) -> Outcome {
        match self.place(client, options).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn place(self, client: &Client, options: &RelayOptions) -> Result<Outcome, Outcome> {
        let project = self.project(client, options).await?;
        let (claim, revision) = match self.claim(client, &project, options).await? {
            Some(claimed) => claimed,
            None => {
                return Ok(Outcome::Done(format!(
                    "the order {} had its VM, which has ended; it gets no second one",
                    self.key
                )));
            }
        };
        let (id, key) = (claim.id.clone(), self.key.clone());
        let request = self.worker(&claim, revision, options)?;
        for _ in 0..MOST_STARTS {
            match client.start_session(&id, &request).await {
                Ok(_) => {
                    keep(client, &claim, options).await?;
                    return Ok(Outcome::Done(format!("the worker of the order {key} runs in {id}")));
                }
                // A delivery before this one was faster, or the VM is not the order's any more.
                Err(ClientError::Api { status: 409 | 410, .. }) => {
                    if has_worker(client, &id, &key).await? {
                        keep(client, &claim, options).await?;
                        return Ok(Outcome::Done(format!(
                            "the worker of the order {key} runs in {id} already"
                        )));
                    }
                }
                Err(error) if error.is_not_found() => return Err(just_ended(&key)),
                Err(error) => {
                    let outcome = Outcome::from(error);
                    // A worker that cannot be started has no use for the VM; where it is not known, the server watches.
                    if matches!(outcome, Outcome::Blocked(_)) {
                        let _ = client.release(&id).await;
                    }
                    return Err(outcome);
                }
            }
        }
        Err(just_ended(&key))
    }

    /// The project whose VMs hold the repository.
    async fn project(&self, client: &Client, options: &RelayOptions) -> Result<ProjectFound, Outcome> {
        let mut found = match &self.repository {
            Some(url) => client.find_projects(url).await?.items,
            None => Vec::new(),
        };
        // One that is named decides between several, and serves where there is none.
        if let (true, Some(named)) = (found.len() != 1, &options.project) {
            let named = client.find_projects(named).await?.items;
            match (named.as_slice(), found.as_slice()) {
                ([one], several) if several.is_empty() || several.contains(one) => return Ok(one.clone()),
                ([_], _) => {}
                _ => {
                    return Err(Outcome::Blocked(format!(
                        "there is no one project `{}`: see --project",
                        options.project.as_deref().unwrap_or_default()
                    )));
                }
            }
        }
        match (found.len(), found.pop(), &self.repository) {
            (1, Some(one), _) => Ok(one),
            (0, _, Some(url)) => Err(Outcome::Blocked(format!(
                "no project has the repository {url}: make one with `hearth project create NAME --repo URL`, or name one with --project"
            ))),
            (_, _, Some(url)) => Err(Outcome::Blocked(format!(
                "several projects have the repository {url}: name one of them with --project"
            ))),
            (_, _, None) => Err(Outcome::Blocked(
                "the order names no repository: name the project for such orders with --project".to_owned(),
            )),
        }
    }

    /// The VM, and what is still to be checked out in it. `None`: it had one, and gets no other.
    async fn claim(
        &self,
        client: &Client,
        project: &ProjectFound,
        options: &RelayOptions,
    ) -> Result<Option<(ClaimReply, Option<String>)>, Outcome> {
        let revision = self.revision.as_deref().map(Revision::of);
        for number in 1..=MOST_VMS {
            let key = match number {
                1 => self.key.clone(),
                number => format!("{}~{number}", self.key),
            };
            let task_id = Some(value::<TaskId>("the order's id", &key)?);
            let body = ClaimRequest {
                task_id,
                wait_ms: Some(options.wait.saturating_mul(1000)),
                ttl_minutes: Some(options.ttl.min(UNSTARTED_MINUTES)),
                ..ClaimRequest::default()
            };
            let claimed = match &revision {
                Some(Revision::Branch(name)) => {
                    let named = ClaimRequest {
                        branch: Branch::try_from(name.as_str()).ok(),
                        ..body.clone()
                    };
                    match client.claim(&project.id, &named).await {
                        // There is no such branch, so it may be a tag; or a delivery before this one found that.
                        Err(ClientError::Api { status: 409, .. }) => client
                            .claim(&project.id, &body)
                            .await
                            .map(|reply| (reply, Some(name.clone()))),
                        other => other.map(|reply| (reply, None)),
                    }
                }
                Some(Revision::Other(name)) => client
                    .claim(&project.id, &body)
                    .await
                    .map(|reply| (reply, Some(name.clone()))),
                None => client.claim(&project.id, &body).await.map(|reply| (reply, None)),
            };
            match claimed {
                Ok(claimed) => return Ok(Some(claimed)),
                Err(ClientError::Api { status: 410, .. }) if self.once => return Ok(None),
                Err(ClientError::Api { status: 410, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Outcome::Blocked(format!(
            "the order {} had {MOST_VMS} VMs, and each has ended: see why its worker ends",
            self.key
        )))
    }

    /// The session that becomes the worker.
    fn worker(
        self,
        claim: &ClaimReply,
        revision: Option<String>,
        options: &RelayOptions,
    ) -> Result<StartSession, Outcome> {
        let checkout = self.checkout(&claim.repos);
        let mut env: BTreeMap<VariableName, VariableValue> = BTreeMap::new();
        let mut set = |name: &str, text: String| {
            let fits = VariableName::try_from(name)
                .ok()
                .zip(VariableValue::try_from(text).ok());
            // No text of the value: it may be a secret.
            let (name, value) =
                fits.ok_or_else(|| Outcome::Blocked(format!("the variable {name} cannot be given to the worker")))?;
            env.insert(name, value);
            Ok::<(), Outcome>(())
        };
        for name in &options.pass {
            match super::given(name) {
                Some(text) => set(name, text)?,
                None => crate::output::note(&format!("note: {name} is not set here, so the worker does not get it")),
            }
        }
        set("HEARTH_ORDER", self.key.clone())?;
        set(
            "HEARTH_REVISION",
            revision.filter(|_| checkout.is_some()).unwrap_or_default(),
        )?;
        if let Some(checkout) = checkout {
            set("HEARTH_CHECKOUT", checkout.path.clone())?;
        }
        for (name, text) in self.env {
            set(name, text)?;
        }
        let mut argv = Vec::new();
        for word in ["bash", "-c", BECOME_WORKER, "worker"] {
            argv.push(value::<Word>("the worker's command", word)?);
        }
        for word in &self.worker {
            argv.push(value::<Word>("the worker's command", word)?);
        }
        let cwd = match checkout {
            Some(checkout) => Some(value::<GuestPath>("the checkout's path", &checkout.path)?),
            None => None,
        };
        let user = match &options.user {
            Some(user) => Some(value::<Name>("--user", user)?),
            None => None,
        };
        Ok(StartSession {
            request: ExecRequest {
                argv: Some(argv),
                cwd,
                env: Some(env),
                user,
                ..ExecRequest::default()
            },
            tag: Some(value::<SessionTag>("the worker's tag", TAG)?),
            release_when_ended: true,
            ..StartSession::default()
        })
    }

    /// The checkout of the order's repository; the only one, where it names none.
    fn checkout<'a>(&self, repos: &'a [ClaimedRepo]) -> Option<&'a ClaimedRepo> {
        let bare = self
            .repository
            .as_deref()
            .map(|url| url.trim_end_matches('/').trim_end_matches(".git"));
        let named = bare.and_then(|url| repos.iter().find(|repo| url.ends_with(repo.repo_full_name.as_str())));
        named.or(match repos {
            [only] => Some(only),
            _ => repos.first().filter(|_| self.repository.is_some()),
        })
    }
}

/// Lets the lease of a VM whose worker runs last as long as it may. Where that fails the VM is given back: its worker would end in the middle.
async fn keep(client: &Client, claim: &ClaimReply, options: &RelayOptions) -> Result<(), Outcome> {
    let left = claim.expires_at.duration_since(Timestamp::now()).as_mins();
    let more = options.ttl.saturating_sub(u64::try_from(left).unwrap_or_default() + 1);
    if more == 0 {
        return Ok(());
    }
    match client.extend_claim(&claim.id, more).await {
        // It has ended; or a delivery at the same moment has done this, and it would last longer than any lease may.
        Ok(_)
        | Err(ClientError::Api {
            status: 404 | 409 | 422,
            ..
        }) => Ok(()),
        Err(error) => {
            let _ = client.release(&claim.id).await;
            Err(error.into())
        }
    }
}

/// Its worker ended this moment.
fn just_ended(key: &str) -> Outcome {
    Outcome::Again(format!("the VM of the order {key} has just ended"))
}

/// Whether a VM has the worker. What cannot be asked is asked again by the next delivery, and a VM that has ended is given back for it.
async fn has_worker(client: &Client, id: &InstanceId, key: &str) -> Result<bool, Outcome> {
    match client.list_sessions(id).await {
        Ok(sessions) => Ok(sessions.iter().any(|session| session.tag.as_deref() == Some(TAG))),
        Err(ClientError::Api {
            status: 404 | 409 | 410,
            ..
        }) => {
            let _ = client.release(id).await;
            Err(just_ended(key))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_is_a_branch_unless_it_can_be_no_branch() {
        let branch = |name: &str| Revision::Branch(name.to_owned());
        let other = |name: &str| Revision::Other(name.to_owned());
        assert_eq!(Revision::of("main"), branch("main"));
        assert_eq!(Revision::of("refs/heads/fix/a"), branch("fix/a"));
        assert_eq!(Revision::of("v1.2"), branch("v1.2"));
        assert_eq!(Revision::of("refs/tags/v1.2"), other("refs/tags/v1.2"));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Revision::of(commit), other(commit));
        assert_eq!(Revision::of("abcdef"), branch("abcdef"));
    }
}
