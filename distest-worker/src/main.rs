//! The worker's executable.
fn main() {
    distest_worker::zygote::enter_if_asked();
}
