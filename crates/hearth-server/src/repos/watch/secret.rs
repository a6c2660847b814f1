//! The secret that git hosts and this server share: it proves where a webhook comes from.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A shorter one could be found by trying.
const SHORT: usize = 16;

/// The secret of the webhooks. It is never shown.
#[derive(Debug, Clone)]
pub struct WebhookSecret(SecretString);

impl WebhookSecret {
    /// White space around it does not count; `None` when nothing else is there.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(SecretString::from(text)))
    }

    /// Whether it is so short that it should be said.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.expose_secret().len() < SHORT
    }

    /// Whether this is the secret itself. Takes the same time whatever is wrong, its length included.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        let own = Sha256::digest(self.0.expose_secret().as_bytes());
        own.ct_eq(&Sha256::digest(given)).into()
    }

    /// Whether this is the hexadecimal HMAC-SHA-256 of the body.
    pub(crate) fn has_signed(&self, body: &[u8], signature: &str) -> bool {
        let Ok(signature) = hex::decode(signature.trim()) else {
            return false;
        };
        // A key of any length is one.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose_secret().as_bytes()) else {
            return false;
        };
        mac.update(body);
        mac.verify_slice(&signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_body_and_its_secret_alone() {
        // The example of GitHub's documentation.
        let secret = WebhookSecret::new("It's a Secret to Everybody\n").unwrap();
        let good = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let body = b"Hello, World!";
        assert!(secret.has_signed(body, good));
        assert!(secret.has_signed(body, &good.to_uppercase()));
        assert!(!secret.has_signed(b"Hello, World?", good));
        assert!(!WebhookSecret::new("other").unwrap().has_signed(body, good));
        for bad in ["", "7", "zz", &good[2..], &good.replace('7', "8"), &format!("{good}00")] {
            assert!(!secret.has_signed(body, bad), "{bad}");
        }
    }

    #[test]
    fn a_token_is_the_whole_secret() {
        let secret = WebhookSecret::new(" geheimes wort ").unwrap();
        assert!(secret.is(b"geheimes wort"));
        for bad in ["", "geheimes", "geheimes wort ", "Geheimes wort"] {
            assert!(!secret.is(bad.as_bytes()), "{bad}");
        }
        assert!(WebhookSecret::new(" \n").is_none());
        assert!(secret.is_short());
    }

    #[test]
    fn it_does_not_show_itself() {
        let secret = WebhookSecret::new("geheimes-wort").unwrap();
        assert!(!format!("{secret:?}").contains("geheim"));
    }
}
