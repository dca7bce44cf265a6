//! `measure FILE COMMAND…`: runs a command and writes what it took into FILE, as JSON.

use std::{env, fs, io};

use distest_tests::measure::run_measured;

fn main() -> io::Result<()> {
    let mut args = env::args_os().skip(1);
    let (Some(file), Some(program)) = (args.next(), args.next()) else {
        return Err(io::Error::other("usage: measure FILE COMMAND…"));
    };
    let cost = run_measured(program, args)?;
    fs::write(file, serde_json::to_vec(&cost)?)
}
