//! The names a VM goes by: host name, machine id, boot id.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::{Part, at};
use crate::container;

/// The address that Debian gives to a machine's own name.
const OWN_ADDRESS: &str = "127.0.1.1";
/// What programs read as "this boot".
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What is mounted over it in a fork: the kernel's own cannot be changed.
const OUR_BOOT_ID: &str = "/run/hearth/boot-id";
/// Journals are kept in a folder named like the machine.
const JOURNAL: &str = "run/log/journal";
/// Files that hold the machine id besides `/etc/machine-id`, where they are.
const MACHINE_ID_COPIES: [&str; 2] = ["var/lib/dbus/machine-id", "run/machine-id"];

/// Writes the host name where the next boot and name look-ups find it.
pub(super) fn set_hostname(root: &Path, name: &str) -> Part<()> {
    write(&root.join("etc/hostname"), &format!("{name}\n"))?;
    let path = root.join("etc/hosts");
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(at(&path)(error)),
    };
    write(&path, &hosts(&before, name))
}

/// The text of `/etc/hosts` with the machine's own line replaced, or added.
fn hosts(before: &str, name: &str) -> String {
    let own = format!("{OWN_ADDRESS} {name}\n");
    let mut text = String::new();
    let mut is_there = false;
    for line in before.lines() {
        if line.split_whitespace().next() == Some(OWN_ADDRESS) {
            if !is_there {
                text.push_str(&own);
            }
            is_there = true;
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    if !is_there {
        text.push_str(&own);
    }
    text
}

/// Writes the machine id everywhere it is kept.
pub(super) fn set_machine_id(root: &Path, id: &str) -> Part<()> {
    let path = root.join("etc/machine-id");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let text = format!("{id}\n");
    write(&path, &text)?;
    for copy in MACHINE_ID_COPIES {
        let path = root.join(copy);
        // A link points to the file above.
        if path.is_file() && !path.is_symlink() {
            write(&path, &text)?;
        }
    }
    // What was logged so far stays readable; a journal that is not there, or has moved already, is none of our business.
    let before = before.trim();
    if !before.is_empty() {
        let journal = root.join(JOURNAL);
        drop(fs::rename(journal.join(before), journal.join(id)));
    }
    Ok(())
}

/// Mounts the boot id over the kernel's as it is, so that a fork only writes a file: programs that watch the mounts, systemd above
/// all, work for some milliseconds after each mount. Without it an activation does that itself.
pub(crate) fn prepare_boot_id() {
    let seen = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let is_laid = fs::read_to_string(OUR_BOOT_ID).is_ok_and(|ours| ours == seen);
    if !is_laid && !seen.is_empty() {
        drop(lay_boot_id(seen.trim()));
    }
}

/// Lays a new boot id over the kernel's. Gives it. A copy of a container has booted by itself, and its engine gave it one.
pub(super) fn set_boot_id() -> Part<String> {
    if container::shares_kernel() {
        let given = fs::read_to_string(BOOT_ID).map_err(at(Path::new(BOOT_ID)))?;
        return Ok(given.trim().to_owned());
    }
    let id = uuid::Builder::from_random_bytes(super::random::bytes()?);
    let id = id.into_uuid().to_string();
    lay_boot_id(&id)?;
    if fs::read_to_string(BOOT_ID).unwrap_or_default().trim() == id {
        Ok(id)
    } else {
        Err(format!("{BOOT_ID}: it does not change"))
    }
}

fn lay_boot_id(id: &str) -> Part<()> {
    let ours = PathBuf::from(OUR_BOOT_ID);
    if let Some(folder) = ours.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let is_same = |one: &Path, other: &Path| {
        let of = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        of(one).is_some() && of(one) == of(other)
    };
    // In place: of a VM that was frozen with it, this very file lies there already.
    write(&ours, &format!("{id}\n"))?;
    if is_same(&ours, Path::new(BOOT_ID)) {
        return Ok(());
    }
    let nothing = None::<&str>;
    mount(Some(&ours), BOOT_ID, nothing, MsFlags::MS_BIND, nothing)
        .map_err(|error| format!("{BOOT_ID}: {}", error.desc()))
}

/// Writes a file in place: replacing it would cost the file system more than the rest of an activation. A half-written file
/// does no harm, because a VM whose activation fails is deleted.
fn write(path: &Path, text: &str) -> Part<()> {
    let mut options = fs::File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o644).open(path);
    let length = text.len() as u64;
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // Shorter than before is the exception.
        if file.metadata()?.len() == length {
            Ok(())
        } else {
            file.set_len(length)
        }
    })
    .map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["etc", "var/lib/dbus", "run/log/journal/old"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    #[test]
    fn the_host_name_replaces_the_one_before() {
        let root = root();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        fs::write(
            root.path().join("etc/hosts"),
            "127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 a",
        )
        .unwrap();
        set_hostname(root.path(), "one").unwrap();
        set_hostname(root.path(), "two").unwrap();
        assert_eq!(read("etc/hostname"), "two\n");
        assert_eq!(read("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 two\n10.0.0.1 a\n");
        assert_eq!(hosts("", "x"), "127.0.1.1 x\n");
        assert_eq!(hosts("127.0.1.1 a\n127.0.1.1 b\n", "x"), "127.0.1.1 x\n");
    }

    #[test]
    fn the_machine_id_is_the_same_everywhere() {
        let root = root();
        let path = |name: &str| root.path().join(name);
        fs::write(path("etc/machine-id"), "old\n").unwrap();
        fs::write(path("var/lib/dbus/machine-id"), "old\n").unwrap();
        set_machine_id(root.path(), "new").unwrap();
        for name in ["etc/machine-id", "var/lib/dbus/machine-id"] {
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "new\n");
        }
        assert!(!path("run/machine-id").exists());
        assert!(path("run/log/journal/new").exists() && !path("run/log/journal/old").exists());
        // As a link, as Debian makes it.
        fs::remove_file(path("var/lib/dbus/machine-id")).unwrap();
        std::os::unix::fs::symlink("../../../etc/machine-id", path("var/lib/dbus/machine-id")).unwrap();
        set_machine_id(root.path(), "newer").unwrap();
        assert!(path("var/lib/dbus/machine-id").is_symlink());
        assert_eq!(fs::read_to_string(path("var/lib/dbus/machine-id")).unwrap(), "newer\n");
    }
}
