//! The picture on a terminal: every running step has a line of its own.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};

use crate::fake::{Fake, Reply};
use crate::pool_test::two_at_once;
use crate::support::{hearth_at, project_page};

const SIZE: Winsize = Winsize {
    ws_row: 24,
    ws_col: 100,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

#[test]
fn steps_that_run_at_the_same_time_have_a_line_each() {
    // The stream breaks and the instance is gone: a short run, and the lines have to be taken away in the end.
    let events = two_at_once();
    let fake = Fake::start(move |request| {
        if request.line.ends_with("/warm-pool/test") {
            return Reply::ok(r#"{"id":"wpi_1"}"#);
        }
        if request.line.ends_with("/follow") {
            let events: Vec<(&str, &str)> = events[..6].iter().map(|(name, data)| (*name, data.as_str())).collect();
            return Reply::events(&events);
        }
        if request.line.contains("/instances/") {
            return Reply::not_found();
        }
        Reply::ok(&project_page())
    });
    let terminal = openpty(&SIZE, None).unwrap();
    let mut command = hearth_at(&fake.url, &["pool", "test", "web"]);
    command
        .env("TERM", "xterm")
        .stdout(Stdio::null())
        .stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    // It holds our copy of the terminal's other end.
    drop(command);
    let mut shown = Vec::new();
    // The end of a terminal that no process holds any more is an error.
    let _ = File::from(terminal.master).read_to_end(&mut shown);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let shown = String::from_utf8(shown).unwrap();
    let plain = console::strip_ansi_codes(&shown);
    for text in [
        "       | alone",
        "acme/b | of b",
        "acme/a | half a line of a",
        "repo_setup acme/a  ",
        "repo_setup acme/b  ",
        "the instance was removed",
    ] {
        assert!(plain.contains(text), "{text} is missing in:\n{plain}");
    }
    // Both lines stood on the screen at once: between them there is nothing but the first one's clock.
    let after_first = plain.split("repo_setup acme/a  ").skip(1);
    let mut between = after_first.filter_map(|rest| Some(rest.split_once("repo_setup acme/b  ")?.0));
    let together = between.any(|text| text.split_whitespace().count() <= 2);
    assert!(together, "{plain}");
}
