//! The agent that this program carries: what goes into every guest image. Only a build that was given one has it.

use std::borrow::Cow;

use hearth_drivers::incus::AgentBinary;
use hearth_image::AgentSource;

/// The static binary; empty in a build that was given none.
static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
/// What it says its version is.
const VERSION: &str = env!("HEARTH_AGENT_VERSION");

/// How to make a program that has it.
pub(crate) const HOW_TO: &str =
    "`cargo xtask build` in a checkout makes a program that has it; or name a binary with --agent";

/// The agent inside this program.
pub(crate) fn inside() -> Option<AgentSource> {
    (!BYTES.is_empty()).then(|| AgentSource::Inside {
        bytes: Cow::Borrowed(BYTES),
        version: VERSION.to_owned(),
    })
}

/// The same for images of Incus that have none.
pub(crate) fn for_incus() -> Option<AgentBinary> {
    (!BYTES.is_empty()).then(|| AgentBinary {
        bytes: BYTES.into(),
        version: VERSION.to_owned(),
    })
}

/// Its version.
pub(crate) fn version() -> Option<&'static str> {
    (!BYTES.is_empty()).then_some(VERSION)
}
