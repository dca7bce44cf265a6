//! Changes inputs, always in the same way for the same seed.

/// What often breaks something when it stands for a length or a number.
const TELLING: [&[u8]; 12] = [
    &[0],
    &[0xff],
    &[0x7f, 0xff],
    &[0xff, 0xff, 0xff, 0xff],
    // MessagePack: maps, lists, texts and bytes of 4 GiB, and a deep nesting's beginning.
    &[0xdf, 0xff, 0xff, 0xff, 0xff],
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xdb, 0xff, 0xff, 0xff, 0xff],
    &[0xc6, 0xff, 0xff, 0xff, 0xff],
    &[0x91, 0x91, 0x91, 0x91],
    b"../",
    b"((((",
    b"\n",
];
/// Changes of one input.
const CHANGES_MAX: u64 = 6;
/// Of what repeats a piece, so that nesting becomes deep.
const REPEATS_MAX: u64 = 1 << 12;
/// Of an input.
const BYTES_MAX: usize = 64 * 1024;

/// Draws inputs (SplitMix64, Steele and others, OOPSLA 2014).
pub(crate) struct Mutator(u64);

impl Mutator {
    /// The one of this number.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6469_7374_6573_7421)
    }

    /// One of these, changed.
    pub(crate) fn input(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut input = kept[self.below(kept.len())].clone();
        for _ in 0..=self.next() % CHANGES_MAX {
            self.change(&mut input, kept);
            input.truncate(BYTES_MAX);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, kept: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below(input.len() - at + 1);
        match self.next() % 9 {
            0 if at < input.len() => input[at] ^= 1 << (self.next() % 8),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 => input.truncate(at),
            3 => drop(input.drain(at..end.min(at + 16))),
            4 => {
                let piece = input[at..end].to_vec();
                drop(input.splice(at..at, piece));
            }
            5 => {
                let other = &kept[self.below(kept.len())];
                let from = self.below(other.len() + 1);
                drop(input.splice(at..end, other[from..].iter().copied()));
            }
            6 => {
                let telling = TELLING[self.below(TELLING.len())];
                let end = (at + telling.len()).min(input.len());
                drop(input.splice(at..end, telling.iter().copied()));
            }
            7 => {
                let telling = TELLING[self.below(TELLING.len())];
                drop(input.splice(at..at, telling.iter().copied()));
            }
            8 => {
                let piece = input[at..end.min(at + 8)].to_vec();
                let times = 1 << (self.next() % REPEATS_MAX.ilog2() as u64);
                drop(input.splice(at..at, piece.repeat(times)));
            }
            _ => input.push(self.next() as u8),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
