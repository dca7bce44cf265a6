//! Ed25519 keys and how they are written.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};

/// What a key's text begins with.
const PREFIX: &str = "ed25519:";
/// Bytes of a key, private or public.
const KEY_BYTES: usize = 32;
/// A public key as DER (RFC 8410, `SubjectPublicKeyInfo`) is this and the key.
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
/// A private key as DER (RFC 8410, PKCS #8 version 1) is this and the seed.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const PEM_HEAD: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_FOOT: &str = "-----END PRIVATE KEY-----";

/// A public key. Written `ed25519:` and 43 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; KEY_BYTES]);

/// A private key. Written as PEM (PKCS #8), as `openssl genpkey -algorithm ed25519` does. Never
/// shown.
#[derive(Clone)]
pub struct PrivateKey {
    seed: [u8; KEY_BYTES],
    public: PublicKey,
}

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Of a public key.
    #[error("a key is written `ed25519:` and 43 letters, digits, `-` or `_`")]
    Public,
    /// Of a private key.
    #[error("this is no Ed25519 private key in PEM (`-----BEGIN PRIVATE KEY-----`…)")]
    Private,
    /// The system has no randomness.
    #[error("the system has no random numbers for a key")]
    NoRandomness,
}

impl PublicKey {
    /// The key in a certificate slot of TLS: RFC 7250's raw public key, 44 bytes.
    pub fn spki(&self) -> Vec<u8> {
        [&SPKI_HEAD[..], &self.0].concat()
    }

    /// A name for a file about it, unlike any other key's.
    pub fn file_name(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    /// From what a peer presents. None if it is anything but an Ed25519 key.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        Some(Self(der.strip_prefix(&SPKI_HEAD)?.try_into().ok()?))
    }
}

impl PrivateKey {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::NoRandomness)?;
        Self::from_seed(seed)
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// PKCS #8, DER.
    pub fn pkcs8(&self) -> Vec<u8> {
        [&PKCS8_HEAD[..], &self.seed].concat()
    }

    /// PKCS #8, PEM.
    pub fn pem(&self) -> String {
        format!("{PEM_HEAD}\n{}\n{PEM_FOOT}\n", BASE64.encode(&self.pkcs8()))
    }

    /// Claims to be of another public key: what an impostor would present.
    #[cfg(test)]
    pub(crate) fn with_public(key: &Self, public: PublicKey) -> Self {
        Self { public, ..key.clone() }
    }

    fn from_seed(seed: [u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Private)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Private)?;
        Ok(Self { seed, public: PublicKey(public) })
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    /// Takes PEM whose line ends were lost on the way too, as happens in settings of CI systems.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let body = text.trim().strip_prefix(PEM_HEAD).and_then(|rest| rest.strip_suffix(PEM_FOOT));
        let body: String =
            body.ok_or(KeyError::Private)?.replace("\\n", "").split_whitespace().collect();
        let der = BASE64.decode(body.as_bytes()).map_err(|_| KeyError::Private)?;
        let seed = der.strip_prefix(&PKCS8_HEAD).and_then(|seed| seed.try_into().ok());
        Self::from_seed(seed.ok_or(KeyError::Private)?)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let body = text.strip_prefix(PREFIX).ok_or(KeyError::Public)?;
        let key = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| KeyError::Public)?;
        Ok(Self(key.try_into().map_err(|_| KeyError::Public)?))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey of {}", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key = PrivateKey::generate().unwrap();
        let public = key.public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(PublicKey::from_spki(&public.spki()), Some(public));
        for pem in [key.pem(), key.pem().replace('\n', " "), key.pem().replace('\n', "\\n")] {
            let pem = pem.trim_end_matches("\\n");
            assert_eq!(pem.parse::<PrivateKey>().unwrap().public(), public, "{pem}");
        }
        assert!(!format!("{key:?}").contains(&BASE64.encode(&key.seed)));
    }

    #[test]
    fn a_key_made_by_openssl_is_one() {
        // RFC 8410, section 10.3.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        let key: PrivateKey = pem.parse().unwrap();
        assert_eq!(key.pem(), pem);
        // Section 10.1.
        let spki = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
        assert_eq!(BASE64.encode(&key.public().spki()), spki);
    }

    #[test]
    fn anything_else_is_none() {
        let good = PrivateKey::generate().unwrap().public().to_string();
        for text in ["", "ed25519:", &good[1..], &good[..good.len() - 1], &format!("{good}A")] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Public), "{text}");
        }
        assert!("".parse::<PrivateKey>().is_err());
        assert!(format!("{PEM_HEAD}{PEM_FOOT}").parse::<PrivateKey>().is_err());
        assert_eq!(PublicKey::from_spki(&[0x30; 44]), None);
    }
}
