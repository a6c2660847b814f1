//! How long a command has run and printed nothing, as a message: the same for a reply of the server and for a client that watches.

use std::time::Duration;

/// `npm ci has run for 2 min 30 s, last output 2 min ago`; `silent`: since its last output, `None` when there was none.
#[must_use]
pub fn message(what: &str, ran: Duration, silent: Option<Duration>) -> String {
    let output = match silent {
        None => "no output yet".to_owned(),
        Some(silent) if silent.as_secs() == 0 => "last output now".to_owned(),
        Some(silent) => format!("last output {} ago", span(silent)),
    };
    format!("{what} has run for {}, {output}", span(ran))
}

/// `45 s`, `2 min`, `2 min 30 s`, `1 h 5 min`.
#[must_use]
pub fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (hours, minutes, rest) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_runs_is_told_with_its_silence() {
        let seconds = Duration::from_secs;
        assert_eq!(
            message("npm ci", seconds(150), Some(seconds(120))),
            "npm ci has run for 2 min 30 s, last output 2 min ago"
        );
        assert_eq!(message("x", seconds(31), None), "x has run for 31 s, no output yet");
        assert_eq!(
            message("x", seconds(3900), Some(Duration::ZERO)),
            "x has run for 1 h 5 min, last output now"
        );
    }
}
