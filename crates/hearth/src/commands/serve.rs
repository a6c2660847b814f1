//! `hearth serve`: runs the server in this process, tells local clients where it is, and stops it politely.

mod addresses;
mod log;
mod service;

use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hearth_api::project::VmSize;
use hearth_drivers::VmShape;
use hearth_drivers::qemu::Accel;
use hearth_image::Stores;
use hearth_server::{Address, DriverKind, ServeError, ServeOptions, SourceRule, TlsSource, WebhookSecret};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::serve_incus::IncusArgs;
use super::serve_openid::OpenIdArgs;
use super::serve_servers::ServersArgs;
use super::serve_tls::TlsArgs;
use super::serve_watching::WatchingArgs;
use super::store::DatabaseArg;
use crate::config::{self, Complete};
use crate::failure::{EXIT_USAGE, Failure};
use crate::listen::ListenArg;
use crate::{agent, input, output, places};

/// What webhooks are signed with. Never an argument: every user of a machine can read those.
const SECRET_VARIABLE: &str = "HEARTH_WEBHOOK_SECRET";

const AFTER_HELP: &str = "\
Rules of --source: [tenant=NAME] allow=PATTERN|deny=PATTERN [credentials=server]
  tenant=NAME         whom it is about; without it every tenant but the first, which may fetch from everywhere
  PATTERN             SCHEME://HOST[:PORT][/PATH] with https, ssh or http, or file:///PATH. HOST may be `*.corp.example` or `*`,
                      PORT `*`; a PATH may end with `*`, and without one all of the host is meant
  credentials=server  fetch with the credentials of the server's user (git's credential helpers, SSH keys)

Rules of --openid-rule: CLAIM=VALUE [CLAIM=VALUE ...] scopes=SCOPE[,SCOPE ...] [tenant=NAME]
  CLAIM               what the provider says of somebody: groups, email, sub, realm_access.roles; of a list one is enough
  VALUE               a `*` at its beginning or end stands for anything; an email counts once the provider has checked it
  SCOPE               admin, project:read, project:write, claim
  tenant=NAME         without it the first tenant, default

Every option is also a key of the config file (`hearth config example`) and a variable, like HEARTH_MAX_VMS for --max-vms. The
command line counts first, then the environment, then the file.

The first start writes an admin token to the file admin-token of the data folder. SIGTERM and Ctrl-C stop the server; its VMs
keep running, and the next start finds them. SIGHUP makes it read the config file, the certificate and the webhooks' secret again;
its log says what needs a restart. RUST_LOG sets what is logged, like RUST_LOG=debug.";

/// `hearth serve`.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ServeArgs {
    /// Where to listen: a port, or an address with one; port 0 takes a free one; or `unix:/run/hearth/hearth.sock`, a unix socket for
    /// the server's user and group. May be repeated [default: 127.0.0.1:7717, or the sockets of the service manager]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<ListenArg>,
    /// Keep the server's data in this PostgreSQL database, like `postgres://hearth@db.example/hearth?sslmode=verify-full`. Other users of
    /// this machine can read arguments: a password belongs into HEARTH_DATABASE, the config file or ~/.pgpass. Without it: SQLite, in the
    /// data folder
    #[arg(long, value_name = "URL")]
    database: Option<DatabaseArg>,
    #[command(flatten)]
    servers: ServersArgs,
    /// What makes the VMs: QEMU on this machine, or Incus, on this machine or a cluster (docs/incus.md)
    #[arg(long, value_enum, default_value = "qemu", hide = true)]
    driver: DriverArg,
    #[command(flatten)]
    incus: IncusArgs,
    /// Hardware virtualisation: if it truly works (auto), never (tcg), or else an error (kvm)
    #[arg(long, value_enum, default_value = "auto")]
    accel: AccelArg,
    /// Where repositories without a URL of their own come from: this + `/org/name.git` [default: https://github.com]
    #[arg(long, value_name = "URL", value_parser = parse_base_url)]
    git_base_url: Option<String>,
    /// Where projects of other tenants than the first may fetch from, like `allow=https://git.corp.example` or
    /// `tenant=beta allow=file:///srv/git/*`; may be repeated, the first one that is about an address counts. Without one:
    /// https:// and ssh:// to public addresses, without the server user's credentials (see below)
    #[arg(long = "source", value_name = "RULE")]
    sources: Vec<SourceRule>,
    /// What a VM size means, like `medium=2:4096:20` (vCPUs, memory in MiB, disk in GiB); may be repeated
    #[arg(long = "size", value_name = "NAME=VCPUS:MIB:GIB")]
    sizes: Vec<SizeArg>,
    /// Longest run of one set-up command, in seconds or like `30m` [default: 30m]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    command_timeout: Option<Duration>,
    /// Longest boot until the VM answers, in seconds or like `5m` [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    boot_timeout: Option<Duration>,
    /// Longest wait of a claim, in seconds or like `10m`; one that asks for more gets this [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    longest_claim_wait: Option<Duration>,
    /// Requests per second that one token may make, with bursts of five seconds' worth; 0 sets no limit [default: 100]
    #[arg(long, value_name = "NUMBER")]
    requests_per_second: Option<u32>,
    /// VMs that may be in the making at once [default: half of the processors, at least 2]
    #[arg(long, value_name = "NUMBER")]
    provision_concurrency: Option<usize>,
    /// What checkpoints (frozen VMs that others are forked from) may take on the disk, in MiB [default: 20480]
    #[arg(long, value_name = "MIB")]
    template_disk: Option<u64>,
    /// A template this old is built again, in seconds or like `12h` [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    template_max_age: Option<Duration>,
    /// An image in the data folder that nothing uses, that no project names and that a newer one of its name has replaced is removed
    /// when it is this old, in seconds or like `720h`; 0: never [default: 720h]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    image_max_age: Option<Duration>,
    /// What images in the data folder may take on the disk, in MiB, before such images are removed sooner [default: no limit]
    #[arg(long, value_name = "MIB")]
    image_disk: Option<u64>,
    /// How often a VM is asked whether it still answers, in seconds or like `5m`; one that runs at least once a minute; 0: never
    /// [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    probe_interval: Option<Duration>,
    /// Time between two polls of the branches that pools follow, in seconds or like `5m`; 0: poll once, and then only when a webhook comes
    /// [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    watch_interval: Option<Duration>,
    /// The file with the secret that webhooks at /hooks/git are signed with; without a secret none is taken
    /// [env: HEARTH_WEBHOOK_SECRET, which holds the secret itself]
    #[arg(long, value_name = "FILE")]
    webhook_secret_file: Option<PathBuf>,
    /// VMs that may exist at once [default: 500]
    #[arg(long, value_name = "NUMBER")]
    max_vms: Option<usize>,
    /// VMs that all projects of one tenant may have at once [default: no limit of their own]
    #[arg(long, value_name = "NUMBER")]
    max_vms_per_tenant: Option<usize>,
    /// Memory that all VMs together may have, in MiB [default: three quarters of this machine's]
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Of the memory that a claimed VM may still take up to its size, the share in percent that it counts with, besides what it uses;
    /// 100: it counts with its whole size [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    claimed_reserve: Option<u8>,
    /// A domain whose every name leads to this server: `PORT-ID.DOMAIN` is then a port of a VM
    /// [default: localhost, for clients on this machine]
    #[arg(long, value_name = "DOMAIN", value_parser = parse_domain)]
    ports_domain: Option<String>,
    /// The resolver that the VMs' names are looked up with, like `192.168.1.1` or `192.168.1.1:5353`; not one on this machine's loopback
    /// [default: this machine's own]
    #[arg(long, value_name = "ADDRESS", value_parser = hearth_drivers::parse_resolver)]
    dns_upstream: Option<SocketAddrV4>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Where traces go: the address of a collector that takes OTLP over HTTP, like `http://127.0.0.1:4318` [default: nowhere]
    #[arg(long, value_name = "URL", value_parser = log::parse_endpoint)]
    otlp_endpoint: Option<String>,
    /// The config file [env: HEARTH_CONFIG] [default: /etc/hearth/hearth.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    openid: OpenIdArgs,
    #[command(flatten)]
    watching: WatchingArgs,
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverArg {
    Qemu,
    Incus,
    #[value(hide = true)]
    Fake,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccelArg {
    Auto,
    Tcg,
    Kvm,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// `--size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SizeArg {
    size: VmSize,
    shape: VmShape,
}

impl FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "write it like medium=2:4096:20 (vCPUs, memory in MiB, disk in GiB, none of them 0)".to_owned();
        let (name, shape) = text.split_once('=').ok_or_else(wanted)?;
        let size = name.parse()?;
        let numbers: Vec<u32> = shape
            .split(':')
            .map_while(|part| part.parse().ok().filter(|n| *n > 0))
            .collect();
        match numbers[..] {
            [vcpus, memory_mib, disk_gib] if shape.split(':').count() == 3 => Ok(Self {
                size,
                shape: VmShape {
                    vcpus,
                    memory_mib,
                    disk_gib,
                },
            }),
            _ => Err(wanted()),
        }
    }
}

/// Whole seconds, whole days like `30d`, or a length of time like `90s`, `10m` or `1h 30m`.
pub(crate) fn parse_length(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let days: Option<u64> = text.strip_suffix('d').and_then(|days| days.parse().ok());
    if let Some(seconds) = days.and_then(|days| days.checked_mul(24 * 60 * 60)) {
        return Ok(Duration::from_secs(seconds));
    }
    let length = text.parse::<SignedDuration>().ok();
    length
        .and_then(|length| Duration::try_from(length).ok())
        .ok_or_else(|| "write it in seconds, or like 90s, 10m, 1h or 30d".to_owned())
}

/// An address without credentials: it would be shown to every tenant and stand in every VM as `origin`.
fn parse_base_url(text: &str) -> Result<String, String> {
    let authority = text
        .split_once("://")
        .map_or("", |(_, rest)| rest.split('/').next().unwrap_or(rest));
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    let is_http = text.starts_with("http");
    if user.is_some_and(|user| is_http || user.contains(':')) {
        return Err("it must not hold credentials: use git's credential helper on this machine".to_owned());
    }
    Ok(text.to_owned())
}

/// A host name, without what stands around it in a URL. Below it comes a label of up to 63 characters.
pub(super) fn parse_domain(text: &str) -> Result<String, String> {
    const LONGEST: usize = 189;
    let text = text.trim_start_matches("*.").trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let fits = (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
        fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= LONGEST && text.split('.').all(is_label) {
        Ok(text)
    } else {
        Err("write a host name, like dev.example.org".to_owned())
    }
}

pub(crate) async fn run(args: ServeArgs) -> Result<u8, Failure> {
    let started = config::complete(args.config.as_deref())?;
    let Complete { globals, args, .. } = &started;
    let traces = log::start(args.log_format, args.otlp_endpoint.as_deref())?;
    if let Some(file) = &started.file {
        tracing::info!("settings are read from {}", file.display());
    }
    let data_dir = places::data_dir(globals);
    let mut options = options(args, data_dir.clone());
    options.shared_images = places::shared_images();
    options.webhook_secret = webhook_secret(args)?;
    options.openid = args.openid.settings()?;
    options.database = args.database.as_ref().map(DatabaseArg::url).transpose()?;
    options.advertise = args.servers.advertise();
    options.peer_authority = args.servers.peer_authority()?;
    options.listen = addresses::listen(args, options.listen)?;
    let has_tls = options.tls.is_some();
    let makes_vms = matches!(args.driver, DriverArg::Qemu | DriverArg::Incus);
    let control = options.control.clone();
    let shutdown = CancellationToken::new();
    let reload = service::Reload {
        control: control.clone(),
        data_dir: data_dir.clone(),
        started,
    };
    service::on_signals(shutdown.clone(), reload)?;
    // Kept until the server has ended: it says that we live.
    let mut registration = None;
    let ready = |addresses: &[Address]| {
        let urls: Vec<String> = addresses
            .iter()
            .map(|address| addresses::url(address, has_tls))
            .collect();
        let nearest = addresses::local_url(addresses, has_tls).or_else(|| urls.first().cloned());
        registration = nearest.and_then(|url| addresses::register(url, &data_dir));
        for (address, url) in addresses.iter().zip(&urls) {
            addresses::say_where(address, url, &data_dir);
        }
        if makes_vms {
            say_image(&places::images(&data_dir));
        }
        service::tell_ready(&urls.join(", "));
        service::keep_watchdog(&control);
    };
    let served = hearth_server::serve(options, ready, shutdown).await;
    drop(registration);
    traces.end().await;
    served.map(|()| 0).map_err(|error| refused(&error))
}

/// What VMs start from; without it pools stay empty.
fn say_image(images: &Stores) {
    match images.find(None) {
        Ok(image) => tracing::info!(
            "VMs start from the image {} {} in {}",
            image.manifest.name,
            output::short_digest(&image.manifest.digest),
            image.folder.display()
        ),
        Err(error) => tracing::warn!("no VM can be made: {error}"),
    }
}

/// Why the server does not start or ended, with what to do.
fn refused(error: &ServeError) -> Failure {
    let failure = Failure::new(hearth_api::error::chain(error));
    match error {
        ServeError::DataDir { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                failure.hint("name a folder that this user may write to with --data-dir, or run the server as the folder's owner")
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                failure.hint("a file is in the way: name another folder with --data-dir")
            }
            ErrorKind::StorageFull => failure.hint("free some space, or name a folder on another disk with --data-dir"),
            _ => failure.hint("name another folder with --data-dir"),
        },
        ServeError::Listen { source, .. } => match source.kind() {
            ErrorKind::AddrInUse => failure.hint(
                "another program listens there, perhaps another Hearth server (`hearth doctor` finds out); --listen 0 takes a free port",
            ),
            ErrorKind::PermissionDenied => failure.hint("ports below 1024 are root's: choose a larger one"),
            ErrorKind::AddrNotAvailable => {
                failure.hint("this machine has no such address: 127.0.0.1 is itself alone, 0.0.0.0 all of its addresses")
            }
            _ => failure,
        },
        // Starting again does not help.
        ServeError::Tls(_) => failure.with_code(EXIT_USAGE).hint(
            "--tls-cert names the certificate and those up to its authority's, --tls-key its key, --acme-ca an authority's certificate; all are \
             PEM and readable for this user",
        ),
        _ => failure,
    }
}

/// From the file, or else from the environment.
/// What is wrong with settings whose words are right, and what the server would therefore not start with.
pub(crate) fn unusable(args: &ServeArgs) -> Vec<String> {
    let said = |failure: Failure| failure.into_parts().0;
    let tls = match args.tls.source() {
        Some(TlsSource::Files(files)) => files.check().map_err(|error| error.to_string()),
        _ => Ok(()),
    };
    let all = [
        tls,
        webhook_secret(args).map(drop).map_err(said),
        args.openid.settings().map(drop).map_err(said),
        args.database
            .as_ref()
            .map_or(Ok(()), |database| database.url().map(drop))
            .map_err(said),
        args.servers.peer_authority().map(drop).map_err(said),
    ];
    all.into_iter().filter_map(Result::err).collect()
}

fn webhook_secret(args: &ServeArgs) -> Result<Option<WebhookSecret>, Failure> {
    let (text, from) = if let Some(file) = &args.webhook_secret_file {
        let from = format!("the webhook secret's file {}", file.display());
        (input::secret(file, &from)?, from)
    } else {
        match std::env::var(SECRET_VARIABLE) {
            Ok(text) if !text.is_empty() => (text, SECRET_VARIABLE.to_owned()),
            Ok(_) | Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::new(format!("{SECRET_VARIABLE} is not text (UTF-8)")));
            }
        }
    };
    let advice = "make one with `openssl rand -hex 32`";
    let Some(secret) = WebhookSecret::new(&text) else {
        return Err(Failure::new(format!("{from} holds no secret")).hint(advice));
    };
    if secret.is_short() {
        tracing::warn!("the webhook secret is short and could be guessed; {advice}");
    }
    Ok(Some(secret))
}

fn options(args: &ServeArgs, data_dir: PathBuf) -> ServeOptions {
    let usual = ServeOptions::new(data_dir);
    let mut sizes = usual.sizes;
    for arg in &args.sizes {
        sizes.set(arg.size, arg.shape);
    }
    let options = ServeOptions {
        tls: args.tls.source(),
        driver: match args.driver {
            DriverArg::Qemu => DriverKind::Qemu,
            DriverArg::Incus => DriverKind::Incus,
            DriverArg::Fake => DriverKind::Fake,
        },
        incus: args.incus.settings(),
        agent: agent::for_incus(),
        accel: match args.accel {
            AccelArg::Auto => Accel::Auto,
            AccelArg::Tcg => Accel::Tcg,
            AccelArg::Kvm => Accel::Kvm,
        },
        git_base_url: args.git_base_url.clone().unwrap_or(usual.git_base_url),
        sources: args.sources.clone(),
        sizes,
        command_timeout: args.command_timeout.unwrap_or(usual.command_timeout),
        boot_timeout: args.boot_timeout.unwrap_or(usual.boot_timeout),
        longest_claim_wait: args.longest_claim_wait.unwrap_or(usual.longest_claim_wait),
        requests_per_second: args.requests_per_second.unwrap_or(usual.requests_per_second),
        provision_concurrency: args.provision_concurrency.unwrap_or(usual.provision_concurrency),
        max_vms: args.max_vms.unwrap_or(usual.max_vms),
        tenant_vms: args.max_vms_per_tenant,
        template_disk_mib: args.template_disk.unwrap_or(usual.template_disk_mib),
        claimed_reserve: args.claimed_reserve.unwrap_or(usual.claimed_reserve),
        image_max_age: args.image_max_age.unwrap_or(usual.image_max_age),
        image_disk_mib: args.image_disk,
        probe_interval: args.probe_interval.unwrap_or(usual.probe_interval),
        template_max_age: args.template_max_age.unwrap_or(usual.template_max_age),
        watch_interval: args.watch_interval.unwrap_or(usual.watch_interval),
        memory_mib: args.memory.unwrap_or(usual.memory_mib),
        ports_domain: args.ports_domain.clone().or(usual.ports_domain),
        dns_upstream: args.dns_upstream,
        ..usual
    };
    args.watching.set(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_host_names() {
        for (text, domain) in [
            ("dev.example.org", "dev.example.org"),
            ("*.Dev.example.org.", "dev.example.org"),
        ] {
            assert_eq!(parse_domain(text).as_deref(), Ok(domain));
        }
        for text in [
            "",
            ".",
            "https://dev.example.org",
            "dev.example.org:80",
            "a_b.org",
            "-a.org",
            &"a".repeat(64),
        ] {
            assert!(parse_domain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_whole_or_refused() {
        let size: SizeArg = "medium=2:4096:20".parse().unwrap();
        let shape = VmShape {
            vcpus: 2,
            memory_mib: 4096,
            disk_gib: 20,
        };
        assert_eq!(
            size,
            SizeArg {
                size: VmSize::Medium,
                shape
            }
        );
        for text in [
            "medium",
            "medium=2",
            "medium=2:1:1:1",
            "medium=2:x:1",
            "medium=0:1:1",
            "tiny=1:1:1",
        ] {
            assert!(text.parse::<SizeArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_of_time_are_seconds_or_have_units() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("1h 30m", 5400)] {
            assert_eq!(parse_length(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "-1", "-1h", "soon", "1.5", "99999999999999999999"] {
            assert!(parse_length(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_base_url_holds_no_credentials() {
        for good in ["https://git.example.org/x@y", "ssh://git@h:22/srv", "file:///srv/git"] {
            assert_eq!(parse_base_url(good), Ok(good.to_owned()));
        }
        for bad in ["https://token@h", "http://u:p@h/x", "ssh://u:p@h"] {
            assert!(parse_base_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_command_line_says_reaches_the_server() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            serve: ServeArgs,
        }
        let said = |words: &[&str]| {
            let line: Line = clap::Parser::parse_from([&["x"], words].concat());
            options(&line.serve, PathBuf::from("data"))
        };
        let given = said(&[
            "--requests-per-second",
            "0",
            "--longest-claim-wait",
            "10m",
            "--boot-timeout",
            "7",
            "--watch-interval",
            "0",
            "--source",
            "deny=ssh://*",
            "--source",
            "tenant=beta allow=file:///srv/git/*",
        ]);
        let rules: Vec<_> = given.sources.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["deny=ssh://*", "tenant=beta allow=file:///srv/git/*"]);
        assert_eq!(given.watch_interval, Duration::ZERO);
        assert_eq!(given.requests_per_second, 0);
        assert_eq!(given.longest_claim_wait, Duration::from_secs(600));
        assert_eq!(given.boot_timeout, Duration::from_secs(7));
        // What the help calls the defaults.
        let usual = said(&[]);
        assert_eq!(usual.watch_interval, Duration::from_secs(60));
        assert_eq!(usual.requests_per_second, 100);
        assert_eq!(usual.longest_claim_wait, Duration::from_secs(3600));
        assert_eq!(usual.command_timeout, Duration::from_secs(1800));
        assert_eq!(usual.boot_timeout, Duration::from_secs(300));
    }

    #[test]
    fn the_webhook_secret_comes_from_a_file_that_holds_one() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            serve: ServeArgs,
        }
        let folder = tempfile::tempdir().unwrap();
        let read = |content: Option<&str>| {
            let file = folder.path().join("secret");
            match content {
                Some(content) => std::fs::write(&file, content).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let line: Line =
                clap::Parser::parse_from(["x".into(), "--webhook-secret-file".into(), file.into_os_string()]);
            webhook_secret(&line.serve)
        };
        let secret = read(Some("0123456789abcdef\n")).unwrap().unwrap();
        assert!(!secret.is_short());
        assert!(read(Some("short")).unwrap().unwrap().is_short());
        assert!(read(Some(" \n")).is_err());
        assert!(read(None).is_err());
    }
}
