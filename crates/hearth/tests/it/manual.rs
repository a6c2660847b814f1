//! The manual pages.

use std::process::Command;

use crate::support::{hearth, run, run_at_terminal};

#[test]
fn every_command_has_a_page_with_its_examples() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man/man1");
    let ran = run(hearth(&["man", pages.to_str().unwrap()]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let page = |name: &str| std::fs::read_to_string(pages.join(name)).unwrap();
    let help = run(hearth(&["--help"])).stdout;
    let commands = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next()
        .unwrap();
    let mut seen = 0;
    for line in commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
    {
        let name = line.split_whitespace().next().unwrap();
        if name != "help" {
            let text = page(&format!("hearth-{name}.1"));
            assert!(
                text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
                "{name}: {text}"
            );
            assert!(
                page("hearth.1").contains(&format!("hearth\\-{}(1)", name.replace('-', "\\-"))),
                "{name}"
            );
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} in {commands}");
    assert!(page("hearth-pool-set.1").contains(".SH OPTIONS"));
    // An example stands in a line of its own, as in the help.
    assert!(
        page("hearth-pause.1").contains("\n  hearth pause last\n"),
        "{}",
        page("hearth-pause.1")
    );
    let checked = Command::new("man")
        .args(["--warnings", "-l"])
        .arg(pages.join("hearth-exec.1"))
        .env("MANWIDTH", "200")
        .env("LC_ALL", "C.UTF-8")
        .output();
    // Where there is a `man`, it finds no fault.
    if let Ok(checked) = checked {
        assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(text.contains("hearth-exec") && text.contains("--detach"), "{text}");
    }
}

#[test]
fn the_main_page_goes_to_a_pipe_and_not_to_a_terminal() {
    let piped = run(hearth(&["man"]));
    assert!(
        piped.code == 0 && piped.stdout.contains(".TH hearth 1"),
        "{}",
        piped.stdout
    );
    let (code, shown) = run_at_terminal(hearth(&["man"]), b"");
    assert!(code == Some(2) && shown.contains("man -l -"), "{shown}");
}
