//! A config file to begin with, made from the help of the options: every key, each a comment.

use std::fmt::Write as _;

use super::keys::{Key, keys};

/// Longest line of the help in it.
const WIDTH: usize = 110;

const HEAD: &str = "\
# Settings of the Hearth server: `hearth serve` reads them from /etc/hearth/hearth.toml, or from the file of --config.
# Every key is an option of `hearth serve`. What is said on the command line counts first, then the environment
# (HEARTH_MAX_VMS for max-vms), then this file. Times are in seconds or like \"30m\". `hearth config check` finds faults;
# `systemctl reload hearth` takes changes over and says which of them need a restart.
";

/// The text.
pub(crate) fn example() -> String {
    let mut text = HEAD.to_owned();
    for key in keys().iter().filter(|key| key.is_shown()) {
        text.push('\n');
        for line in wrapped(&key.help()) {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "#{} = {}", key.name(), value(key));
    }
    text
}

fn wrapped(help: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in help.split_whitespace() {
        let is_full = lines
            .last()
            .is_some_and(|line| line.len() + word.len() >= WIDTH && !line.is_empty());
        if is_full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// A value that the key takes: its default where that can be written, or else an example.
fn value(key: &Key) -> String {
    if key.is_switch() {
        return "true".to_owned();
    }
    let help = key.help();
    let named = help
        .split("[default: ")
        .nth(1)
        .and_then(|rest| rest.split([']', ',']).next())
        .map(str::to_owned);
    // The help quotes examples.
    let quoted = help.split('`').skip(1).step_by(2).map(str::to_owned);
    let usual = match key.value_name() {
        "FILE" => format!("/etc/hearth/{}", key.name()),
        "FOLDER" => "/var/lib/hearth".to_owned(),
        "MIB" => "8192".to_owned(),
        "URL" => "http://127.0.0.1:4318".to_owned(),
        _ => "50".to_owned(),
    };
    let text = key
        .default()
        .into_iter()
        .chain(named.filter(|_| !matches!(key.value_name(), "FILE" | "FOLDER")))
        .chain(quoted.filter(|_| !matches!(key.value_name(), "FILE" | "FOLDER")))
        .chain([usual.clone()])
        .find(|text| key.fault(text).is_none())
        .unwrap_or(usual);
    let written = if text.parse::<i64>().is_ok() {
        text
    } else {
        // JSON's strings are TOML's.
        serde_json::Value::String(text).to_string()
    };
    if key.is_list() { format!("[{written}]") } else { written }
}
