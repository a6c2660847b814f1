//! Users and groups, read from `/etc/passwd` and `/etc/group` by hand.
//!
//! A static binary has no name service switch: users that only exist in a directory service (LDAP, sssd) are unknown
//! here. Images for builds have their users in the files.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

/// Who a command runs as, or owns a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The groups of `/etc/group` that name the user, besides `gid`.
    pub(crate) groups: Vec<u32>,
    pub(crate) name: String,
    pub(crate) home: String,
    pub(crate) shell: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl Identity {
    /// Finds a user by name or `uid[:gid]`; root when `None`. The error is a sentence for a person.
    pub(crate) fn find(user: Option<&str>) -> Result<Self, String> {
        let passwd = read_or_empty("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
        let group = read_or_empty("/etc/group").map_err(|error| format!("/etc/group: {error}"))?;
        resolve(user.unwrap_or("0"), &passwd, &group)
            .ok_or_else(|| format!("there is no user {:?} in this VM", user.unwrap_or("root")))
    }

    /// As [`Identity::find`]; who the agent itself is when `None`, which is root, but in tests.
    pub(crate) fn find_or_own(user: Option<&str>) -> Result<Self, String> {
        let own = nix::unistd::geteuid().to_string();
        Self::find(Some(user.unwrap_or(&own)))
    }
}

/// The names of all users, by number; the first one of each counts.
pub(crate) fn user_names() -> HashMap<u32, String> {
    names("/etc/passwd")
}

/// The names of all groups, by number.
pub(crate) fn group_names() -> HashMap<u32, String> {
    names("/etc/group")
}

/// Both files have the name in the first field and the number in the third. One that cannot be read names nobody.
fn names(path: &str) -> HashMap<u32, String> {
    let text = read_or_empty(path).unwrap_or_default();
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

fn read_or_empty(path: impl AsRef<Path>) -> io::Result<String> {
    match fs::read(path) {
        // A broken line must not hide the others.
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn resolve(user: &str, passwd: &str, group: &str) -> Option<Identity> {
    let accounts = passwd.lines().filter_map(parse_account);
    let (uid_text, gid_text) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
    let Ok(uid) = uid_text.parse::<u32>() else {
        let account = accounts.into_iter().find(|account| account.name == user)?;
        return Some(identity(&account, group));
    };
    let gid = gid_text.map(str::parse).transpose().ok()?;
    let known = accounts
        .into_iter()
        .find(|account| account.uid == uid)
        .map(|account| identity(&account, group));
    let mut found = known.unwrap_or_else(|| stranger(uid));
    if let Some(gid) = gid {
        found.gid = gid;
    }
    Some(found)
}

/// A number without an account. Root works even in an image without `/etc/passwd`.
fn stranger(uid: u32) -> Identity {
    let (name, home) = if uid == 0 {
        ("root".to_owned(), "/root")
    } else {
        (uid.to_string(), "/")
    };
    Identity {
        uid,
        gid: uid,
        groups: Vec::new(),
        name,
        home: home.to_owned(),
        shell: "/bin/sh".to_owned(),
    }
}

fn parse_account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1)?;
    let shell = fields.next().unwrap_or_default().trim_end();
    Some(Account {
        name,
        uid,
        gid,
        home,
        shell,
    })
}

fn identity(account: &Account<'_>, group: &str) -> Identity {
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let gid: u32 = fields.nth(2)?.parse().ok()?;
        let member = fields.next()?.trim_end().split(',').any(|name| name == account.name);
        (member && gid != account.gid).then_some(gid)
    });
    let or = |text: &str, fallback: &str| {
        if text.is_empty() {
            fallback.to_owned()
        } else {
            text.to_owned()
        }
    };
    Identity {
        uid: account.uid,
        gid: account.gid,
        groups: groups.collect(),
        name: account.name.to_owned(),
        home: or(account.home, "/"),
        shell: or(account.shell, "/bin/sh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken line\ndev:x:1000:1001:Dev:/home/dev:/bin/zsh\n";
    const GROUP: &str = "root:x:0:\ndev:x:1001:\ndocker:x:990:alice,dev\nsudo:x:27:dev\nnear:x:28:develop\n";

    #[test]
    fn a_name_brings_home_shell_and_groups() {
        let dev = resolve("dev", PASSWD, GROUP).unwrap();
        assert_eq!((dev.uid, dev.gid), (1000, 1001));
        assert_eq!(dev.groups, [990, 27]);
        assert_eq!((dev.home.as_str(), dev.shell.as_str()), ("/home/dev", "/bin/zsh"));
    }

    #[test]
    fn numbers_need_no_account() {
        assert_eq!(resolve("1000", PASSWD, GROUP), resolve("dev", PASSWD, GROUP));
        let stranger = resolve("4242:7", PASSWD, GROUP).unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.groups.len()), (4242, 7, 0));
        assert_eq!(resolve("0", "", "").unwrap().home, "/root");
        assert_eq!(resolve("1:x", PASSWD, GROUP), None);
        assert_eq!(resolve("nobody-here", PASSWD, GROUP), None);
    }
}
