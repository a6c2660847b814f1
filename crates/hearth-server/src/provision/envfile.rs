//! `/home/.env`: shell assignments that give the exact bytes back when sourced.

use crate::store::VariableRow;

/// Where the file is in every VM.
pub const PATH: &str = "/home/.env";
/// Its mode: only root reads it.
pub const MODE: u32 = 0o600;

/// The file's content. Single quotes keep every byte except the single quote itself.
#[must_use]
pub fn render<'a>(variables: impl IntoIterator<Item = &'a VariableRow>) -> String {
    variables
        .into_iter()
        .map(|variable| format!("{}='{}'\n", variable.name, variable.value.replace('\'', r"'\''")))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

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
