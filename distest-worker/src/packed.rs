//! Reading MessagePack that others wrote: no deeper than anything that we write.

use rmp_serde::decode::{Error, ReadRefReader};
use serde::de::DeserializeOwned;

/// Lists and maps within each other. What a reader skips, too, is read by recursion: at the
/// library's own bound of 1,024 that takes more stack than a thread may have.
const DEPTH_MAX: usize = 64;

/// What reads values one after the other.
pub type Reader<'a> = rmp_serde::Deserializer<ReadRefReader<'a, [u8]>>;

/// Reads values from bytes.
pub fn reader(bytes: &[u8]) -> Reader<'_> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    reader
}

/// Reads one value.
///
/// # Errors
/// The bytes are none.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    T::deserialize(&mut reader(bytes))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    struct Known {
        #[serde(default)]
        known: u8,
    }

    fn with_unknown(depth: usize) -> Vec<u8> {
        let mut bytes = b"\x82\xa7unknown".to_vec();
        bytes.extend(std::iter::repeat_n(0x91, depth));
        bytes.extend(b"\xc0\xa5known\x07");
        bytes
    }

    /// Found by fuzzing: the process ended for want of stack.
    #[test]
    fn deep_nesting_in_an_unknown_field_is_refused() {
        assert_eq!(read::<Known>(&with_unknown(10)).unwrap(), Known { known: 7 });
        for depth in [1_000, 10_000, 1_000_000] {
            assert!(matches!(read::<Known>(&with_unknown(depth)), Err(Error::DepthLimitExceeded)));
        }
    }
}
