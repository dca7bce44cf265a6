//! TAKEN: the integrator is writing this file (server.rs, serve.rs, cli.rs, main.rs) on main right now (12:02). You write session.rs only, as briefed, commit everything at once (link, hello, session), and report.
//! The worker's executable.
fn main() {
    distest_worker::zygote::enter_if_asked();
}
