//! What the executor and a sandbox cost per process, beside a raw loop of posix_spawn and waitpid.
//!
//! `cargo run --release -p distest-worker --example spawn_cost -- COUNT PROGRAM ARGS…` runs the
//! program COUNT times through two slots, then the same in sandboxes as good as this machine allows,
//! then so and each in a network of its own, then COUNT times two at a time in the raw loop, five rounds of all, and prints processor time per process, all that took part included.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distest_worker::executor::{
    Deadline, ExecutorOptions, SlotCommand, SlotEvent, Slots, SpawnRequest,
};
use distest_worker::probe::probe;
use distest_worker::protocol::{AttemptId, Network, SlotId, Streams};
use distest_worker::sandbox::Sandbox;
use distest_worker::sandbox::enclosure::Enclosure;
use distest_worker::sandbox::host::Host;
use distest_worker::sandbox::level::Level;
use distest_worker::zygote::{ZygoteProgram, enter_if_asked};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::mpsc;

const AT_ONCE: u32 = 2;
const ROUNDS: u32 = 5;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    enter_if_asked();
    let mut args = std::env::args_os().skip(1);
    let count = args.next().and_then(|count| count.to_str()?.parse().ok());
    let command: Vec<_> = args.collect();
    let (Some(count), [program, args @ ..]) = (count, &command[..]) else {
        return Err("usage: spawn_cost COUNT PROGRAM ARGS…".into());
    };
    let request = SpawnRequest {
        attempt: AttemptId(0),
        program: program.into(),
        args: args.to_vec(),
        env: std::env::vars_os().collect(),
        cwd: std::env::current_dir()?,
        streams: Streams::Capture,
        progress: false,
        leak_timeout: Duration::from_millis(200),
        layer: 0,
        network: Network::Host,
        forwards: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for _ in 0..ROUNDS {
        measure("executor", count, || runtime.block_on(through_slots(count, &request, false)))?;
        measure("enclosed", count, || runtime.block_on(through_slots(count, &request, true)))?;
        let private = SpawnRequest { network: Network::Private, ..request.clone() };
        measure("private network", count, || {
            runtime.block_on(through_slots(count, &private, true))
        })?;
        measure("raw loop", count, || raw_loop(count, &request))?;
    }
    Ok(())
}

fn measure(what: &str, count: u32, run: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let (own_before, before) = (own_time()?, processor_time(UsageWho::RUSAGE_CHILDREN)?);
    let started = Instant::now();
    run()?;
    let wall = started.elapsed() / count;
    let own = (own_time()? - own_before) / count;
    let total = own + (processor_time(UsageWho::RUSAGE_CHILDREN)? - before) / count;
    writeln!(io::stdout(), "{what}: {total:?} CPU ({own:?} our own), {wall:?} wall per process")?;
    Ok(())
}

fn own_time() -> Result<Duration, Error> {
    processor_time(UsageWho::RUSAGE_SELF)
}

fn processor_time(who: UsageWho) -> Result<Duration, Error> {
    let usage = getrusage(who)?;
    let mut total = Duration::ZERO;
    for time in [usage.user_time(), usage.system_time()] {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        total += Duration::from_micros(micros.try_into()?);
    }
    Ok(total)
}

async fn through_slots(count: u32, request: &SpawnRequest, enclosed: bool) -> Result<(), Error> {
    let scratch = tempfile::tempdir()?;
    let zygote = ZygoteProgram::this_executable();
    let enclosure = if enclosed { Some(enclosure(&zygote, scratch.path())?) } else { None };
    let options = ExecutorOptions {
        scratch: scratch.path().into(),
        zygote,
        enclosure,
        wanted: None,
        deadline: Arc::new(Deadline::new()?),
    };
    let (sender, mut events) = mpsc::channel(16);
    let slots = Slots::start(AT_ONCE, options, sender);
    let (mut started, mut ended) = (0, 0);
    let mut next = |slot: SlotId| {
        if started < count {
            started += 1;
            let request = SpawnRequest { attempt: AttemptId(started.into()), ..request.clone() };
            slots.command(slot, SlotCommand::Spawn(Box::new(request)));
        }
    };
    while ended < count {
        match events.recv().await.ok_or("the slots are gone")? {
            SlotEvent::Ready { slot } => next(slot),
            SlotEvent::Exited(exit) => {
                ended += 1;
                next(exit.slot);
            }
            SlotEvent::Spawned { .. } => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
    slots.end().await;
    Ok(())
}

/// A sandbox in which the program is found where it is, beside a root that it doesn't need.
fn enclosure(zygote: &ZygoteProgram, scratch: &Path) -> Result<Arc<Enclosure>, Error> {
    let mut host = Host::of_this_process(&[]);
    probe(&mut host, zygote, scratch, Level::Namespaces);
    if !host.level.is_enclosed() {
        return Err(format!("no sandbox can be had here: {:?}", host.shortfall).into());
    }
    let sandbox = Sandbox::on(Arc::new(host), scratch.join("sandbox"), &["/nowhere/root".into()])?;
    let enclosure = sandbox.enclosure().ok_or("the level has no sandbox")?;
    // What is laid out goes with the scratch folder.
    std::mem::forget(sandbox);
    Ok(Arc::new(enclosure))
}

fn raw_loop(count: u32, request: &SpawnRequest) -> Result<(), Error> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let text = |parts: &[&[u8]]| CString::new(parts.concat());
    let program = text(&[request.program.as_os_str().as_bytes()])?;
    let mut args = vec![program.clone()];
    for arg in &request.args {
        args.push(text(&[arg.as_bytes()])?);
    }
    let env: Vec<CString> = request
        .env
        .iter()
        .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()]))
        .collect::<Result<_, _>>()?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let mut actions = nix::spawn::PosixSpawnFileActions::init()?;
    for number in 0..3 {
        actions.add_dup2(null.as_raw_fd(), number)?;
    }
    let attributes = nix::spawn::PosixSpawnAttr::init()?;
    for started in 0..count + AT_ONCE {
        if started >= AT_ONCE {
            nix::sys::wait::wait()?;
        }
        if started < count {
            nix::spawn::posix_spawn(program.as_c_str(), &actions, &attributes, &args, &env)?;
        }
    }
    Ok(())
}
