//! What a fake does on its own account: delays, faults, and what commands answer. Plain data, decided by seed and count
//! only, so that the same test does the same thing every time.

use std::ops::RangeInclusive;
use std::time::Duration;

use hearth_guest::{ExecEnd, ExecSpec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::DriverError;

/// The verbs of [`crate::Driver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// `create`
    Create,
    /// `inspect`
    Inspect,
    /// `list`
    List,
    /// `connect`
    Connect,
    /// `console`
    Console,
    /// `destroy`
    Destroy,
    /// `fork`
    Fork,
    /// `checkpoint`
    Checkpoint,
    /// `environment`
    Environment,
    /// `checkpoints`
    Checkpoints,
    /// `check_checkpoint`
    CheckCheckpoint,
    /// `remove_checkpoint`
    RemoveCheckpoint,
    /// `pause`
    Pause,
    /// `resume`
    Resume,
    /// `save`
    Save,
    /// `usage`
    Usage,
    /// `snapshot`
    Snapshot,
    /// `hold_egress`
    HoldEgress,
}

/// Which of the three errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// [`DriverError::Retry`]
    Retry,
    /// [`DriverError::Permanent`]
    Permanent,
    /// [`DriverError::Unknown`]
    Unknown,
    /// No error: the process that called ends there, as by `kill -9`. See [`super::FakeDriver::killed`].
    Kill,
}

impl FaultKind {
    pub(super) fn error(self) -> DriverError {
        let reason = "a fault that the test planned";
        match self {
            Self::Retry => DriverError::retry(reason),
            Self::Permanent => DriverError::permanent(reason),
            // Who waited for a process that is dead knows nothing either.
            Self::Unknown | Self::Kill => DriverError::unknown(reason),
        }
    }
}

/// Whether the call fails before or after it has done its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultMoment {
    /// Nothing happened.
    Before,
    /// It happened, and the caller gets an error.
    After,
}

/// One planned failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Of which verb.
    pub verb: Verb,
    /// Of its how many-eth call, counted from 1 over all VMs.
    pub call: u64,
    /// What the caller gets.
    pub kind: FaultKind,
    /// Whether it took effect.
    pub moment: FaultMoment,
}

/// What the fake agent answers to commands that match.
#[derive(Debug, Clone)]
pub struct ExecRule {
    /// Matches when the shell text, or the arguments joined by blanks, hold this.
    pub contains: String,
    /// Printed to stdout.
    pub stdout: String,
    /// Printed to stderr.
    pub stderr: String,
    /// The exit code.
    pub code: i32,
    /// How long the command takes.
    pub takes: Duration,
    /// How often the rule can still match; `None` for ever.
    pub times: Option<u32>,
    /// What else happens.
    pub special: Special,
}

/// What a command does besides printing and ending with a code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Special {
    #[default]
    None,
    /// It prints these bytes after the text.
    Bytes(Vec<u8>),
    /// It ends like this.
    End(ExecEnd),
    /// It prints what it reads, to the end of its input.
    Echo,
    /// It leaves a process running that prints this.
    Leaves(String),
    /// The agent dies when the command's time has passed, and is there again at once.
    AgentDies,
    /// It prints its texts, and the agent never says that it has ended: it gets no processor, say.
    NeverEnds,
    /// It never ends, and uses all of a processor.
    Computes,
}

impl ExecRule {
    /// Commands that hold this text print `stdout` and succeed.
    #[must_use]
    pub fn prints(contains: &str, stdout: &str) -> Self {
        Self {
            contains: contains.into(),
            stdout: stdout.into(),
            stderr: String::new(),
            code: 0,
            takes: Duration::ZERO,
            times: None,
            special: Special::None,
        }
    }

    /// Commands that hold this text do this.
    #[must_use]
    pub fn does(contains: &str, special: Special) -> Self {
        Self {
            special,
            ..Self::prints(contains, "")
        }
    }

    /// Commands that hold this text print `stderr` and fail.
    #[must_use]
    pub fn fails(contains: &str, code: i32, stderr: &str) -> Self {
        Self {
            code,
            stderr: stderr.into(),
            ..Self::prints(contains, "")
        }
    }

    pub(super) fn matches(&self, spec: &ExecSpec) -> bool {
        self.times != Some(0) && command_text(spec).contains(&self.contains)
    }
}

/// What a command is matched by.
pub(super) fn command_text(spec: &ExecSpec) -> String {
    match (&spec.shell, &spec.argv) {
        (Some(text), _) => text.clone(),
        (None, Some(words)) => words.join(" "),
        (None, None) => String::new(),
    }
}

/// How a fake behaves.
#[derive(Debug, Clone)]
pub struct FakeOptions {
    /// The images that exist.
    pub images: Vec<String>,
    /// How long every call takes, drawn again for each.
    pub call_delay: RangeInclusive<Duration>,
    /// How long after its creation a VM's agent begins to answer, drawn per VM.
    pub boot_delay: RangeInclusive<Duration>,
    /// Planned failures.
    pub faults: Vec<Fault>,
    /// What commands answer; the first rule that matches counts. Without one, a command prints nothing and succeeds.
    pub rules: Vec<ExecRule>,
    /// `create` answers `Retry` when this many VMs exist.
    pub capacity: Option<usize>,
    /// Whether it is a driver that cannot freeze a VM.
    pub no_checkpoints: bool,
    /// Whether processes of a VM are gone when it is handed over.
    pub loses_processes: bool,
    /// Whether every guest has an SSH server with an RSA host key.
    pub has_rsa_host_key: bool,
}

impl Default for FakeOptions {
    fn default() -> Self {
        let none = Duration::ZERO..=Duration::ZERO;
        Self {
            images: vec!["fake-image".into()],
            call_delay: none.clone(),
            boot_delay: none,
            faults: Vec::new(),
            rules: Vec::new(),
            capacity: None,
            no_checkpoints: false,
            loses_processes: false,
            has_rsa_host_key: false,
        }
    }
}

/// A number drawn from a range, the same for the same seed, purpose and count, whatever else was drawn in between.
pub(super) fn draw(seed: u64, purpose: u64, count: u64, range: &RangeInclusive<Duration>) -> Duration {
    if range.is_empty() || range.start() == range.end() {
        return *range.start();
    }
    let mut bytes = [0; 32];
    for (part, number) in bytes.chunks_exact_mut(8).zip([seed, purpose, count]) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    let micros = |duration: &Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(StdRng::from_seed(bytes).random_range(micros(range.start())..=micros(range.end())))
}
