//! Keys and configuration of the SSH server, in a folder in memory: the VM's own key, made when it is first needed, and the public keys
//! that open the VM.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use hearth_guest::files::FaultCode;
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};

use crate::reply::Fault;

/// Where all of it lies: in memory, and so with no trace on the VM's disk.
pub(crate) const FOLDER: &str = "/run/hearth/ssh";
/// The VM's own key.
const HOST_KEY: &str = "host_key";
/// The keys that open it. Their owners' own rights read it.
const ALLOWED: &str = "authorized_keys";
const CONFIG: &str = "sshd_config";
/// More keys than a VM has users; the oldest ones go.
const MOST_KEYS: usize = 64;
/// Longest key that is taken, bytes: one of RSA with 16384 bits has less.
const LONGEST_KEY: usize = 8 * 1024;

/// What every connection is served by, besides the variables and places.
const SETTINGS: &str = "\
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowAgentForwarding yes
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
GatewayPorts no
X11Forwarding no
PermitUserEnvironment no
AcceptEnv LANG LC_* COLORTERM
PidFile none
PrintMotd no
PrintLastLog no
UseDNS no
LogLevel ERROR
Subsystem sftp internal-sftp
";
/// With it an account without a password can be entered by its key.
const PAM: &str = "/etc/pam.d/sshd";

fn failed(path: &Path) -> impl Fn(io::Error) -> Fault {
    move |error| Fault::from_io(&path.display().to_string(), &error)
}

/// Everything that was allowed, and the key: of a VM that was another one before.
pub(crate) fn forget(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes the folder and the VM's key, where they are missing; gives the public key.
pub(super) fn prepare(folder: &Path) -> Result<PublicKey, Fault> {
    // Those who enter read what opens it with their own rights.
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(failed(folder))?;
    let path = folder.join(HOST_KEY);
    let key_fault =
        |error: ssh_key::Error| Fault::from_io(&path.display().to_string(), &io::Error::other(error.to_string()));
    match fs::read(&path) {
        Ok(text) => return Ok(PrivateKey::from_openssh(text).map_err(key_fault)?.public_key().clone()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&path)(error)),
    }
    let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(key_fault)?;
    let text = key.to_openssh(LineEnding::LF).map_err(key_fault)?;
    write(&path, 0o600, text.as_bytes())?;
    Ok(key.public_key().clone())
}

/// Adds public keys to those that open the VM; gives the VM's own.
pub(super) fn allow(folder: &Path, keys: &[String]) -> Result<Vec<String>, Fault> {
    let mut wanted = Vec::new();
    for key in keys {
        wanted.push(parse(key)?);
    }
    let own = prepare(folder)?;
    let path = folder.join(ALLOWED);
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(&path)(error)),
    };
    let mut lines: Vec<String> = before.lines().map(str::to_owned).collect();
    let known = |lines: &[String], key: &str| lines.iter().any(|line| line == key);
    let mut changed = lines.is_empty();
    for key in wanted {
        if !known(&lines, &key) {
            lines.push(key);
            changed = true;
        }
    }
    if changed {
        let first = lines.len().saturating_sub(MOST_KEYS);
        let text: String = lines[first..].iter().map(|line| format!("{line}\n")).collect();
        write(&path, 0o644, text.as_bytes())?;
    }
    let own = own
        .to_openssh()
        .map_err(|error| Fault::bad(format!("the VM's key: {error}")))?;
    Ok(vec![own])
}

/// A key as it may stand in a file: nothing but itself. What could stand before it (`command=…`) or in a comment does not come along.
fn parse(key: &str) -> Result<String, Fault> {
    let refused = |why: &str| {
        let mut fault = Fault::bad(format!("this is no public key as OpenSSH writes it ({why})"));
        fault.code = Some(FaultCode::Invalid);
        fault
    };
    if key.len() > LONGEST_KEY {
        return Err(refused("it is too long"));
    }
    // The parser takes what follows for a comment.
    if key.trim().contains(['\n', '\r', '\0']) {
        return Err(refused("it is more than one line"));
    }
    let mut parsed = PublicKey::from_openssh(key.trim()).map_err(|error| refused(&error.to_string()))?;
    parsed.set_comment("");
    let line = parsed.to_openssh().map_err(|error| refused(&error.to_string()))?;
    Ok(line.trim().to_owned())
}

/// Writes the configuration for a connection whose sessions have these variables; gives its path.
pub(super) fn write_config(folder: &Path, variables: &[(String, String)]) -> Result<String, Fault> {
    let mut text = SETTINGS.to_owned();
    for (name, file) in [("HostKey", HOST_KEY), ("AuthorizedKeysFile", ALLOWED)] {
        text.push_str(&format!("{name} {}\n", folder.join(file).display()));
    }
    if Path::new(PAM).exists() {
        text.push_str("UsePAM yes\n");
    }
    text.push_str(&set_env(variables));
    let path = folder.join(CONFIG);
    // Only root reads it: it holds the variables.
    write(&path, 0o600, text.as_bytes())?;
    Ok(path.display().to_string())
}

/// The line that gives sessions their variables. One of several lines cannot be said there.
fn set_env(variables: &[(String, String)]) -> String {
    let mut line = String::new();
    for (name, value) in variables {
        if value.contains(['\n', '\r', '\0']) {
            continue;
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        line.push_str(&format!(" \"{name}={value}\""));
    }
    if line.is_empty() {
        line
    } else {
        format!("SetEnv{line}\n")
    }
}

/// Whole or not at all: another connection may read it just now.
fn write(path: &Path, mode: u32, text: &[u8]) -> Result<(), Fault> {
    let temporary = path.with_extension(format!("new-{}", uuid::Uuid::new_v4().simple()));
    let written = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // What was begun is of no use.
        drop(fs::remove_file(&temporary));
        failed(path)(error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn keys_are_added_once_and_the_vm_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("ssh");
        let first = allow(&folder, &[format!("{KEY} ada@laptop\n")]).unwrap();
        assert!(first[0].starts_with("ssh-ed25519 AAAA"), "{first:?}");
        assert_eq!(allow(&folder, &[KEY.to_owned()]).unwrap(), first);
        assert_eq!(fs::read_to_string(folder.join(ALLOWED)).unwrap(), format!("{KEY}\n"));
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(HOST_KEY), mode(ALLOWED)), (0o600, 0o644));
        // Another VM is another one.
        forget(&folder).unwrap();
        forget(&folder).unwrap();
        assert_ne!(allow(&folder, &[]).unwrap(), first);
        assert_eq!(fs::read_to_string(folder.join(ALLOWED)).unwrap(), "");
    }

    #[test]
    fn nothing_but_a_key_gets_into_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for key in [
            "",
            "ssh-ed25519",
            "rubbish",
            &format!("command=\"id\" {KEY}"),
            &format!("{KEY} a\n{KEY}"),
            &"a".repeat(LONGEST_KEY + 1),
        ] {
            assert!(allow(folder.path(), &[key.to_owned()]).is_err(), "{key}");
        }
        assert!(!folder.path().join(ALLOWED).exists());
    }

    #[test]
    fn variables_are_quoted_as_the_server_reads_them() {
        let variables = [
            ("A", "plain"),
            ("B", "two words # \"and\" \\quotes"),
            ("C", "two\nlines"),
            ("D", ""),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            set_env(&variables),
            "SetEnv \"A=plain\" \"B=two words # \\\"and\\\" \\\\quotes\" \"D=\"\n"
        );
        assert_eq!(set_env(&[]), "");
    }
}
