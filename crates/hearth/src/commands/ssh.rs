//! `hearth ssh`, `hearth ssh-config` and `hearth ssh-proxy`: OpenSSH's own programs, connected to a VM through the server. They use a key pair
//! that is made for them, and know the VM's key from the server: nobody is asked to believe it.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;

use super::forward::{down, up};
use crate::args::Globals;
use crate::failure::Failure;
use crate::lease_warning::Meanwhile;
use crate::{connect, lease_warning, output, places, resolve};

/// Behind the name of a VM it makes a host name that `~/.ssh/config` can tell from others.
const SUFFIX: &str = ".hearth";
/// The folder with the key pair that is made for this program, and the private key in it.
const PAIR: &str = "key";
const KEY: &str = "id_ed25519";
/// A file of known keys for each name that was used.
const KNOWN: &str = "known_hosts";

const AFTER_HELP: &str = "\
Examples:
  hearth ssh last
  hearth ssh fix-17 -- -L 8080:localhost:3000
  hearth ssh last -- 'cd /home/app && npm test'

What stands behind `--` goes to ssh as it is. scp, rsync and editors: hearth ssh-config.";

/// `hearth ssh`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct SshArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The user who works in it
    #[arg(long, default_value = "root")]
    user: String,
    /// Options and a command for ssh
    #[arg(last = true, value_name = "SSH ARGUMENT")]
    arguments: Vec<String>,
}

const CONFIG_HELP: &str = "\
Examples:
  hearth ssh-config >> ~/.ssh/config
  ssh last.hearth
  scp notes.txt fix-17.hearth:/home/app/
  rsync -a src/ wpi_….hearth:/home/app/src/

A VM's host name is what other commands call it by, and `.hearth`. VS Code and JetBrains find it under that name, too.";

/// `hearth ssh-config`.
#[derive(Debug, Args)]
#[command(after_help = CONFIG_HELP)]
pub(crate) struct ConfigArgs {
    /// The user who works in the VMs
    #[arg(long, default_value = "root")]
    user: String,
}

/// `hearth ssh-proxy`.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// The VM, with or without `.hearth` behind it
    #[arg(value_name = "INSTANCE")]
    host: String,
}

pub(crate) async fn run(globals: &Globals, args: SshArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let folder = Folder::open()?;
    // Now, where a refusal can be read; the proxy does it again.
    folder.introduce(&client, &id, &format!("{id}{SUFFIX}")).await?;
    let mut command = Command::new("ssh");
    for option in folder.options(globals, &args.user)? {
        command.arg("-o").arg(option);
    }
    if let Some(token) = &globals.token {
        // The proxy finds it there; an argument could be read by others.
        command.env(connect::TOKEN_VARIABLE, token);
    }
    // Options of ssh stand before the host, a command behind it.
    let split = first_word(&args.arguments);
    let (options, words) = args.arguments.split_at(split);
    command.args(options).arg(format!("{id}{SUFFIX}")).args(words);
    let error = command.exec();
    Err(match error.kind() {
        ErrorKind::NotFound => {
            Failure::new("ssh is not on this machine").hint("install OpenSSH's client, or use `hearth shell`")
        }
        _ => Failure::new(format!("ssh cannot be started: {error}")),
    })
}

/// Options of ssh that take a value of their own.
const WITH_VALUE: &str = "BbcDEeFIiJLlmOoPpQRSWw";

/// Where the command begins among arguments for ssh.
fn first_word(arguments: &[String]) -> usize {
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            return at;
        };
        at += 1;
        let takes = letters.char_indices().find(|(_, letter)| WITH_VALUE.contains(*letter));
        // A value that does not stand in the same argument is the next one.
        if takes.is_some_and(|(place, letter)| place + letter.len_utf8() == letters.len()) {
            at += 1;
        }
    }
    arguments.len()
}

pub(crate) fn print_config(globals: &Globals, args: &ConfigArgs) -> Result<u8, Failure> {
    let folder = Folder::open()?;
    let mut text = format!("Host *{SUFFIX}\n");
    for option in folder.options(globals, &args.user)? {
        let (name, value) = option.split_once('=').unwrap_or((&option, ""));
        text.push_str(&format!("  {name} {value}\n"));
    }
    output::print_as_it_is(&text)?;
    Ok(0)
}

pub(crate) async fn proxy(globals: &Globals, args: ProxyArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let name = args.host.strip_suffix(SUFFIX).unwrap_or(&args.host);
    let id = resolve::instance(&client, name).await?;
    Folder::open()?.introduce(&client, &id, &args.host).await?;
    let (sender, receiver) = client.ssh(&id).await?;
    let _warning = lease_warning::watch(&client, &id, Meanwhile::Renews);
    let mut up = std::pin::pin!(up(tokio::io::stdin(), sender));
    let mut down = std::pin::pin!(down(tokio::io::stdout(), receiver));
    tokio::select! {
        // The server in the VM has ended; ssh learns it when we do.
        ended = &mut down => ended?,
        ended = &mut up => {
            ended?;
            down.await?;
        }
    }
    // Not by returning: a thread that waits for ssh's next byte would keep the program.
    std::process::exit(0)
}

/// Where the key pair and the known keys are.
struct Folder(PathBuf);

impl Folder {
    /// Makes the folder and the key pair, where they are missing.
    fn open() -> Result<Self, Failure> {
        let folder = place()?;
        let failed = |error: io::Error| Failure::new(format!("{} cannot be used: {error}", folder.display()));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder.join(KNOWN))
            .map_err(failed)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let this = Self(folder.clone());
        if !this.key().exists() {
            this.make_key()?;
        }
        Ok(this)
    }

    fn key(&self) -> PathBuf {
        self.0.join(PAIR).join(KEY)
    }

    /// Made beside its place, so that there never is half a pair.
    fn make_key(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(format!("no SSH key can be made: {error}"));
        let temporary = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(&self.0)
            .map_err(failed)?;
        let made = temporary.path().join(KEY);
        let ran = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "hearth", "-f"])
            .arg(&made)
            .stdin(Stdio::null())
            .output();
        let ran = ran.map_err(|error| failed(error).hint("install OpenSSH's client: it brings ssh-keygen"))?;
        if !ran.status.success() {
            let why = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
            return Err(Failure::new(format!("no SSH key can be made: {why}")));
        }
        match fs::rename(temporary.path(), self.0.join(PAIR)) {
            // Of two programs that begin at once one wins, and both use its pair.
            Err(error) if !self.key().exists() => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Lets the VM know our key, and us the VM's, under the name that ssh knows it by.
    async fn introduce(&self, client: &Client, id: &InstanceId, host: &str) -> Result<(), Failure> {
        let path = public(&self.key());
        let key = fs::read_to_string(&path)
            .map_err(|error| Failure::new(format!("{} cannot be read: {error}", path.display())))?;
        let allowed = client.allow_ssh(id, key.trim()).await?;
        let text: String = allowed.host_keys.iter().map(|key| format!("{host} {key}\n")).collect();
        let failed = |error: io::Error| Failure::new(format!("the VM's key cannot be written: {error}"));
        if host.contains('/') {
            return Err(Failure::usage("a host name holds no `/`"));
        }
        let folder = self.0.join(KNOWN);
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.persist(folder.join(host)).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// What ssh has to know, as `-o` takes it.
    fn options(&self, globals: &Globals, user: &str) -> Result<Vec<String>, Failure> {
        let program =
            std::env::current_exe().map_err(|error| Failure::new(format!("where is this program: {error}")))?;
        let mut words = vec![program.display().to_string()];
        if let Some(url) = &globals.url {
            words.extend(["--url".to_owned(), url.clone()]);
        }
        // What the environment says now: an editor that starts ssh later may have another one.
        let data_dir = match &globals.url {
            None => places::named_data_dir(globals),
            Some(_) => globals.data_dir.clone(),
        };
        for (option, path) in [("--token-file", &globals.token_file), ("--data-dir", &data_dir)] {
            if let Some(path) = path {
                words.extend([option.to_owned(), connect::absolute(path).display().to_string()]);
            }
        }
        words.push("ssh-proxy".to_owned());
        let quoted = words
            .iter()
            .map(|word| shlex::try_quote(word).map(|word| word.replace('%', "%%")));
        let quoted: Result<Vec<String>, _> = quoted.collect();
        let quoted = quoted.map_err(|_| Failure::usage("no option may hold a zero byte"))?;
        let path = |path: &Path| quote_path(path);
        // `%n` is the name as it was typed: `%h` has small letters only, and task ids may have others.
        Ok(vec![
            format!("ProxyCommand={} %n", quoted.join(" ")),
            format!("User={user}"),
            format!("IdentityFile={}", path(&self.key())),
            "IdentitiesOnly=yes".to_owned(),
            format!("UserKnownHostsFile={}", path(&self.0.join(KNOWN).join("%n"))),
            "GlobalKnownHostsFile=none".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "CheckHostIP=no".to_owned(),
            "UpdateHostKeys=no".to_owned(),
        ])
    }
}

/// OpenSSH splits paths at blanks that stand in no quotes.
fn quote_path(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains(' ') {
        format!("\"{text}\"")
    } else {
        text
    }
}

/// The public key in this file. Of a private key the public half is taken that lies beside it; the private one is not read on.
pub(super) fn read_public_key(path: &Path) -> Result<String, Failure> {
    let read = |path: &Path| {
        fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("the SSH key {} cannot be read: {error}", path.display())))
    };
    let mut text = read(path)?;
    if text.contains("PRIVATE KEY") {
        let mut name = path.as_os_str().to_owned();
        name.push(".pub");
        text = read(Path::new(&name))?;
    }
    let key = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    // As OpenSSH names kinds of keys.
    let is_key = |line: &&str| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| line.starts_with(kind));
    key.filter(is_key)
        .map(str::to_owned)
        .ok_or_else(|| Failure::new(format!("the file {} holds no SSH key", path.display())))
}

fn public(key: &Path) -> PathBuf {
    key.with_extension("pub")
}

/// In the user's folder of settings.
fn place() -> Result<PathBuf, Failure> {
    let set = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let settings = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    let settings = settings.ok_or_else(|| Failure::new("there is no home folder: set HOME or XDG_CONFIG_HOME"))?;
    Ok(settings.join("hearth").join("ssh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_begins_behind_the_options_of_ssh() {
        for (line, at) in [
            ("", 0),
            ("ls -l", 0),
            ("-v ls", 1),
            ("-L 8080:localhost:3000", 2),
            ("-NL 8080:localhost:3000 true", 2),
            ("-L8080:localhost:3000 true", 1),
            ("-o ServerAliveInterval=5 -A top -b", 3),
        ] {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(first_word(&words), at, "{line}");
        }
    }
}
