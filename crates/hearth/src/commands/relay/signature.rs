//! Signatures of webhooks after the Standard Webhooks scheme: HMAC-SHA256 over id, time and body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

/// How secrets begin that are written for people.
const PREFIX: &str = "whsec_";
/// How a signature of the one version that there is begins.
const VERSION: &str = "v1,";
/// How far the sender's clock may be off; an older message may be one that somebody sends again.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What signatures are checked with.
pub(super) struct Verifier {
    key: SecretString,
}

/// What a message says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    pub(super) id: &'a str,
    pub(super) time: &'a str,
    pub(super) signatures: &'a str,
}

impl Verifier {
    /// From the secret as the vendor shows it; `None` when that is none.
    pub(super) fn new(secret: &str) -> Option<Self> {
        let secret = secret.trim();
        let secret = secret.strip_prefix(PREFIX).unwrap_or(secret);
        let is_key = STANDARD.decode(secret).is_ok_and(|key| !key.is_empty());
        is_key.then(|| Self {
            key: SecretString::from(secret.to_owned()),
        })
    }

    /// Whether the sender has the secret, and sends the message now.
    pub(super) fn accepts(&self, signed: Signed<'_>, body: &[u8], now: Timestamp) -> bool {
        let sent = signed
            .time
            .parse::<i64>()
            .ok()
            .and_then(|at| Timestamp::from_second(at).ok());
        let Some(sent) = sent else { return false };
        if now.duration_since(sent).abs() > TOLERANCE {
            return false;
        }
        let given = signed
            .signatures
            .split(' ')
            .filter_map(|text| text.strip_prefix(VERSION));
        given.filter_map(|text| STANDARD.decode(text).ok()).any(|given| {
            self.mac(signed, body)
                .is_some_and(|mac| mac.verify_slice(&given).is_ok())
        })
    }

    fn mac(&self, signed: Signed<'_>, body: &[u8]) -> Option<Hmac<Sha256>> {
        let key = STANDARD.decode(self.key.expose_secret()).ok()?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
        mac.update(format!("{}.{}.", signed.id, signed.time).as_bytes());
        mac.update(body);
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schemes_own_example_is_accepted_and_nothing_else() {
        let verifier = Verifier::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = Signed {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
            time: "1614265330",
            signatures: "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        };
        let body = br#"{"test": 2432232314}"#;
        let now = Timestamp::from_second(1_614_265_330).unwrap();
        assert!(verifier.accepts(signed, body, now));
        assert!(!verifier.accepts(signed, b"{}", now));
        assert!(!verifier.accepts(Signed { id: "msg_2", ..signed }, body, now));
        let late = now + SignedDuration::from_mins(6);
        assert!(!verifier.accepts(signed, body, late));
        for signatures in ["", "v1,AAAA", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="] {
            assert!(!verifier.accepts(Signed { signatures, ..signed }, body, now));
        }
        assert!(Verifier::new("whsec_").is_none() && Verifier::new("not base64!").is_none());
    }
}
