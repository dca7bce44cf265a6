#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    distest_fuzz::run("configuration", data);
});
