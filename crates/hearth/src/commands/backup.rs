//! `hearth backup` and `hearth restore`: the server's data in one file, and a new data folder from it.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use clap::Args;
use hearth_server::{BackupError, Description, KeySource};
use secrecy::SecretString;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, hint, input, local, output, places};

/// A shorter passphrase can be found by trying.
const SHORTEST: usize = 12;

const BACKUP_HELP: &str = "\
In it: projects, variables, git credentials, tokens, pools and their settings. Not in it: VMs, templates, images, mirrors of
repositories: they are made anew. What opens variables and credentials is sealed with a passphrase, or left out.

Examples:
  hearth backup hearth-monday.tar                               asks for a passphrase; the server may run
  hearth backup hearth-monday.tar --passphrase-file /root/pass  for a timer
  hearth backup hearth-monday.tar --without-key                 then keep DATA-FOLDER/secret.key somewhere else yourself";

const RESTORE_HELP: &str = "\
The folder must be new or empty. The first start on it fills the pools again; VMs of the server that was backed up are not touched,
and none of them appears here. Tokens are valid as they were.

Examples:
  hearth restore hearth-monday.tar --data-dir /srv/hearth
  hearth restore hearth-monday.tar --data-dir /srv/hearth --key-file secret.key    of a backup that was made --without-key";

/// `hearth backup`.
#[derive(Debug, Args)]
#[command(after_help = BACKUP_HELP)]
pub(crate) struct BackupArgs {
    /// The file to write; one that exists is not replaced
    file: PathBuf,
    /// The file with the passphrase that opens the secrets in the backup
    #[arg(long, value_name = "FILE", conflicts_with = "without_key")]
    passphrase_file: Option<PathBuf>,
    /// Leave out what opens variables and git credentials
    #[arg(long)]
    without_key: bool,
}

/// `hearth restore`.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_HELP)]
pub(crate) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The file with the backup's passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    passphrase_file: Option<PathBuf>,
    /// The key of the data folder that was backed up, where it is not in the backup
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

pub(crate) async fn back_up(globals: &Globals, args: BackupArgs) -> Result<u8, Failure> {
    let data_dir = the_data_dir(globals);
    let passphrase = if args.without_key {
        None
    } else {
        Some(new_passphrase(args.passphrase_file.as_deref())?)
    };
    let description = hearth_server::back_up(&data_dir, &args.file, passphrase.as_ref())
        .await
        .map_err(|error| refused(&error))?;
    output::print(globals.json, &description, |description| {
        format!("{} holds {}", args.file.display(), holds(description))
    })?;
    if args.without_key {
        output::note(&format!(
            "variables and git credentials in it can be opened only with {}: keep a copy of that file in another place",
            data_dir.join("secret.key").display()
        ));
    }
    Ok(0)
}

pub(crate) async fn restore(globals: &Globals, args: RestoreArgs) -> Result<u8, Failure> {
    let data_dir = places::data_dir(globals);
    let description = hearth_server::describe(&args.file).map_err(|error| refused(&error))?;
    let key = match (&args.key_file, description.has_key) {
        (Some(file), _) => KeySource::File(file.clone()),
        (None, true) => KeySource::Passphrase(passphrase(
            args.passphrase_file.as_deref(),
            "passphrase of the backup: ",
        )?),
        (None, false) => return Err(refused(&BackupError::KeyMissing)),
    };
    let description = hearth_server::restore(&args.file, &data_dir, key)
        .await
        .map_err(|error| refused(&error))?;
    output::print(globals.json, &description, |description| {
        format!(
            "{} holds {}, as they were at {}",
            data_dir.display(),
            holds(description),
            description.created_at.strftime("%F %T UTC")
        )
    })?;
    if !data_dir.join("admin-token").exists() {
        output::note("the first admin token was not in the backup: use a token that you have");
    }
    output::note(&format!(
        "start a server on it with `{}`",
        hint::command_at(&data_dir, &["serve"])
    ));
    Ok(0)
}

/// The folder of the server that runs here, unless another one is named.
fn the_data_dir(globals: &Globals) -> PathBuf {
    let running = local::servers().unwrap_or_default();
    match (places::named_data_dir(globals), running.as_slice()) {
        (None, [server]) => connect::absolute(&server.data_dir),
        _ => places::data_dir(globals),
    }
}

fn holds(description: &Description) -> String {
    format!(
        "{}, {}, {} and {}",
        output::count(description.projects, "project"),
        output::count(description.variables, "variable"),
        output::count(description.credentials, "git credential"),
        output::count(description.tokens, "token"),
    )
}

fn new_passphrase(file: Option<&Path>) -> Result<SecretString, Failure> {
    if file.is_none() && !io::stdin().is_terminal() {
        return Err(
            Failure::usage("a backup needs a passphrase: its secrets are sealed with it")
                .hint("name a file that holds one with --passphrase-file, or leave the key out with --without-key"),
        );
    }
    let text = read(file, "passphrase for the backup: ")?;
    if text.chars().count() < SHORTEST {
        return Err(Failure::usage(format!(
            "the passphrase has fewer than {SHORTEST} characters and could be found by trying"
        ))
        .hint("make one with `openssl rand -hex 16`, and keep it in another place than the backup"));
    }
    if file.is_none() && read(None, "the same again: ")? != text {
        return Err(Failure::usage("the two passphrases differ; nothing was written"));
    }
    Ok(text.into())
}

fn passphrase(file: Option<&Path>, prompt: &str) -> Result<SecretString, Failure> {
    if file.is_none() && !io::stdin().is_terminal() {
        return Err(Failure::usage("the backup's secrets are sealed with a passphrase")
            .hint("name the file that holds it with --passphrase-file"));
    }
    Ok(read(file, prompt)?.into())
}

fn read(file: Option<&Path>, prompt: &str) -> Result<String, Failure> {
    let Some(file) = file else {
        let terminal = console::Term::stderr();
        let typed = terminal.write_str(prompt).and_then(|()| terminal.read_secure_line());
        return typed.map_err(|error| Failure::new(format!("the passphrase cannot be read: {error}")));
    };
    let text = input::secret(file, &format!("the passphrase's file {}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn refused(error: &BackupError) -> Failure {
    let failure = Failure::new(hearth_api::error::chain(error));
    match error {
        BackupError::NotEmpty(_) => failure.hint("name a new one with --data-dir"),
        BackupError::NoDataFolder(_) => failure.hint("name the server's with --data-dir"),
        BackupError::Exists(_) => failure.hint("choose another name, like `hearth-$(date +%F).tar`"),
        _ => failure,
    }
}
