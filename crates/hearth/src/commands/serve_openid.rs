//! Options of `hearth serve` for people who sign in to the pages by OpenID Connect.

use std::path::PathBuf;

use clap::Args;
use hearth_server::{OpenIdSettings, SignInRule};
use reqwest::Url;
use secrecy::SecretString;

use crate::failure::Failure;
use crate::input;

/// Never an argument: every user of a machine can read those.
const SECRET_VARIABLE: &str = "HEARTH_OPENID_SECRET";

/// The provider, and whom it lets in.
#[derive(Debug, Clone, Args)]
pub(super) struct OpenIdArgs {
    /// People sign in to the pages at this OpenID Connect provider, like `https://login.example.com/realms/team`: its issuer. Tell it
    /// the address of this server with /sign-in/openid/back as where it sends them back to (docs/pages.md)
    #[arg(long, value_name = "URL", value_parser = parse_issuer, requires_all = ["openid_client", "openid_rules"])]
    openid_issuer: Option<String>,
    /// The id of Hearth at that provider, like `hearth`
    #[arg(long, value_name = "ID", requires = "openid_issuer")]
    openid_client: Option<String>,
    /// The file with the secret of that id; a public client has none [env: HEARTH_OPENID_SECRET, which holds the secret itself]
    #[arg(long, value_name = "FILE", requires = "openid_issuer")]
    openid_secret_file: Option<PathBuf>,
    /// Whom that provider may send, and what they may do, like `groups=platform scopes=admin` or
    /// `email=*@example.com scopes=project:read,claim tenant=default`; may be repeated, the first one that fits somebody counts, and
    /// whom none fits stays out
    #[arg(long = "openid-rule", value_name = "RULE", requires = "openid_issuer")]
    openid_rules: Vec<SignInRule>,
    /// The claim that says who somebody is here: the owner of what they make and claim. Choose one that people cannot change themselves
    /// [default: email, if the provider has checked it, or else `sub:` and the sub]
    #[arg(long, value_name = "CLAIM", requires = "openid_issuer")]
    openid_owner: Option<String>,
}

impl OpenIdArgs {
    /// What they say, with the secret.
    pub(super) fn settings(&self) -> Result<Option<OpenIdSettings>, Failure> {
        let (Some(issuer), Some(client)) = (self.openid_issuer.clone(), self.openid_client.clone()) else {
            return Ok(None);
        };
        let usual = OpenIdSettings::new(issuer, client);
        Ok(Some(OpenIdSettings {
            secret: self.secret()?,
            owner_claim: self.openid_owner.clone().unwrap_or(usual.owner_claim),
            rules: self.openid_rules.clone(),
            ..usual
        }))
    }

    /// From the file, or else from the environment.
    fn secret(&self) -> Result<Option<SecretString>, Failure> {
        let text = match &self.openid_secret_file {
            Some(file) => input::secret(
                file,
                &format!("the file {} with OpenID Connect's secret", file.display()),
            )?,
            None => std::env::var(SECRET_VARIABLE).unwrap_or_default(),
        };
        let text = text.trim();
        if text.is_empty() && self.openid_secret_file.is_some() {
            return Err(Failure::new("the file of --openid-secret-file holds no secret")
                .hint("write the secret that the provider shows for Hearth into it, or leave the option out for a public client"));
        }
        Ok((!text.is_empty()).then(|| SecretString::from(text)))
    }
}

/// An address that only its owner can answer at: what it says decides who is let in.
fn parse_issuer(text: &str) -> Result<String, String> {
    let url: Url = text
        .parse()
        .map_err(|error| format!("{error}: write it like https://login.example.com"))?;
    let is_own = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url.scheme() {
        "https" => {}
        "http" if is_own => {}
        _ => return Err("it must begin with https://; http:// is for a provider on this machine".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("write it as the provider does: without user, `?` and `#`".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuer_is_encrypted_or_on_this_machine() {
        for good in [
            "https://login.example.com/realms/a",
            "http://127.0.0.1:9000",
            "http://localhost:1/x",
        ] {
            assert_eq!(parse_issuer(good), Ok(good.to_owned()));
        }
        for bad in [
            "login.example.com",
            "http://login.example.com",
            "https://a:b@c",
            "https://c?d",
            "file:///x",
            "",
        ] {
            assert!(parse_issuer(bad).is_err(), "{bad}");
        }
    }
}
