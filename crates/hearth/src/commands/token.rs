//! `hearth token`: create, list, revoke.

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::token::{CreateToken, Scope, TokenItem};
use hearth_api::values::Name;
use jiff::{Span, Timestamp};

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::{clean_line, clean_lines};
use crate::{connect, hint, output};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token. Its secret is printed this once and never again
    Create(CreateArgs),
    /// List the tokens (never the secrets)
    List,
    /// Make a token stop working
    Revoke {
        /// The tokens, each by its name or its id
        #[arg(required = true, value_name = "NAME|ID")]
        tokens: Vec<String>,
    },
}

/// `hearth token create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What it is for
    name: Name,
    /// What it is used for: says what it may do
    #[arg(
        long = "for",
        value_name = "USE",
        value_enum,
        required_unless_present = "scopes",
        conflicts_with = "scopes"
    )]
    used_for: Option<Use>,
    /// What it may do, said one by one: admin, project:read, project:write, claim; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<Scope>,
    /// Whose it is: VMs claimed with it get the personal variables of this user, and commits are theirs (default: of an admin
    /// token you; any other is an owner of its own, called as the token is)
    #[arg(long, value_name = "USER")]
    owner: Option<Name>,
    /// Only for this project (name or id); without it the token works in all projects of its tenant, later ones included
    #[arg(long)]
    project: Option<String>,
    /// For all projects of its tenant, later ones included: what is so without --project, and must be said for an agent
    #[arg(long, conflicts_with = "project")]
    all_projects: bool,
    /// Only for projects whose names begin so: it sees and makes no others. Not for --for admin
    #[arg(long, value_name = "PREFIX", conflicts_with = "all_projects")]
    name_prefix: Option<Name>,
    /// So many VMs its claims may hold at once, and a pool that it sets is no larger. Not for --for admin
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_vms: Option<u32>,
    /// When it stops working: a time span like `30d` or `12h`, or a time like 2030-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    expires: Option<Timestamp>,
    /// The tenant it belongs to (default: yours)
    #[arg(long)]
    tenant: Option<Name>,
}

/// `--for`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Use {
    /// A coding agent: takes VMs and works in those it took (scope claim). Needs --project, or --all-projects
    Agent,
    /// A pipeline: sees and changes projects, sets pools up, takes VMs (project:read, project:write, claim)
    Ci,
    /// A dashboard or a guest: sees everything and changes nothing (project:read)
    Viewer,
    /// A person who runs the pools: everything, tokens included (admin)
    Admin,
}

impl Use {
    fn scopes(self) -> Vec<Scope> {
        match self {
            Self::Agent => vec![Scope::Claim],
            Self::Ci => vec![Scope::ProjectRead, Scope::ProjectWrite, Scope::Claim],
            Self::Viewer => vec![Scope::ProjectRead],
            Self::Admin => vec![Scope::Admin],
        }
    }
}

impl CreateArgs {
    /// A person who makes a token for an agent says which projects it may use.
    fn check_reach(&self) -> Result<(), Failure> {
        if matches!(self.used_for, Some(Use::Agent))
            && self.project.is_none()
            && self.name_prefix.is_none()
            && !self.all_projects
        {
            return Err(
                Failure::usage("say which projects the agent may take VMs of").hint(format!(
                    "`{} --project PROJECT` for one, --name-prefix for those whose names begin so, --all-projects for every one of the tenant",
                    hint::command(["token", "create", self.name.as_str(), "--for", "agent"])
                )),
            );
        }
        Ok(())
    }
}

/// What a person must know of a new token before it is given away.
fn describe(item: &TokenItem, project: Option<&ProjectFound>) -> String {
    let mut lines = vec![format!("token {} ({}) of the owner {}", item.name, item.id, item.owner)];
    lines.push(match project {
        Some(project) => format!("it works in the project {} only", project.name),
        None if item.name_prefix.is_some() => format!(
            "it works in the projects whose names begin with {}",
            item.name_prefix.as_deref().unwrap_or_default()
        ),
        None => format!(
            "it works in all projects of the tenant {}, later ones included",
            item.tenant
        ),
    });
    if let Some(most) = item.max_vms {
        lines.push(format!("its claims hold {} at once at most", output::count(most, "VM")));
    }
    let may_claim = |scope: &Scope| matches!(scope, Scope::Admin | Scope::Claim);
    if item.scopes.iter().any(may_claim) {
        lines.push(format!(
            "VMs claimed with it get the shared variables, and the personal ones of {}",
            item.owner
        ));
    }
    lines.push("keep it, it is not shown again:".to_owned());
    clean_lines(&lines.join("\n")).join("\n")
}

pub(crate) async fn run(globals: &Globals, command: TokenCommand) -> Result<u8, Failure> {
    if let TokenCommand::Create(args) = &command {
        // Before the server is asked: a mistake in the arguments needs no server to be seen.
        args.check_reach()?;
    }
    let client = connect::client(globals)?;
    match command {
        TokenCommand::Create(args) => {
            let project = match &args.project {
                Some(project) => Some(connect::project(&client, project).await?),
                None => None,
            };
            let body = CreateToken {
                name: args.name,
                scopes: args.used_for.map_or(args.scopes, Use::scopes),
                owner: args.owner,
                project_id: project.as_ref().map(|project| project.id.clone()),
                name_prefix: args.name_prefix,
                max_vms: args.max_vms,
                expires_at: args.expires,
                tenant: args.tenant,
            };
            let created = client.create_token(&body).await?;
            if !globals.json {
                output::note(&describe(&created.item, project.as_ref()));
            }
            // Alone on its line, so that TOKEN=$(hearth token create …) works.
            output::print(globals.json, &created, |created| created.token.clone())?;
        }
        TokenCommand::List => {
            let tokens = client.list_tokens().await?;
            let names = match globals.json {
                true => BTreeMap::new(),
                false => project_names(&client, &tokens).await,
            };
            output::print(globals.json, &tokens, |tokens| list(tokens, &names))?;
        }
        TokenCommand::Revoke { tokens } => {
            let all = client.list_tokens().await?.items;
            // All are found before the first one stops working.
            let found: Vec<&TokenItem> = tokens
                .iter()
                .map(|wanted| named(&all, wanted))
                .collect::<Result<_, _>>()?;
            for item in found {
                output::print(globals.json, &client.revoke_token(&item.id).await?, |reply| {
                    format!("revoked {} ({})", item.name, reply.id)
                })?;
            }
        }
    }
    Ok(0)
}

/// The token that a person means: by its id, or by its name where only one has it.
fn named<'a>(all: &'a [TokenItem], wanted: &str) -> Result<&'a TokenItem, Failure> {
    if let Some(item) = all.iter().find(|item| item.id.as_str() == wanted) {
        return Ok(item);
    }
    let mut matching = all.iter().filter(|item| item.name == wanted).peekable();
    match (matching.next(), matching.peek()) {
        (Some(item), None) => Ok(item),
        (None, _) => Err(
            Failure::new(format!("there is no token with the name or id `{wanted}`")).hint("see `hearth token list`"),
        ),
        (Some(first), Some(_)) => {
            let several: Vec<&TokenItem> = std::iter::once(first).chain(matching).collect();
            let mut failure = Failure::usage(format!(
                "{} are named `{wanted}`",
                output::count(several.len() as u64, "token")
            ))
            .hint("use the id instead of the name");
            for item in several {
                failure = failure.detail(format!(
                    "{}  {}, made {}, {}",
                    item.id,
                    item.owner,
                    output::ago(item.created_at),
                    ends(item)
                ));
            }
            Err(failure)
        }
    }
}

/// When a token stops working, or that it has.
fn ends(item: &TokenItem) -> String {
    match item.expires_at {
        None => "never ends".to_owned(),
        Some(at) if at <= Timestamp::now() => format!("expired {}", output::ago(at)),
        Some(at) => format!("{at:.0}"),
    }
}

/// The names of the projects that tokens are for. One whose name cannot be had is shown by its id.
async fn project_names(client: &Client, tokens: &Items<TokenItem>) -> BTreeMap<ProjectId, String> {
    if tokens.items.iter().all(|token| token.project_id.is_none()) {
        return BTreeMap::new();
    }
    let projects = client.list_all_projects().await.unwrap_or_default();
    projects.into_iter().map(|project| (project.id, project.name)).collect()
}

fn list(items: &Items<TokenItem>, names: &BTreeMap<ProjectId, String>) -> String {
    let row = |item: &TokenItem| {
        let scopes: Vec<&str> = item.scopes.iter().map(|scope| scope.as_str()).collect();
        [
            item.name.clone(),
            item.id.to_string(),
            item.owner.clone(),
            scopes.join(" "),
            match &item.project_id {
                Some(id) => names.get(id).map_or_else(|| id.to_string(), |name| clean_line(name)),
                None => match &item.name_prefix {
                    Some(prefix) => clean_line(&format!("{prefix}*")),
                    None => "all".to_owned(),
                },
            },
            output::ago_or(item.last_used_at, "never"),
            ends(item),
        ]
    };
    output::table(
        ["Name", "Id", "Owner", "Scopes", "Project", "Used", "Ends"],
        items.items.iter().map(row),
    )
}

/// A point in time, or a span from now. Days count 24 hours here: a token needs no calendar.
fn parse_when(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wanted = || format!("`{text}` is neither a span like 30d or 12h nor a time like 2030-01-31T12:00:00Z");
    let span: Span = text.parse().map_err(|_| wanted())?;
    let length = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(|_| wanted())?;
    if !length.is_positive() {
        return Err("that is in the past".to_owned());
    }
    Timestamp::now().checked_add(length).map_err(|_| wanted())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_times_both_work() {
        let hour = Timestamp::now()
            .checked_add(jiff::SignedDuration::from_hours(1))
            .unwrap();
        let parsed = parse_when("1h").unwrap();
        assert!((parsed - hour).as_secs().abs() < 5);
        assert!(parse_when("30d").unwrap() > hour);
        assert_eq!(
            parse_when("2030-01-31T12:00:00Z").unwrap().to_string(),
            "2030-01-31T12:00:00Z"
        );
        for text in ["soon", "-1h", ""] {
            assert!(parse_when(text).is_err(), "{text}");
        }
    }
}
