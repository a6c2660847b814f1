//! The command line as a whole: what is common to all commands, and the list of them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hearth_api::project::GitIdentity;
use hearth_api::values::{Email, GitName};

use crate::commands::{
    audit, backup, checkpoint, claim, claims, completion, config, cp, credential, doctor, egress, env, events, exec,
    fork, forward, history, image, import, instance, logs, ls, man, mcp, pause, pool, ports, project, relay, release,
    run, serve, server, session, setup, shell, ssh, store, template, token, top, uninstall, webhook,
};

const AFTER_HELP: &str = "\
Finding the server: --url and --token-file, then HEARTH_URL and HEARTH_TOKEN, then the server that runs on this machine
under your user (if several run: choose with --data-dir or HEARTH_DATA_DIR).

Exit codes:
  0    it worked
  1    it did not: the server said no, a test boot failed, doctor found a fault
  2    the arguments make no sense
  3    no server found, or it does not answer
  4    the token is missing, unknown or may not do this
  5    nothing is ready or the server is busy: try again later
  130  ended by Ctrl-C
`hearth exec`, `hearth run` and `hearth shell` end with the exit code of what they ran (128 + n when signal n ended it); 124 when
the command's time passed, 125 when Hearth failed and not the command.";

/// Keeps virtual machines warm: created, set up with your repositories and variables, ready to be claimed.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, after_help = AFTER_HELP, propagate_version = true, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Who makes the commits.
#[derive(Debug, Clone, Args)]
pub(crate) struct GitIdentityArgs {
    /// Git's `user.name` in the VMs (default: the project's, else the owner of the claiming token)
    #[arg(long, value_name = "NAME", requires = "git_email")]
    git_name: Option<GitName>,
    /// Git's `user.email` in the VMs
    #[arg(long, value_name = "ADDRESS", requires = "git_name")]
    git_email: Option<Email>,
}

impl GitIdentityArgs {
    pub(crate) fn identity(self) -> Option<GitIdentity> {
        let (name, email) = (self.git_name?, self.git_email?);
        Some(GitIdentity { name, email })
    }
}

/// Options of every command.
#[derive(Clone, Args)]
pub(crate) struct Globals {
    /// The server's address, like http://127.0.0.1:7717 or unix:/run/hearth/hearth.sock [env: HEARTH_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Server")]
    pub(crate) url: Option<String>,
    /// The API token. Other users of this machine can read arguments: better use --token-file or the variable
    /// [env: HEARTH_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Server")]
    pub(crate) token: Option<String>,
    /// A file that holds the API token
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "token",
        help_heading = "Server"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// The authority that signed the server's certificate, PEM, where this machine does not know it [env: HEARTH_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Server")]
    pub(crate) ca: Option<PathBuf>,
    /// The server's data folder. `serve` and `image`: where it is (default: /var/lib/hearth for root, else
    /// ~/.local/share/hearth). Others: choose the local server that uses it [env: HEARTH_DATA_DIR]
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Server")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Print the API's JSON instead of text for people; errors are JSON too, one line on standard error
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
}

impl std::fmt::Debug for Globals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Globals")
            .field("url", &self.url)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Serve(Box<serve::ServeArgs>),
    /// Check what this machine can do, and say for each finding what to do
    Doctor(doctor::DoctorArgs),
    /// The images that VMs are made from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Projects: repositories, variables, set-up
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// A project's setup object: what its VMs are and what runs in them, repository by repository
    #[command(subcommand)]
    Setup(setup::SetupCommand),
    /// A project's environment variables
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// A project's warm pool
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Claim a VM from a project's pool
    Claim(claim::ClaimArgs),
    /// List the claims that have not ended: task, owner, what is left of the lease, age
    Claims(claims::ClaimsArgs),
    /// Show what is in a VM: checkouts, commands with a name, terminals, previews
    Instance(instance::InstanceArgs),
    /// Run a command in a VM
    Exec(exec::ExecArgs),
    /// Open a terminal in a VM
    Shell(shell::ShellArgs),
    /// Run a command of the project's setup object in a VM, by its name
    Run(run::RunArgs),
    /// Copy files and folders into a VM or out of it
    Cp(cp::CpArgs),
    /// List what a folder in a VM holds
    Ls(ls::LsArgs),
    /// What sessions and background processes in a VM print
    Logs(logs::LogsArgs),
    /// List the sessions in a VM: commands that run detached, and terminals
    Ps(session::ps::PsArgs),
    /// Attach to a session in a VM
    Attach(session::attach::AttachArgs),
    /// Send a signal to a session in a VM
    Kill(session::kill::KillArgs),
    /// Wait until a session in a VM has ended
    Wait(session::wait::WaitArgs),
    /// Give a claimed VM back: it is destroyed
    Release(release::ReleaseArgs),
    /// Templates: the frozen VMs that others are forked from
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// API tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// A project's git credentials: tokens and deploy keys, by git server
    #[command(subcommand)]
    Credential(credential::CredentialCommand),
    /// Print what a shell needs to complete commands, options, and the names of VMs, projects and sessions
    Completion(completion::CompletionArgs),
    /// Print the OpenAPI document of the HTTP API; needs no server
    Openapi,
    /// List what listens in a VM, with its process and URL, and its previews
    Ports(ports::PortsArgs),
    /// Make a link to a port of a VM that works in a browser without a token
    Share(ports::ShareArgs),
    /// Make ports of a VM ports of this machine, for as long as it runs
    Forward(forward::ForwardArgs),
    /// Open an SSH session in a VM with your own ssh
    Ssh(ssh::SshArgs),
    /// Print the lines for ~/.ssh/config with which ssh, scp, rsync and editors reach VMs
    SshConfig(ssh::ConfigArgs),
    /// Connect ssh to a VM: what `ProxyCommand` runs
    SshProxy(ssh::ProxyArgs),
    /// Pause a claimed VM: it costs no processor, and the next command in it resumes it
    Pause(pause::PauseArgs),
    /// Resume a claimed VM that is paused
    Resume(pause::ResumeArgs),
    /// What a project's claimed VMs may connect to, and what they were refused
    #[command(subcommand)]
    Egress(egress::EgressCommand),
    /// Write the manual pages
    Man(man::ManArgs),
    /// Make running copies of a claimed VM, each with a claim of its own
    Fork(fork::ForkArgs),
    /// Named checkpoints of claimed VMs: make, list, delete, restore
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// All pools, claims and the host's memory on one screen, as they change
    Top(top::TopArgs),
    /// The server's config file: check it, print an example
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Write a backup of the server's data, while it runs
    Backup(backup::BackupArgs),
    /// Make a new data folder of a backup
    Restore(backup::RestoreArgs),
    /// Where the server's data are kept: move them from SQLite to PostgreSQL
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// The servers that share one database: which are alive, and where pools are at home (admins)
    #[command(subcommand)]
    Server(server::ServerCommand),
    /// Remove a server's data folder, its VMs and what else it has on this machine
    Uninstall(uninstall::UninstallArgs),
    /// What happened to projects, pools, instances and claims, and why; with --follow what happens
    Events(events::EventsArgs),
    /// Who did what, newest first: every request that changed something or entered a VM, with its result (admins)
    Audit(audit::AuditArgs),
    /// What was claimed and made in a project, also when it is gone: why a claim was not warm, why a boot failed, with its log
    History(history::HistoryArgs),
    /// Webhooks: events are posted to a URL, signed, tried again, logged (admins)
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// Hooks that give the self-hosted runners of cloud agents one VM per order
    #[command(subcommand)]
    Relay(relay::RelayCommand),
    /// Tools for agents over standard input and output (Model Context Protocol)
    Mcp(mcp::McpArgs),
    /// Read what a repository already says about its set-up: devcontainer.json, a Dockerfile, lock files and others
    #[command(after_help = import::AFTER_HELP)]
    Import(import::ImportArgs),
}
