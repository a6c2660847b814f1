//! `hearth credential`: a project's git credentials. Secrets go in and never come out, and none stands in an argument, where every user
//! of the machine could read it.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_api::client::Client;
use hearth_api::credential::{Credential, CredentialItem, CredentialKind, PutCredentials};
use hearth_api::find::ProjectFound;
use hearth_api::page::Items;
use hearth_api::values::{CredentialHost, CredentialSecret, CredentialUsername};

use super::env::read_hidden_line;
use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, hint, input, output};

/// How private keys begin, in whatever format.
const KEY_BEGINS: &str = "-----BEGIN ";

const SET_HELP: &str = "\
Examples:
  hearth credential set web github.com < token.txt
  hearth credential set web gitlab.example.org --username oauth2 --from-file token.txt
  hearth credential set web git.example.org:8443
  hearth credential set web github.com --from-file ~/.ssh/deploy_ed25519

A token is used for https://, a private key for ssh://; which of the two it is can be seen from what it holds. A host may have one of
each. A key must be in OpenSSH's format and without a passphrase. Without --from-file the secret comes from standard input; on a
terminal it is asked for and not shown.

Hearth fetches the project's repositories from this host with it, submodules and Git LFS too. In a VM that is claimed, git gets it
from Hearth when it needs it: `git push` works, and nothing of it is on the VM's disk. Setting it again replaces it: the next git
command uses the new one, in VMs that run too.";

/// What to do with credentials.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Set the token or the deploy key for a git server, or replace it
    #[command(after_help = SET_HELP)]
    Set(SetArgs),
    /// List the credentials (never the secrets)
    List {
        /// The project's name or id
        project: String,
    },
    /// Remove the credentials for git servers
    Unset {
        /// The project's name or id
        project: String,
        /// The git servers, as `list` shows them
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
}

/// `hearth credential set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The project's name or id
    project: String,
    /// The git server: github.com, or git.example.org:8443 where the port is not the usual one
    host: String,
    /// Take the token or the private key from this file
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// The user name that is sent with the token (default: x-access-token, which the usual hosts take)
    #[arg(long, value_name = "NAME")]
    username: Option<CredentialUsername>,
    /// Send the token over http:// too, where everybody on the way can read it
    #[arg(long)]
    allow_http: bool,
}

pub(crate) async fn run(globals: &Globals, command: CredentialCommand) -> Result<u8, Failure> {
    match command {
        CredentialCommand::Set(args) => {
            // Before the server is asked: a mistake in the arguments needs no server to be seen.
            let credential = credential(&args)?;
            let (host, kind) = (credential.host.clone(), credential.kind);
            let client = connect::client(globals)?;
            let project = connect::project(&client, &args.project).await?;
            let body = PutCredentials {
                credentials: vec![credential],
            };
            let items = client.put_credentials(&project.id, &body).await?;
            output::print(globals.json, &items, |items| {
                let is_it = |item: &&CredentialItem| item.host == host.as_str() && item.kind == kind;
                match items.items.iter().find(is_it).and_then(|item| item.fingerprint.clone()) {
                    Some(fingerprint) => format!("set the key for {host}: {fingerprint}"),
                    None => format!("set the token for {host}"),
                }
            })?;
            if kind == CredentialKind::Token && !args.allow_http {
                warn_of_http(&client, &project, host.as_str()).await;
            }
        }
        CredentialCommand::List { project } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let items = client.list_credentials(&project.id).await?;
            output::print(globals.json, &items, list)?;
        }
        CredentialCommand::Unset { project, hosts } => {
            let hosts = hosts
                .iter()
                .map(|host| self::host(host))
                .collect::<Result<Vec<_>, _>>()?;
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            for host in &hosts {
                let deleted = client.delete_credential(&project.id, host).await?;
                output::print(globals.json, &deleted, |reply| {
                    if reply.deleted {
                        format!("removed the credentials for {host}")
                    } else {
                        format!("there are no credentials for {host}")
                    }
                })?;
            }
        }
    }
    Ok(0)
}

/// A token that is never sent helps nobody. What is set is set, also when the project may not be looked at.
async fn warn_of_http(client: &Client, project: &ProjectFound, host: &str) {
    let Ok(view) = client.view_project(&project.id).await else {
        return;
    };
    let mut plain = view
        .repos
        .iter()
        .filter(|repo| plain_server(&repo.url).as_deref() == Some(host));
    if let Some(repo) = plain.next() {
        output::note(&format!(
            "{} is fetched over plain http://, where the token is not sent: everybody on the way could read it. To send it all the same: {}",
            repo.repo_full_name,
            hint::command(["credential", "set", project.name.as_str(), host, "--allow-http"])
        ));
    }
}

/// The server of an address of plain http, with its port where that is not the usual one.
fn plain_server(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok().filter(|url| url.scheme() == "http")?;
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn list(items: &Items<CredentialItem>) -> String {
    if items.items.is_empty() {
        return "no git credentials yet: set one with `hearth credential set PROJECT HOST`".to_owned();
    }
    let row = |item: &CredentialItem| {
        let shown = match (&item.fingerprint, &item.username) {
            (Some(fingerprint), _) => fingerprint.clone(),
            (None, Some(username)) => username.clone(),
            (None, None) => "-".to_owned(),
        };
        let http = if item.allow_http { " (http too)" } else { "" };
        let by = item.last_updated_by_user_id.clone().unwrap_or_else(|| "-".to_owned());
        [
            item.host.clone(),
            format!("{}{http}", item.kind.as_str()),
            shown,
            output::ago(item.updated_at),
            by,
        ]
    };
    output::table(
        ["Host", "Kind", "User or fingerprint", "Set", "By"],
        items.items.iter().map(row),
    )
}

fn credential(args: &SetArgs) -> Result<Credential, Failure> {
    let host = host(&args.host)?;
    let (bytes, from) = match &args.from_file {
        Some(path) => (input::file_bytes(path, input::SECRET)?, path.display().to_string()),
        None if io::stdin().is_terminal() => {
            let prompt = format!("type the token for {host} (it is not shown), then Enter:");
            let line = read_hidden_line(&prompt);
            let line = line.map_err(|error| Failure::new(format!("the token cannot be read: {error}")))?;
            (line.into_bytes(), "what you typed".to_owned())
        }
        None => (input::standard_input_bytes(input::SECRET)?, "standard input".to_owned()),
    };
    let text = String::from_utf8(bytes);
    let text =
        text.map_err(|_| Failure::usage(format!("{from} is not text: it is neither a token nor a private key")))?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err(Failure::usage(format!(
            "{from} is empty: it must hold a token or a private key"
        )));
    }
    let kind = if secret.starts_with(KEY_BEGINS) {
        CredentialKind::Key
    } else {
        CredentialKind::Token
    };
    let secret = CredentialSecret::try_from(secret);
    Ok(Credential {
        host,
        kind,
        username: args.username.clone(),
        secret: secret.map_err(|fault| Failure::usage(format!("{from} is no token and no private key: it {fault}")))?,
        allow_http: args.allow_http,
    })
}

/// A git server, in whatever letters.
fn host(text: &str) -> Result<CredentialHost, Failure> {
    CredentialHost::try_from(text.to_ascii_lowercase()).map_err(|fault| {
        let failure = Failure::usage(format!("`{text}` is no git server: it {fault}"));
        if text.contains('/') {
            failure.hint("name the server alone, without `https://` and without a path")
        } else {
            failure
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_secret_is_can_be_seen_and_a_url_is_no_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let read = |text: &str, host: &str| {
            std::fs::write(&path, text).unwrap();
            credential(&SetArgs {
                project: "p".to_owned(),
                host: host.to_owned(),
                from_file: Some(path.clone()),
                username: None,
                allow_http: false,
            })
        };
        let token = read("ghp_x\n", "GitHub.com").unwrap();
        assert_eq!((token.kind, token.host.as_str()), (CredentialKind::Token, "github.com"));
        assert_eq!(token.secret.as_str(), "ghp_x");
        let key = read("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "h:2222").unwrap();
        assert_eq!(key.kind, CredentialKind::Key);
        for (text, host, says) in [
            ("x", "https://github.com/acme", "without `https://`"),
            (" \n", "github.com", "is empty"),
            ("x", "git hub", "no git server"),
        ] {
            let error = read(text, host).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
