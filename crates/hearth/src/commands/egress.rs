//! `hearth egress`: what a project's claimed VMs may connect to, and what they were refused.

use clap::{Args, Subcommand};
use hearth_api::egress::{EgressMode, EgressPolicy, InstanceEgress, ProjectEgress, RefusedAttempt};
use hearth_api::values::{EgressHost, EgressNetwork};

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth egress allow web github.com '*.npmjs.org' 203.0.113.0/24
  hearth egress remove web '*.npmjs.org'
  hearth egress open web
  hearth egress allow web 10.20.0.0/16      a private network too: closed otherwise, in both modes
  hearth egress refused last

The policy holds for claimed VMs, from the claim on, and a change for those that run. VMs that are being set up reach everything public.";

/// What to do with egress policies.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum EgressCommand {
    /// Show what a project's claimed VMs may connect to
    Show {
        /// The project's name or id
        project: String,
    },
    /// Let claimed VMs connect to what the list names and to nothing else; adds names and networks to the list
    Allow(ListArgs),
    /// Let claimed VMs connect to everything public; named networks that are closed otherwise are opened
    Open(ListArgs),
    /// Remove names and networks from the list
    Remove(RemoveArgs),
    /// List what a claimed VM was refused
    Refused {
        #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
        id: String,
    },
}

/// `hearth egress allow` and `open`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The project's name or id
    project: String,
    /// Host names (`*.example.org`: all names below it), and IPv4 addresses and networks
    #[arg(value_name = "NAME|NETWORK")]
    entries: Vec<String>,
}

/// `hearth egress remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The project's name or id
    project: String,
    /// Names and networks, as `show` lists them
    #[arg(value_name = "NAME|NETWORK", required = true)]
    entries: Vec<String>,
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Host(EgressHost),
    Network(EgressNetwork),
}

pub(crate) async fn run(globals: &Globals, command: EgressCommand) -> Result<u8, Failure> {
    match command {
        EgressCommand::Show { project } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let policy = client.egress(&project.id).await?;
            output::print(globals.json, &policy, show)?;
        }
        EgressCommand::Allow(args) => add(globals, EgressMode::Allow, &args).await?,
        EgressCommand::Open(args) => add(globals, EgressMode::Open, &args).await?,
        EgressCommand::Remove(args) => remove(globals, &args).await?,
        EgressCommand::Refused { id } => {
            let client = connect::client(globals)?;
            let id = resolve::instance(&client, &id).await?;
            let egress = client.instance_egress(&id).await?;
            output::print(globals.json, &egress, refused)?;
        }
    }
    Ok(0)
}

async fn add(globals: &Globals, mode: EgressMode, args: &ListArgs) -> Result<(), Failure> {
    // Before the server is asked: a mistake in the arguments needs no server to be seen.
    let entries = entries(&args.entries)?;
    change(globals, &args.project, |policy| {
        policy.mode = mode;
        for entry in entries {
            match entry {
                Entry::Host(host) if !policy.hosts.contains(&host) => policy.hosts.push(host),
                Entry::Network(network) if !policy.cidrs.contains(&network) => policy.cidrs.push(network),
                Entry::Host(_) | Entry::Network(_) => {}
            }
        }
        Ok(())
    })
    .await
}

async fn remove(globals: &Globals, args: &RemoveArgs) -> Result<(), Failure> {
    let entries = entries(&args.entries)?;
    change(globals, &args.project, |policy| {
        for entry in entries {
            let before = policy.hosts.len() + policy.cidrs.len();
            let (text, after) = match entry {
                Entry::Host(host) => {
                    policy.hosts.retain(|other| *other != host);
                    (host.to_string(), policy.hosts.len() + policy.cidrs.len())
                }
                Entry::Network(network) => {
                    policy.cidrs.retain(|other| *other != network);
                    (network.to_string(), policy.hosts.len() + policy.cidrs.len())
                }
            };
            if after == before {
                return Err(Failure::new(format!("{text} is not in the list"))
                    .hint("`hearth egress show PROJECT` shows the list"));
            }
        }
        Ok(())
    })
    .await
}

async fn change(
    globals: &Globals,
    project: &str,
    edit: impl FnOnce(&mut EgressPolicy) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, project).await?;
    let before = client.egress(&project.id).await?;
    let mut policy = EgressPolicy {
        mode: before.mode,
        hosts: before.hosts,
        cidrs: before.cidrs,
    };
    edit(&mut policy)?;
    let now = client.put_egress(&project.id, &policy).await?;
    output::print(globals.json, &now, show)
}

fn entries(texts: &[String]) -> Result<Vec<Entry>, Failure> {
    texts.iter().map(|text| entry(text)).collect()
}

/// A name or a network, in whatever letters.
fn entry(text: &str) -> Result<Entry, Failure> {
    let plain = text.to_ascii_lowercase();
    let looks_like_network = plain.contains(':') && !plain.contains("://")
        || plain.bytes().all(|byte| byte.is_ascii_digit() || b"./".contains(&byte));
    let refuse = |fault: String| Failure::usage(format!("`{text}` is no entry of the list: it {fault}"));
    if looks_like_network {
        let network = EgressNetwork::try_from(plain.as_str());
        return network.map(Entry::Network).map_err(|fault| refuse(fault.to_string()));
    }
    let host = EgressHost::try_from(plain.trim_end_matches('.'));
    host.map(Entry::Host).map_err(|fault| {
        let failure = refuse(fault.to_string());
        if text.contains('/') {
            failure.hint("name the host alone, without `https://`, port and path")
        } else {
            failure
        }
    })
}

fn show(policy: &ProjectEgress) -> String {
    let mut lines = vec![match policy.mode {
        EgressMode::Open => {
            let opened = if policy.cidrs.is_empty() {
                ""
            } else {
                "; closed networks that the list names are opened"
            };
            format!("open: claimed VMs reach everything public{opened}")
        }
        EgressMode::Allow if policy.hosts.is_empty() && policy.cidrs.is_empty() => {
            "allow: claimed VMs reach nothing, because the list is empty".to_owned()
        }
        EgressMode::Allow => "allow: claimed VMs reach only".to_owned(),
    }];
    lines.extend(policy.hosts.iter().map(|host| format!("  {host}")));
    lines.extend(policy.cidrs.iter().map(|network| format!("  {network}")));
    let pending = policy.pending.iter();
    lines.extend(pending.map(|one| format!("not in force yet in {}: {}", one.id, one.reason)));
    lines.join("\n")
}

fn refused(egress: &InstanceEgress) -> String {
    let mode = egress.policy.mode.as_str();
    if egress.refused.is_empty() {
        return format!("nothing was refused (policy: {mode})");
    }
    let row = |attempt: &RefusedAttempt| {
        [
            attempt.target.clone(),
            attempt.protocol.as_str().to_owned(),
            attempt.count.to_string(),
            output::ago(attempt.first_at),
            output::ago(attempt.last_at),
        ]
    };
    let table = output::table(
        ["Refused", "By", "Times", "First", "Last"],
        egress.refused.iter().map(row),
    );
    if egress.more {
        format!("{table}\nthere were more places than are kept")
    } else {
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_a_name_or_a_network_and_a_url_is_neither() {
        let host = |text: &str| Entry::Host(EgressHost::try_from(text).unwrap());
        let network = |text: &str| Entry::Network(EgressNetwork::try_from(text).unwrap());
        assert_eq!(entry("*.NPMJS.org").unwrap(), host("*.npmjs.org"));
        assert_eq!(entry("github.com.").unwrap(), host("github.com"));
        assert_eq!(entry("10.0.0.0/8").unwrap(), network("10.0.0.0/8"));
        for (text, says) in [
            ("https://github.com/acme", "without `https://`"),
            ("10.0.0.0/33", "an IPv4 address or network"),
            ("fd00::/8", "VMs have no IPv6"),
            ("a b", "must be a host name"),
        ] {
            let error = entry(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
