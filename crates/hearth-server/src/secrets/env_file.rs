//! `/home/.env`: shell assignments that give the exact bytes back when sourced.

use hearth_guest::ShortFile;

use crate::store::VariableRow;

/// Where the file is in every VM.
pub const PATH: &str = "/home/.env";
/// Its mode: only root reads it.
pub const MODE: u32 = 0o600;

/// The file's content. Single quotes keep every byte except the single quote itself. Names that would break a program that sources it are
/// left out: they may have been accepted by an earlier version.
#[must_use]
pub fn render<'a>(variables: impl IntoIterator<Item = &'a VariableRow>) -> String {
    variables
        .into_iter()
        .filter(|variable| hearth_api::variables::refusal(&variable.name).is_none())
        .map(|variable| format!("{}='{}'\n", variable.name, variable.value.replace('\'', r"'\''")))
        .collect()
}

/// The file as a task's VM gets it at the hand-over.
#[must_use]
pub fn file(variables: &[VariableRow]) -> ShortFile {
    ShortFile {
        path: PATH.to_owned(),
        mode: MODE,
        text: render(variables),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_read_only_name_does_not_end_the_file_in_the_middle() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let row = |name: &str, value: &str| VariableRow {
            name: name.into(),
            value: value.into(),
        };
        let rows = [
            row("A", "1"),
            row("UID", "5"),
            row("SHELLOPTS", "x"),
            row("PATH", "/bin"),
            row("Z", "2"),
        ];
        std::fs::write(file.path(), render(&rows)).unwrap();
        let script = "set -a; . \"$0\"; echo \"$A$Z\"";
        let out = Command::new("bash")
            .args(["-ec", script])
            .arg(file.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "12\n", "{out:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn sourcing_gives_the_exact_bytes_back(value in "[^\0]{0,60}") {
            let file = tempfile::NamedTempFile::new().unwrap();
            let variable = VariableRow { name: "V_1".into(), value: value.clone() };
            std::fs::write(file.path(), render([&variable])).unwrap();
            let out = Command::new("bash")
                .args(["-c", "set -a; . \"$0\"; exec env -0"])
                .arg(file.path())
                .output()
                .unwrap();
            let wanted = format!("V_1={value}");
            prop_assert!(out.stdout.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()));
        }
    }
}
