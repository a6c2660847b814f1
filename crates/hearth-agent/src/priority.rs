//! The agent goes before what it runs: it has little to do, and must be able to end a command that takes the whole processor.

use std::fs;

use rustix::process::{getpriority_process, setpriority_process};

/// As other small services that everything waits for.
const OF_AGENT: i32 = -10;
/// Of whatever it starts.
const OF_COMMANDS: i32 = 0;
/// Where the kernel shares the processor between sessions first, and between processes then.
const OF_SESSION: &str = "/proc/self/autogroup";

/// Raises this process. Before it has other threads: each has a priority of its own, and new ones take it over.
pub(crate) fn raise() {
    // One without the right to do this works all the same.
    let _ = setpriority_process(None, OF_AGENT);
    drop(fs::write(OF_SESSION, OF_AGENT.to_string()));
}

/// What becomes a command has the agent's priority no more. Its session is a new one.
pub(crate) fn give_up() {
    if getpriority_process(None).is_ok_and(|priority| priority < OF_COMMANDS) {
        let _ = setpriority_process(None, OF_COMMANDS);
    }
}
