//! Proving that one holds a content, without sending it: HMAC-SHA256 over all of its bytes, keyed
//! by a nonce that the other side has just made up (RFC 2104).
//!
//! Who knows no more than a digest can't compute it, nor can who has seen the proof for another
//! nonce. Who passes a nonce on to somebody that has the content gains nothing: they would have
//! sent the content itself to whoever asks.

use std::io::{self, Read};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a nonce, and of a proof.
pub const BYTES: usize = 32;
/// Bytes read at a time.
const READ_BYTES: usize = 128 * 1024;

/// Made up for one connection.
#[derive(Clone, Debug)]
pub struct Nonce([u8; BYTES]);

/// What only who holds the content can tell.
#[derive(Clone, Debug)]
pub struct Mac(hmac::Tag);

impl Nonce {
    /// A new one. None if the system has no random numbers.
    pub fn new() -> Option<Self> {
        let mut bytes = [0; BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// As it was sent. None if it is anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The proof for all that `content` yields.
    ///
    /// # Errors
    /// Whatever `content` reports.
    pub fn prove(&self, mut content: impl Read) -> io::Result<Mac> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return Ok(Mac(context.sign())),
                Ok(n) => context.update(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Mac {
    /// As it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Whether somebody's proof is this one; how long that takes tells nothing of where it is not.
    pub fn is(&self, theirs: &[u8]) -> bool {
        theirs.len() == BYTES
            && self.as_bytes().iter().zip(theirs).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_content_and_nonce_prove_it() {
        let (nonce, other) = (Nonce::new().unwrap(), Nonce::new().unwrap());
        let content = vec![7; READ_BYTES + 1];
        let proof = nonce.prove(&content[..]).unwrap();
        let same = Nonce::from_bytes(nonce.as_bytes()).unwrap();
        assert!(same.prove(&content[..]).unwrap().is(proof.as_bytes()));
        assert!(!nonce.prove(&content[1..]).unwrap().is(proof.as_bytes()));
        assert!(!other.prove(&content[..]).unwrap().is(proof.as_bytes()));
        assert!(!proof.is(&[]) && !proof.is(&proof.as_bytes()[1..]));
        assert!(Nonce::from_bytes(b"short").is_none());
    }

    /// As `openssl dgst -sha256 -mac HMAC -macopt hexkey:…` says for 32 zero bytes.
    #[test]
    fn is_hmac_sha_256() {
        let nonce = Nonce::from_bytes(&[0; BYTES]).unwrap();
        let mac = nonce.prove(&b"what do ya want for nothing?"[..]).unwrap();
        assert_eq!(
            data_encoding::HEXLOWER.encode(mac.as_bytes()),
            "76d9e7194e7dbc3aa00bbe8ffb9f6fcb5a932170f971f948bb2ab61607d2b9d6"
        );
    }
}
