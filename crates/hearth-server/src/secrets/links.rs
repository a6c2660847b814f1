//! Signed links: a text that only this installation can have signed, with an end.

use std::fmt;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;

use super::cipher::SecretError;

/// What the key of links is derived for; the installation's key itself signs nothing.
const PURPOSE: &[u8] = b"hearth: links to ports, version 1";

/// Signs links and checks them.
#[derive(Clone)]
pub struct LinkKey([u8; 32]);

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey")
    }
}

/// What is wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkFault {
    /// This installation has not signed it, or not for this.
    Forged,
    /// Its time is over.
    Ended,
}

impl LinkKey {
    /// Derived from the installation's key file, which is there.
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let key = std::fs::read(path).map_err(|source| SecretError::KeyFile {
            path: path.to_owned(),
            source,
        })?;
        let mut derive =
            Hmac::<Sha256>::new_from_slice(&key).map_err(|_| SecretError::KeyDamaged { path: path.to_owned() })?;
        derive.update(PURPOSE);
        Ok(Self(derive.finalize().into_bytes().into()))
    }

    /// A secret that only this installation can derive, the same each time.
    pub fn secret_of(&self, what: &str) -> String {
        // No link has this end.
        let mac = self.mac(what, i64::MIN).map(|mac| mac.finalize().into_bytes());
        hex::encode(mac.unwrap_or_default())
    }

    /// The signature for `what` until `end`, with the end: `1790000000-…`.
    pub fn sign(&self, what: &str, end: Timestamp) -> String {
        let seconds = end.as_second();
        let mac = self.mac(what, seconds).map(|mac| mac.finalize().into_bytes());
        format!("{seconds}-{}", hex::encode(mac.unwrap_or_default()))
    }

    /// Whether this is a signature for `what`, and when it ends.
    pub fn check(&self, what: &str, signature: &str, now: Timestamp) -> Result<Timestamp, LinkFault> {
        let (seconds, mac) = signature.split_once('-').ok_or(LinkFault::Forged)?;
        let seconds: i64 = seconds.parse().map_err(|_| LinkFault::Forged)?;
        let given = hex::decode(mac).map_err(|_| LinkFault::Forged)?;
        let mac = self.mac(what, seconds).ok_or(LinkFault::Forged)?;
        mac.verify_slice(&given).map_err(|_| LinkFault::Forged)?;
        let end = Timestamp::from_second(seconds).map_err(|_| LinkFault::Forged)?;
        if end <= now {
            return Err(LinkFault::Ended);
        }
        Ok(end)
    }

    fn mac(&self, what: &str, seconds: i64) -> Option<Hmac<Sha256>> {
        // A key of any length is one.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(&seconds.to_be_bytes());
        mac.update(what.as_bytes());
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn link_works_for_what_it_was_signed_for_until_its_end_and_in_its_installation() {
        let folder = tempfile::tempdir().unwrap();
        let key = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            LinkKey::open(&folder.path().join(name)).unwrap()
        };
        let (ours, other) = (key("a", "one key"), key("b", "another key"));
        let now = Timestamp::now();
        let end = now + SignedDuration::from_mins(5);
        let signed = ours.sign("wpi_1 3000", end);
        assert_eq!(
            ours.check("wpi_1 3000", &signed, now).unwrap().as_second(),
            end.as_second()
        );
        assert_eq!(ours.check("wpi_1 3001", &signed, now), Err(LinkFault::Forged));
        assert_eq!(other.check("wpi_1 3000", &signed, now), Err(LinkFault::Forged));
        assert_eq!(ours.check("wpi_1 3000", &signed, end), Err(LinkFault::Ended));
        let (seconds, mac) = signed.split_once('-').unwrap();
        let later = format!("{}-{mac}", seconds.parse::<i64>().unwrap() + 3600);
        for forged in [
            "",
            "-",
            "x",
            &later,
            &signed[..signed.len() - 2],
            &format!("{signed}00"),
        ] {
            assert_eq!(
                ours.check("wpi_1 3000", forged, now),
                Err(LinkFault::Forged),
                "{forged}"
            );
        }
        assert!(!format!("{ours:?}").contains("key"));
    }
}
