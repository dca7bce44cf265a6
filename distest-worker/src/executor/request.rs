//! What an attempt's start looks like to the zygote, and its failure to people.

use std::ffi::OsStr;
use std::io;

use nix::errno::Errno;

use super::SpawnRequest;
use crate::zygote::wire::{Spawn, SpawnStep, push_text};

/// What an environment usually fits into.
const ENV_BYTES: usize = 8 * 1024;

/// The request as the zygote takes it. An error names a text that no process can be given.
pub(super) fn encode(request: &SpawnRequest) -> io::Result<Spawn> {
    let (program, cwd) = (request.program.as_os_str(), request.cwd.as_os_str());
    let (mut its_program, mut its_cwd) = (Vec::new(), Vec::new());
    push_text(&mut its_program, &[program])?;
    push_text(&mut its_cwd, &[cwd])?;
    let mut args = its_program.clone();
    for arg in &request.args {
        push_text(&mut args, &[arg])?;
    }
    let mut env = Vec::with_capacity(ENV_BYTES);
    for (name, value) in request.env.iter() {
        push_text(&mut env, &[name, OsStr::new("="), value])?;
    }
    Ok(Spawn {
        attempt: request.attempt,
        leak_timeout: request.leak_timeout,
        program: its_program.into(),
        cwd: its_cwd.into(),
        args: args.into(),
        env: env.into(),
        network: request.network,
        forwards: request.forwards.clone(),
        // Many tests after each other, each of which libtest starts in a thread and waits for.
        patient: request.progress,
    })
}

/// What we were doing, to what, why it failed, and what to do about it.
pub(super) fn explain(request: &SpawnRequest, step: SpawnStep, error: &io::Error) -> String {
    let program = request.program.display();
    let mut text = match step {
        SpawnStep::Receive => format!("could not prepare to start {program}: {error}"),
        SpawnStep::ChangeFolder => {
            format!("could not enter {} to start {program}: {error}", request.cwd.display())
        }
        SpawnStep::Fence => {
            format!("could not keep {program} from signalling other processes: {error}")
        }
        SpawnStep::Execute => format!("could not start {program}: {error}"),
        SpawnStep::Network => {
            format!("could not make a network of its own to start {program} in: {error}")
        }
        SpawnStep::Forward => {
            let forwards: Vec<_> = request.forwards.iter().map(ToString::to_string).collect();
            let forwards = forwards.join(", ");
            format!("could not listen for {program} where it finds {forwards}: {error}")
        }
    };
    let hint = match (step, error.raw_os_error().map(Errno::from_raw)) {
        (SpawnStep::Network, Some(Errno::ENOSPC)) => {
            "; raise the limit of network namespaces (sysctl user.max_net_namespaces)"
        }
        (SpawnStep::Execute, Some(Errno::ENOENT)) if request.program.exists() => {
            "; the file is there, so its interpreter or dynamic loader is not"
        }
        (_, Some(Errno::E2BIG)) => "; arguments and environment are too long for this system",
        (_, Some(Errno::EMFILE | Errno::ENFILE)) => "; raise the limit of open files (ulimit -n)",
        (SpawnStep::Execute, Some(Errno::ENOEXEC)) => "; was it built for this machine?",
        _ => "",
    };
    text.push_str(hint);
    text
}
