//! Running other programs: in the foreground with their own picture, or quietly for their output. Ctrl-C and SIGTERM end
//! what runs, by process id, and then us; never with something of ours left behind.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a shell gives for a program that Ctrl-C ended.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// How often we look whether a program has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// A program in the foreground got Ctrl-C from the terminal itself; this is its time to end by itself.
const OWN_END: Duration = Duration::from_secs(2);
/// Time between a polite signal and the last one.
const GRACE: Duration = Duration::from_secs(15);

/// Somebody wants us to stop. Set in the signal handler itself: a program that the same Ctrl-C ended must not be taken for one
/// that failed, so the flag has to stand before its end can be seen.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// We are tidying up and stop for nobody; all waiting there has its own limits.
static TIDYING: AtomicBool = AtomicBool::new(false);

/// Where everything goes that would else be on the terminal, for a task that shows its stages alone.
static LOG: OnceLock<File> = OnceLock::new();

/// From now on what programs print, and what we [`say`], goes to this file, which begins anew.
pub(crate) fn log_to(path: &Path) -> Result<()> {
    let failed = || format!("{} cannot be written", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(failed)?;
    }
    // Every writer appends: programs that follow each other must not overwrite each other.
    drop(File::create(path).with_context(failed)?);
    let file = File::options().append(true).open(path).with_context(failed)?;
    // A second one would be a mistake of ours, and the first one continues.
    let _ = LOG.set(file);
    Ok(())
}

/// Says something on the way: on the terminal, or in the log where there is one.
pub(crate) fn say(text: impl fmt::Display) {
    match LOG.get() {
        Some(mut log) => {
            // A full disk will be met, and said, by the next task.
            let _ = writeln!(log, "{text}");
        }
        None => println!("{text}"),
    }
}

/// Where a program's output goes.
fn sink() -> Result<Stdio> {
    Ok(match LOG.get() {
        Some(log) => log.try_clone().context("the log cannot be used")?.into(),
        None => Stdio::inherit(),
    })
}

/// Sends a program's output to the log, if there is one, under the command itself.
fn redirect(command: &mut Command) -> Result<()> {
    if LOG.get().is_some() {
        say(format_args!("$ {}", shown(command)));
        command.stdout(sink()?).stderr(sink()?);
    }
    Ok(())
}

/// Somebody wants us to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on Ctrl-C and SIGTERM are noted instead of ending us.
pub(crate) fn listen_for_ctrl_c() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::flag::register(signal as i32, Arc::clone(&STOP)).context("signals cannot be received")?;
    }
    Ok(())
}

/// Whether somebody wants us to stop.
pub(crate) fn stopping() -> bool {
    STOP.load(Ordering::SeqCst) && !TIDYING.load(Ordering::SeqCst)
}

/// From now on nobody stops us: what we made is being removed.
pub(crate) fn tidy_up_whatever_comes() {
    TIDYING.store(true, Ordering::SeqCst);
}

/// Ends here when somebody wants us to stop.
pub(crate) fn check_stop() -> Result<()> {
    if stopping() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Waits until `done` says so, the time is over (`false`) or somebody wants us to stop.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> Result<bool> {
    let start = Instant::now();
    loop {
        if done() {
            return Ok(true);
        }
        if start.elapsed() > limit {
            return Ok(false);
        }
        check_stop()?;
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a program in the foreground, with our terminal. It must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = run_for_status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a program in the foreground, with our terminal.
pub(crate) fn run_for_status(command: &mut Command) -> Result<ExitStatus> {
    check_stop()?;
    redirect(command)?;
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("`{}` cannot be started", shown(command)))?;
    let status = wait(&mut child)?;
    check_stop()?;
    Ok(status)
}

/// The same with our standard input (`sudo` may ask for a password).
pub(crate) fn run_interactive(command: &mut Command) -> Result<ExitStatus> {
    check_stop()?;
    redirect(command)?;
    let mut child = command
        .spawn()
        .with_context(|| format!("`{}` cannot be started", shown(command)))?;
    let status = wait(&mut child)?;
    check_stop()?;
    Ok(status)
}

/// Runs a program and hands over each line of its standard output; what else it says is shown. It must succeed.
pub(crate) fn run_reading(command: &mut Command, mut line: impl FnMut(&str) + Send) -> Result<()> {
    check_stop()?;
    redirect(command)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{}` cannot be started", shown(command)))?;
    let output = child.stdout.take().context("a program has no output")?;
    let status = std::thread::scope(|scope| {
        scope.spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                line(&text);
            }
        });
        wait(&mut child)
    })?;
    check_stop()?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a program for its output; what it says on standard error is shown. It must succeed.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    let mut text = String::new();
    run_reading(command, |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    say(&text);
    Ok(text)
}

/// Runs a program for its output; `None` when it fails or does not exist.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a program; when somebody wants us to stop it is ended first.
fn wait(child: &mut Child) -> Result<ExitStatus> {
    let mut stop_seen = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stopping() {
            let since = stop_seen.get_or_insert_with(Instant::now);
            if since.elapsed() > OWN_END {
                return end(child);
            }
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Ends a program of ours: politely, and after a while without asking.
pub(crate) fn end(child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut next = Some(Signal::SIGTERM);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Some(signal) = next.take() {
            // It may have ended between the two lines; then the next look sees it.
            let _ = kill(pid_of(child)?, signal);
        }
        if start.elapsed() > GRACE {
            child.kill()?;
            return Ok(child.wait()?);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

fn pid_of(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(
        i32::try_from(child.id()).context("a process id is too large")?,
    ))
}

/// Sends a signal to a process by its id; whether it was there.
pub(crate) fn signal(pid: i32, signal: Signal) -> bool {
    kill(Pid::from_raw(pid), signal).is_ok()
}
