//! `--env NAME=VALUE` and `--env NAME`, the latter taken from the caller's own environment, so that a secret needs not stand
//! in an argument.

use std::collections::BTreeMap;

use crate::failure::Failure;

pub(crate) fn read(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => match std::env::var(text) {
                Ok(value) => Ok((text.clone(), value)),
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
