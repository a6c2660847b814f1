//! `--env NAME=VALUE` and `--env NAME`, the latter taken from the caller's own environment, so that a secret needs not stand
//! in an argument.

use std::collections::BTreeMap;

use hearth_api::values::{VariableName, VariableValue};

use crate::failure::Failure;

pub(crate) fn read(texts: &[String]) -> Result<BTreeMap<VariableName, VariableValue>, Failure> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) => variable(name, value.to_owned()),
            None => match std::env::var(text) {
                Ok(value) => variable(text, value),
                Err(std::env::VarError::NotPresent) => {
                    Err(Failure::usage(format!("{text} is not set in your environment"))
                        .hint(format!("export it first, or write --env {text}=VALUE")))
                }
                Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(format!(
                    "the value of {text} in your environment is not UTF-8 text"
                ))),
            },
        })
        .collect()
}

/// A variable, or what is wrong with it. The value is not quoted: it may be a secret.
pub(crate) fn variable(name: &str, value: String) -> Result<(VariableName, VariableValue), Failure> {
    let parsed = VariableName::try_from(name)
        .map_err(|fault| Failure::usage(format!("the name of the variable `{name}` {fault}")))?;
    let value = VariableValue::try_from(value)
        .map_err(|fault| Failure::usage(format!("the value of the variable {name} {fault}")))?;
    Ok((parsed, value))
}
