//! `POST /v1/activate`: gives a forked VM an identity of its own. It woke up with the frozen VM's random pool, clock, names and
//! keys, like all its siblings; each of these is replaced, and if one cannot be, the whole request fails and the host throws
//! the VM away. No programs are run: under emulation each one costs more than all of this together.
//!
//! What lives in a program's own memory (a random generator of its own, a boot id it has read) cannot be reached from here.

mod connections;
mod names;
mod random;
mod ssh;

pub(crate) use names::prepare_boot_id;

use std::path::Path;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hearth_guest::{Activate, Activated, ENTROPY_BYTES, HostKey};
use http::StatusCode;
use hyper::Request;
use hyper::body::Incoming;

use crate::clock;
use crate::http::small_json;
use crate::reply::{self, Fault, Reply};

/// Longest label of a host name (RFC 1035).
const LONGEST_LABEL: usize = 63;
const MACHINE_ID_DIGITS: usize = 32;

/// What did not work, in words; the host adds that the VM cannot be used.
type Part<T> = Result<T, String>;

pub(crate) async fn run(request: Request<Incoming>) -> Result<Reply, Fault> {
    let begin = Instant::now();
    let wanted: Activate = small_json(request, "an activation").await?;
    let entropy = check(&wanted).map_err(Fault::bad)?;
    // In this thread: there is nothing else to serve yet, and a new one would be long in coming.
    let activated = activate(&wanted, &entropy, begin).map_err(|message| Fault {
        code: None,
        status: StatusCode::INTERNAL_SERVER_ERROR,
        message: format!("this VM could not be given an identity of its own: {message}"),
    })?;
    Ok(reply::json(StatusCode::OK, &activated))
}

/// `POST /v1/rsa-host-key`.
pub(crate) async fn set_rsa_host_key(request: Request<Incoming>) -> Result<Reply, Fault> {
    let key: HostKey = small_json(request, "a host key").await?;
    let set = ssh::set_rsa_key(Path::new("/"), &key).and_then(|()| ssh::reload());
    set.map_err(|message| Fault {
        code: None,
        status: StatusCode::INTERNAL_SERVER_ERROR,
        message,
    })?;
    Ok(reply::done())
}

/// Everything that can be wrong with the request, before anything is changed. Gives the random bytes.
fn check(wanted: &Activate) -> Part<Vec<u8>> {
    let Activate {
        entropy,
        hostname,
        machine_id,
        ..
    } = wanted;
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=LONGEST_LABEL).contains(&hostname.len()) && hostname.bytes().all(is_label);
    if !fits || hostname.starts_with('-') || hostname.ends_with('-') {
        return Err(format!(
            "{hostname:?} is not a host name of small letters, digits and '-'"
        ));
    }
    if let Some(id) = machine_id {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if id.len() != MACHINE_ID_DIGITS || !id.bytes().all(is_digit) {
            return Err(format!(
                "{id:?} is not a machine id of {MACHINE_ID_DIGITS} hexadecimal digits"
            ));
        }
    }
    let bytes = BASE64
        .decode(entropy)
        .map_err(|_| "the entropy is not base64".to_owned())?;
    if bytes.len() < ENTROPY_BYTES {
        return Err(format!(
            "{} bytes of entropy are fewer than {ENTROPY_BYTES}",
            bytes.len()
        ));
    }
    Ok(bytes)
}

fn activate(wanted: &Activate, entropy: &[u8], begin: Instant) -> Part<Activated> {
    // First, because everything after it draws on it.
    random::reseed(entropy)?;
    set_clock(wanted.unix_nanos, begin)?;
    let root = Path::new("/");
    names::set_hostname(root, &wanted.hostname)?;
    nix::unistd::sethostname(&wanted.hostname).map_err(|error| format!("the host name: {}", error.desc()))?;
    let machine_id = match &wanted.machine_id {
        Some(id) => id.clone(),
        None => hex::encode(random::bytes::<16>()?),
    };
    names::set_machine_id(root, &machine_id)?;
    let boot_id = names::set_boot_id()?;
    random::replace_seeds(root)?;
    let ssh::Replaced {
        made: host_keys,
        lacks_rsa,
    } = ssh::replace_host_keys(root, wanted.rsa_host_key.as_ref())?;
    if !host_keys.is_empty() {
        ssh::reload()?;
    }
    let access = Path::new(crate::ssh::FOLDER);
    crate::ssh::forget(access).map_err(at(access))?;
    let closed_connections = connections::close_outside()?;
    Ok(Activated {
        machine_id,
        boot_id,
        host_keys,
        lacks_rsa_host_key: lacks_rsa,
        closed_connections,
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        duration_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// `unix_nanos` was the time when the request came.
fn set_clock(unix_nanos: i64, came: Instant) -> Part<()> {
    let since = i64::try_from(came.elapsed().as_nanos()).unwrap_or_default();
    let now = unix_nanos.saturating_add(since);
    clock::set(now).map_err(|error| format!("the clock: {}", error.desc()))
}

/// What a file operation said about a path.
fn at(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Activate {
        Activate {
            unix_nanos: 0,
            entropy: BASE64.encode([7; ENTROPY_BYTES]),
            hostname: "vm-0198".into(),
            machine_id: None,
            rsa_host_key: None,
        }
    }

    #[test]
    fn a_request_is_checked_before_anything_is_done() {
        assert_eq!(check(&wanted()).unwrap(), [7; ENTROPY_BYTES]);
        for hostname in ["", "-a", "a-", "A", "a.b", "a b", "a\n", &"a".repeat(64)] {
            let hostname = hostname.to_owned();
            assert!(check(&Activate { hostname, ..wanted() }).is_err());
        }
        for id in ["", "0123", &"g".repeat(32), &"A".repeat(32)] {
            let machine_id = Some(id.to_owned());
            assert!(check(&Activate { machine_id, ..wanted() }).is_err());
        }
        for entropy in [String::new(), "!".into(), BASE64.encode([7; ENTROPY_BYTES - 1])] {
            assert!(check(&Activate { entropy, ..wanted() }).is_err());
        }
    }
}
