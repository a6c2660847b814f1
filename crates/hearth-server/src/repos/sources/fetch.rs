//! Running git for a grant: what it finds in its environment, what it may speak, and what it may connect to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credential::{Lent, advice as credential_advice};
use super::egress::{Egress, EgressError};
use super::location::{Location, Scheme};
use super::proxy::Proxy;
use super::{Access, Grant, Reach, Refusal, SourceRule, Sources};
use crate::repos::git::{Answer, GitError, Surroundings, git_in};

/// Why a repository cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The rules of the installation.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Git, or what it needs.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Git, with the project's own credential.
    #[error("{source}; {}", credential_advice(.host))]
    WithCredential {
        /// For which host that is.
        host: String,
        /// Git's words.
        source: GitError,
    },
}

/// Nothing is there: no credentials, no keys, no configuration of the server's user.
const NO_HOME: &str = "/nonexistent";
/// All ways of SSH to know who it is, but keys and the one of saying nothing.
const NOBODY: &str = "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=20 -o PKCS11Provider=none -o GSSAPIAuthentication=no \
                      -o HostbasedAuthentication=no -o PermitLocalCommand=no -o ControlPath=none -o ClearAllForwardings=yes \
                      -o StrictHostKeyChecking=accept-new -o CheckHostIP=no";
/// No key.
const NO_KEY: &str = "-o IdentitiesOnly=yes -o IdentityFile=none -o IdentityAgent=none -o PubkeyAuthentication=no";
/// SSH as the server's user, but with the keys of an agent alone.
const OWN_WITH_KEY: &str = "ssh -o BatchMode=yes -o ConnectTimeout=20 -o StrictHostKeyChecking=accept-new";

impl Sources {
    /// Runs `git -C folder command… -- <the address> refs…` as the grant has it.
    pub async fn git(
        &self,
        grant: &Grant,
        folder: &Path,
        command: &[&str],
        refs: &[String],
        patience: Duration,
    ) -> Result<Answer, SourceError> {
        let lent = self.credential(&grant.remote).await?;
        let key = lent.as_ref().and_then(Lent::agent);
        let mut url = grant.remote.url.clone();
        let mut settings: &[&str] = &[];
        let mut proxy = None;
        // git-lfs connects to the loopback past any proxy, and its server says where to.
        let is_strict = command.contains(&"lfs");
        let mut surroundings = match &grant.access {
            Access::Own => Surroundings::with_defaults(key.map(|key| self.own_with_key(key)).into_iter().collect()),
            Access::Lent(location) => {
                // Credentials go to the place that the rule names and to no other.
                settings = &["-c", "http.followRedirects=false"];
                let protocol = ("GIT_ALLOW_PROTOCOL", location.scheme.as_str().to_owned());
                let key = key.map(|key| self.own_with_key(key));
                Surroundings::with_defaults([protocol].into_iter().chain(key).collect())
            }
            Access::Folder { path, rule } => {
                url = self.folder(grant, path, rule)?;
                Surroundings::with_defaults(vec![("GIT_ALLOW_PROTOCOL", "file".to_owned())])
            }
            Access::Network { location, rule } => {
                if rule.as_ref().is_some_and(SourceRule::has_path) {
                    settings = &["-c", "http.followRedirects=false"];
                }
                let egress = Egress {
                    sources: self.clone(),
                    tenant: grant.remote.tenant.clone(),
                    location: location.clone(),
                    is_listed: rule.is_some(),
                };
                match location.scheme {
                    Scheme::Ssh => self.ssh(&egress, location, is_strict, key).await?,
                    _ => {
                        let opened = Proxy::open(egress).await.map_err(GitError::NotRun)?;
                        let surroundings = behind(&opened, is_strict);
                        proxy = Some(opened);
                        surroundings
                    }
                }
            }
        };
        let own = lent.as_ref().map(Lent::settings).unwrap_or_default();
        surroundings.add(lent.as_ref().map(Lent::variables).unwrap_or_default());
        let words = own.iter().map(String::as_str).chain(settings.iter().copied());
        let words = words.chain(command.iter().copied()).chain(["--", url.as_str()]);
        let words = words.chain(refs.iter().map(String::as_str));
        let ended = git_in(&surroundings, folder, words, Vec::new(), patience).await;
        match (ended, proxy.as_ref().and_then(Proxy::error)) {
            (Ok(answer), _) => Ok(answer),
            // Git knows only that a proxy said no.
            (Err(_), Some(EgressError::Refused(refusal))) => Err(refusal.into()),
            (Err(GitError::Failed { stderr, status }), Some(EgressError::Failed(why))) => {
                let stderr = format!("{why}\n{stderr}");
                Err(GitError::Failed { stderr, status }.into())
            }
            (Err(error), _) => Err(error.into()),
        }
        .map_err(|error| match (error, &lent) {
            (SourceError::Git(GitError::Failed { stderr, status }), Some(lent)) => SourceError::WithCredential {
                host: lent.row.host.clone(),
                source: GitError::Failed {
                    stderr: lent.redact(&stderr),
                    status,
                },
            },
            (error, _) => error,
        })
        .map(|answer| match &lent {
            None => answer,
            Some(lent) => Answer {
                stderr: lent.redact(&answer.stderr),
                ..answer
            },
        })
    }

    /// SSH as the server's user is used to, with a project's key. Host keys that are new are kept apart from that user's own.
    fn own_with_key(&self, agent: &Path) -> (&'static str, String) {
        let known_hosts = format!(
            "UserKnownHostsFile=\"{}\" ~/.ssh/known_hosts",
            self.known_hosts_option()
        );
        let options = format!("-o {} {}", quoted(&known_hosts), with_key(agent));
        ("GIT_SSH_COMMAND", format!("{OWN_WITH_KEY} {options}"))
    }

    /// Within an option of SSH, `%` begins a token and blanks part words.
    fn known_hosts_option(&self) -> String {
        self.known_hosts.display().to_string().replace('%', "%%")
    }

    /// Where a path on the server really leads, if that is within what the rule names.
    fn folder(&self, grant: &Grant, path: &Path, rule: &SourceRule) -> Result<String, SourceError> {
        let real = |path: &Path| path.canonicalize().map_err(GitError::NoFolder);
        let (path, root) = (real(path)?, real(Path::new(rule.folder()))?);
        let is_within = path.starts_with(&root);
        let text = path.to_str().filter(|_| is_within).map(str::to_owned);
        text.ok_or_else(|| {
            let place = format!("`{}`", grant.remote.url);
            let why = format!("it leads out of {}", root.display());
            Refusal::by_rule(rule, &grant.remote.tenant, &place, &why).into()
        })
    }

    /// SSH as nobody, to the one address that was checked: it follows nothing to another.
    async fn ssh(
        &self,
        egress: &Egress,
        location: &Location,
        is_strict: bool,
        key: Option<&Path>,
    ) -> Result<Surroundings, SourceError> {
        let Location { host, port, .. } = location;
        let address = match egress.connect(Scheme::Ssh, host, *port).await {
            Ok(stream) => stream.peer_addr().map_err(GitError::NotRun)?.ip(),
            Err(EgressError::Refused(refusal)) => return Err(refusal.into()),
            Err(EgressError::Failed(why)) => return Err(GitError::NoHost(why).into()),
        };
        let alias = if *port == Scheme::Ssh.default_port() {
            host.clone()
        } else {
            format!("[{host}]:{port}")
        };
        let known_hosts = self.known_hosts_option();
        let options = [
            format!("HostName={address}"),
            format!("HostKeyAlias={alias}"),
            format!("UserKnownHostsFile=\"{known_hosts}\""),
        ];
        let options: Vec<_> = options.iter().map(|option| format!("-o {}", quoted(option))).collect();
        let who = key.map_or_else(|| NO_KEY.to_owned(), with_key);
        let command = format!("{NOBODY} {who} {}", options.join(" "));
        let reach = Reach { port: *port, is_strict };
        Ok(alone("ssh", vec![("GIT_SSH_COMMAND", command)], reach))
    }
}

/// SSH with the keys of this agent, and with none that lie about.
fn with_key(agent: &Path) -> String {
    let socket = agent.display().to_string().replace('%', "%%");
    let agent = quoted(&format!("IdentityAgent=\"{socket}\""));
    format!(
        "-o {agent} -o IdentitiesOnly=no -o IdentityFile=none -o ControlPath=none -o PreferredAuthentications=publickey"
    )
}

/// HTTP through the proxy and nowhere else. Which of these a helper reads differs.
fn behind(proxy: &Proxy, is_strict: bool) -> Surroundings {
    let names = [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ];
    let mut variables: Vec<_> = names.into_iter().map(|name| (name, proxy.url())).collect();
    variables.push(("GIT_HTTP_PROXY_AUTHMETHOD", "basic".to_owned()));
    // No helper gets around the proxy by SSH.
    variables.push(("GIT_SSH_COMMAND", "false".to_owned()));
    // Plain HTTP is the proxy's to refuse: it says why.
    let port = proxy.port();
    alone("http:https", variables, Reach { port, is_strict })
}

/// Nothing of the server's user: no configuration, no credential helper, no netrc, no Kerberos ticket.
fn alone(protocols: &str, mut variables: Vec<(&'static str, String)>, reach: Reach) -> Surroundings {
    let fixed = [
        ("GIT_ALLOW_PROTOCOL", protocols),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("HOME", NO_HOME),
        ("XDG_CONFIG_HOME", NO_HOME),
        ("KRB5CCNAME", "FILE:/nonexistent/none"),
    ];
    variables.extend(fixed.map(|(name, value)| (name, value.to_owned())));
    Surroundings::bare(variables, reach)
}

/// One word of a shell's command line.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Where the SSH host keys are kept that were met for others than the first tenant.
#[must_use]
pub fn known_hosts(mirrors: &Path) -> PathBuf {
    mirrors.join("known_hosts")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenSSH makes of a command, for a host.
    fn read_by_ssh(command: &str) -> Vec<String> {
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("{command} -G git.example")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn ssh_uses_the_projects_key_and_none_that_lies_about() {
        let sources = Sources::new(&[], PathBuf::from("/srv/hearth data/100%/known_hosts"));
        let agent = Path::new("/tmp/key 100%/agent");
        let (_, own) = sources.own_with_key(agent);
        let nobody = format!("{NOBODY} {}", with_key(agent));
        for command in [&own, &nobody] {
            let read = read_by_ssh(command);
            for line in [
                "identityagent /tmp/key 100%/agent",
                "identitiesonly no",
                "batchmode yes",
                "pubkeyauthentication true",
                "preferredauthentications publickey",
                "stricthostkeychecking accept-new",
            ] {
                assert!(read.iter().any(|one| one == line), "{line}: {read:#?}");
            }
            let keys = read.iter().filter(|line| line.starts_with("identityfile"));
            assert!(keys.clone().all(|line| line == "identityfile none"), "{read:#?}");
        }
        let known_hosts = read_by_ssh(&own);
        let is_it = |line: &&String| line.starts_with("userknownhostsfile");
        let line = known_hosts.iter().find(is_it).unwrap();
        assert!(
            line.contains("/srv/hearth data/100%/known_hosts") && line.contains(".ssh/known_hosts"),
            "{line}"
        );
        let without = read_by_ssh(&format!("{NOBODY} {NO_KEY}"));
        assert!(
            without.iter().any(|line| line == "pubkeyauthentication false"),
            "{without:#?}"
        );
    }
}
