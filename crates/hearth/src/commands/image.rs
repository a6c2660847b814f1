//! `hearth image`: build, list and remove the images in a data folder. Asks no server: the one on this machine finds them there.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use hearth_drivers::image::{self, BuildOptions, Image, ImageError, Listed, Manifest, Progress, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::serve::data_dir;
use crate::args::Globals;
use crate::failure::{EXIT_SIGNAL_BASE, Failure};
use crate::text::clean_line;
use crate::{connect, output};

/// The agent's file name beside our own binary.
const AGENT_FILE: &str = "hearth-agent";
/// Where a package would put the agent.
const AGENT_INSTALLED: &str = "/usr/lib/hearth/hearth-agent";
/// Without a terminal: the shortest time between two lines that only count.
const COUNT_PAUSE: Duration = Duration::from_secs(10);
/// How often the clock of a running stage moves.
const TICK: Duration = Duration::from_millis(100);

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make a Debian image with the agent inside; done at once when nothing has changed
    Build(BuildArgs),
    /// List the images
    List,
    /// Remove an image that no VM lies on; the newest one is what projects without an image of their own start from
    Remove(RemoveArgs),
}

/// `hearth image remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The beginning of its digest, or its name
    image: String,
}

/// `hearth image build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Packages besides the usual ones
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    packages: Vec<String>,
    /// A name for people [default: debian-SUITE]
    #[arg(long)]
    name: Option<String>,
    /// The Debian release
    #[arg(long, default_value = image::DEFAULT_SUITE)]
    suite: String,
    /// Where packages come from
    #[arg(long, value_name = "URL", default_value = image::DEFAULT_MIRROR)]
    mirror: String,
    /// Where security updates come from
    #[arg(long, value_name = "URL", default_value = image::DEFAULT_SECURITY_MIRROR)]
    security_mirror: String,
    /// The agent's static binary [default: hearth-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where downloaded packages are kept [default: cache in the data folder]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Fetch the newest versions of the packages even when nothing else changed
    #[arg(long)]
    refresh: bool,
}

pub(crate) async fn run(globals: &Globals, command: ImageCommand) -> Result<u8, Failure> {
    let data = data_dir(globals);
    match command {
        ImageCommand::Build(args) => build(globals, &data, args).await,
        ImageCommand::List => {
            let listed = image::list(&data.join("images")).map_err(|error| failure(&error))?;
            for (folder, reason) in &listed.broken {
                output::note(&format!("{} is no whole image: {reason}", folder.display()));
            }
            let manifests: Vec<&Manifest> = listed.images.iter().map(|image| &image.manifest).collect();
            output::print(globals.json, &manifests, |_| list(&listed))?;
            Ok(0)
        }
        ImageCommand::Remove(args) => remove(globals, &data, &args.image),
    }
}

fn remove(globals: &Globals, data: &Path, wanted: &str) -> Result<u8, Failure> {
    let images = data.join("images");
    let found = image::find(&images, Some(wanted)).map_err(|error| failure(&error))?;
    let used = hearth_drivers::qemu::images_in_use(data)
        .map_err(|error| Failure::new(format!("the VMs in {} cannot be looked at: {error}", data.display())))?;
    if let Some(count) = used.get(&found.manifest.digest) {
        let are = if *count == 1 {
            "1 VM lies"
        } else {
            &format!("{count} VMs lie")
        };
        return Err(Failure::new(format!(
            "{are} on the image {}",
            output::short_digest(&found.manifest.digest)
        ))
        .hint("wait until they are replaced, or remove them with `hearth pool clear` and `hearth release`"));
    }
    let removed = image::remove(&images, &found.manifest.digest).map_err(|error| failure(&error))?;
    output::print(globals.json, &removed, |removed| {
        format!("removed {} {}", removed.name, output::short_digest(&removed.digest))
    })?;
    Ok(0)
}

async fn build(globals: &Globals, data: &Path, args: BuildArgs) -> Result<u8, Failure> {
    let agent = agent_path(args.agent)?;
    let cache = args
        .cache_dir
        .map_or_else(|| data.join("cache/packages"), |folder| connect::absolute(&folder));
    let mut options = BuildOptions::new(data.join("images"), cache, agent);
    options.name = args.name;
    options.suite = args.suite;
    options.extra_packages = args.packages;
    options.mirror = args.mirror;
    options.security_mirror = args.security_mirror;
    options.refresh = args.refresh;

    let cancel = CancellationToken::new();
    cancel_on_signals(cancel.clone())?;
    let picture = Picture::new();
    let started = Instant::now();
    let built = image::build(&options, &|progress| picture.show(&progress), cancel).await;
    picture.done();
    let manifest = match built {
        Err(ImageError::Cancelled) => {
            output::note("stopped; what was downloaded is kept for the next build");
            return Ok(EXIT_SIGNAL_BASE + nix::libc::SIGINT as u8);
        }
        built => built.map_err(|error| failure(&error))?,
    };
    output::print(globals.json, &manifest, |manifest| {
        format!(
            "image {} {} after {}",
            manifest.name,
            output::short_digest(&manifest.digest),
            output::duration(started.elapsed())
        )
    })?;
    Ok(0)
}

fn cancel_on_signals(cancel: CancellationToken) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be received: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    Ok(())
}

fn agent_path(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path);
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join(AGENT_FILE)));
    beside
        .into_iter()
        .chain([PathBuf::from(AGENT_INSTALLED)])
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Failure::usage("the agent's binary is not beside this program")
                .hint("name it with --agent; in a checkout `cargo xtask agent` builds it and says where it is")
        })
}

fn failure(error: &ImageError) -> Failure {
    Failure::new(super::serve::chain(error))
}

fn list(listed: &Listed) -> String {
    if listed.images.is_empty() {
        return "no images yet: make one with `hearth image build`".to_owned();
    }
    let row = |image: &Image| {
        let manifest = &image.manifest;
        [
            manifest.name.clone(),
            output::short_digest(&manifest.digest),
            manifest.suite.clone(),
            manifest.kernel_version.clone(),
            manifest.agent_version.clone(),
            ByteSize::b(manifest.sizes.rootfs_on_disk).to_string(),
            output::ago(manifest.created),
        ]
    };
    output::table(
        ["Name", "Digest", "Suite", "Kernel", "Agent", "On disk", "Made"],
        listed.images.iter().map(row),
    )
}

/// The build on standard error: a bar on a terminal, lines elsewhere.
struct Picture {
    bar: Option<ProgressBar>,
    plain: Mutex<Plain>,
}

/// What has been said.
#[derive(Default)]
struct Plain {
    /// The latest stage.
    stage: Option<Stage>,
    counted: Option<Instant>,
}

impl Picture {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            plain: Mutex::default(),
        }
    }

    fn show(&self, progress: &Progress) {
        let detail = progress.detail.as_deref().map(clean_line).unwrap_or_default();
        match &self.bar {
            Some(bar) if progress.is_notice => bar.println(detail),
            Some(bar) => {
                let counted = progress.total > 0;
                let template = if counted {
                    "{spinner} {prefix} {bar:20} {pos}/{len}  {wide_msg}"
                } else {
                    "{spinner} {prefix}  {elapsed}  {wide_msg}"
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                if counted {
                    bar.set_length(progress.total);
                    bar.set_position(progress.done);
                }
                bar.set_prefix(progress.stage.label());
                bar.set_message(detail);
            }
            None => self.line(progress, &detail),
        }
    }

    fn line(&self, progress: &Progress, detail: &str) {
        if progress.is_notice {
            output::note(detail);
            return;
        }
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        // Packages come in several rounds; only the way forward is worth a line.
        let is_new = plain.stage.is_none_or(|latest| progress.stage > latest);
        if is_new {
            plain.stage = Some(progress.stage);
        }
        if is_new && progress.stage != Stage::Done {
            output::note(progress.stage.label());
            plain.counted = Some(Instant::now());
        } else if progress.total > 0 && plain.counted.is_none_or(|last| last.elapsed() > COUNT_PAUSE) {
            output::note(&format!(
                "{} {}/{}",
                progress.stage.label(),
                progress.done,
                progress.total
            ));
            plain.counted = Some(Instant::now());
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
