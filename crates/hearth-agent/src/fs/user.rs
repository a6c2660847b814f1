//! Work with files as one of the VM's users: the kernel checks the permissions, not we.
//!
//! Linux keeps who somebody is per thread. A thread that has become a user does this one thing and ends. Only what counts for files
//! changes (and the capabilities go): with the other ids the user's own processes could send signals to the agent.

use std::io;

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups};
use tokio::sync::oneshot;

use super::fault;
use crate::reply::Fault;
use crate::users::Identity;

/// Blocking work, done as this user; as the agent when there is none.
pub(crate) async fn run<T, F>(user: Option<&Identity>, work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    match user.filter(|user| !is_own(user)) {
        Some(user) => run_long(user, work).await,
        None => tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(failed())),
    }
}

/// The same for work that takes long: on a thread of its own in any case.
pub(super) async fn run_long<T, F>(user: &Identity, work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    let (sender, result) = oneshot::channel();
    let user = user.clone();
    let thread = std::thread::Builder::new().name(format!("as {}", user.uid));
    let started = thread.spawn(move || {
        let taken_on = if is_own(&user) { Ok(()) } else { take_on(&user) };
        let result = taken_on.map_err(|error| cannot_be(&user, &error)).and_then(|()| work());
        // Nobody listens any more when the host gave up.
        drop(sender.send(result));
    });
    started.map_err(|error| Fault::from_io("no thread could be started", &error))?;
    result.await.unwrap_or_else(|_| Err(failed()))
}

fn is_own(user: &Identity) -> bool {
    (user.uid, user.gid) == (geteuid().as_raw(), getegid().as_raw())
}

fn failed() -> Fault {
    Fault::from_io("the agent failed", &io::ErrorKind::Other.into())
}

fn cannot_be(user: &Identity, error: &io::Error) -> Fault {
    Fault {
        message: format!(
            "the agent cannot act as the user {}: {}",
            user.name,
            fault::words(error)
        ),
        ..fault::of("/".as_ref(), user, error)
    }
}

/// From now on this thread's work with files is the user's.
fn take_on(user: &Identity) -> io::Result<()> {
    // The main group among them, as after a login.
    let groups: Vec<_> = [user.gid].iter().chain(&user.groups).copied().collect();
    let groups: Vec<_> = groups.into_iter().map(rustix::process::Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // They answer with what was there before; asking again says whether it was done.
    setfsgid(gid);
    setfsuid(uid);
    if setfsgid(gid) != gid || setfsuid(uid) != uid {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if !uid.is_root() {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none)?;
    }
    Ok(())
}
