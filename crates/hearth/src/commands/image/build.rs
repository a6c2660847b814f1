//! `hearth image build`: makes an image where every data folder of this machine finds it, and shows how far it is.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use hearth_image::{self as image, AgentSource, BuildOptions, ImageError, Progress, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::args::Globals;
use crate::failure::{EXIT_SIGNAL_BASE, Failure};
use crate::text::clean_line;
use crate::{agent, connect, output, places};

/// The agent's file name beside our own binary.
const AGENT_FILE: &str = "hearth-agent";
/// Where a package would put the agent.
const AGENT_INSTALLED: &str = "/usr/lib/hearth/hearth-agent";
/// Without a terminal: the shortest time between two lines that only count.
const COUNT_PAUSE: Duration = Duration::from_secs(10);
/// How often the clock of a running stage moves.
const TICK: Duration = Duration::from_millis(100);

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
    /// The agent's static binary [default: the one inside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where downloaded packages are kept [default: cache in the data folder]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Fetch the newest versions of the packages even when nothing else changed
    #[arg(long)]
    refresh: bool,
    /// Another folder of images that a base may be taken from
    #[arg(long, value_name = "FOLDER", hide = true)]
    other_images: Vec<PathBuf>,
}

pub(super) async fn run(globals: &Globals, data: &Path, args: BuildArgs) -> Result<u8, Failure> {
    let agent = agent_source(args.agent)?;
    let stores = places::images(data);
    let cache = args
        .cache_dir
        .map_or_else(|| data.join("cache/packages"), |folder| connect::absolute(&folder));
    let mut options = BuildOptions::new(stores.build_dir(), cache, agent);
    options.name = args.name;
    options.suite = args.suite;
    options.extra_packages = args.packages;
    options.mirror = args.mirror;
    options.security_mirror = args.security_mirror;
    options.refresh = args.refresh;
    options.other_images = stores.places().into_iter().map(Path::to_owned).collect();
    options.other_images.extend(args.other_images);

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
        built => built.map_err(|error| super::failure(&error))?,
    };
    output::print(globals.json, &manifest, |manifest| {
        format!(
            "image {} {} after {}; it lies in {}",
            manifest.name,
            output::short_digest(&manifest.digest),
            output::duration(started.elapsed()),
            stores.build_dir().display()
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

/// The one that was named, the one inside this program, or one that a package has put beside it.
fn agent_source(given: Option<PathBuf>) -> Result<AgentSource, Failure> {
    if let Some(path) = given {
        return Ok(AgentSource::File(path));
    }
    if let Some(inside) = agent::inside() {
        return Ok(inside);
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join(AGENT_FILE)));
    beside
        .into_iter()
        .chain([PathBuf::from(AGENT_INSTALLED)])
        .find(|path| path.is_file())
        .map(AgentSource::File)
        .ok_or_else(|| {
            Failure::usage("this build of hearth has no agent inside, and an image needs one").hint(agent::HOW_TO)
        })
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
