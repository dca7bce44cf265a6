//! Becomes a command in the surroundings of a hermetic worker; see `distest_tests::hermetic`.

use std::env;
use std::io;

fn main() -> io::Result<()> {
    let plan = env::args().nth(1).unwrap_or_default();
    distest_tests::hermetic::enter(&plan)
}
