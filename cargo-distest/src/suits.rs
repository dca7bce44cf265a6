//! Whether a worker can run a binary, as far as its greeting tells: asked before anything is sent
//! there. Pure.

use distest_worker::compat::elf::glibc_version;
use distest_worker::hello::{Hello, KNOWN_CPU_FEATURES};
use distest_worker::protocol::Forward;
use distest_worker::sandbox::level::Level;

use crate::model::TestBinary;

/// Why a worker that greets like this can't run a binary's tests, and what to do.
pub fn obstacle(binary: &TestBinary, worker: &Hello) -> Option<(String, Option<String>)> {
    if *binary.triple.0 != *worker.target {
        return Some((format!("built for {}, it runs {}", binary.triple, worker.target), None));
    }
    if let (Some(needed), Some(has)) = (binary.needs.glibc, glibc_version(&worker.libc))
        && has < needed
    {
        let (major, minor) = needed;
        let why = format!("it needs glibc {major}.{minor}, there is {} there", worker.libc);
        let hint = "build on the oldest system among your workers, or for a musl target";
        return Some((why, Some(hint.to_owned())));
    }
    let known = |feature: &&String| KNOWN_CPU_FEATURES.contains(&feature.as_str());
    let lacks = |feature: &&String| !worker.cpu_features.contains(feature);
    // One that tells of no features is no machine that we know features of.
    let lacking: Vec<&str> = match worker.cpu_features.is_empty() {
        true => Vec::new(),
        false => {
            let features = binary.needs.cpu_features.iter();
            features.filter(known).filter(lacks).map(String::as_str).collect()
        }
    };
    if !lacking.is_empty() {
        let why = format!(
            "it was built for a processor with {}, which the one there hasn't",
            lacking.join(", ")
        );
        let hint = "leave out target-cpu and target-feature in the compiler's flags";
        return Some((why, Some(hint.to_owned())));
    }
    let library = binary.needs.cargo_for.as_ref()?;
    if worker.tools.iter().any(|tool| tool == "cargo") {
        return None;
    }
    let why = format!("its tests call cargo ({library} does), and there is none in PATH there");
    Some((why, Some("install Rust on that worker".to_owned())))
}

/// Why a worker that greets like this can't give a test a network of its own; none if it can.
pub fn private_network_lack(worker: &Hello) -> Option<String> {
    match (worker.private_network, worker.private_network_lack.as_str()) {
        (true, _) => None,
        (false, "") => Some("its version knows nothing of that".to_owned()),
        (false, lack) => Some(lack.to_owned()),
    }
}

/// Why tests on a worker that greets like this can't find services of ours; none if they can, or
/// there are none.
pub fn forward_lack(worker: &Hello, embedded: bool, forwards: &[Forward]) -> Option<String> {
    let socket = forwards.iter().find(|forward| matches!(forward, Forward::Socket(_)));
    // Here the socket itself is in sight.
    let in_sight = embedded || Level::from_number(worker.sandbox_level).is_enclosed();
    match (worker.forwards, socket) {
        _ if forwards.is_empty() => None,
        (false, _) => Some("its version knows nothing of that".to_owned()),
        (true, Some(socket)) if !in_sight => {
            Some(format!("it has no sandbox in which {socket} could be shown"))
        }
        (true, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BinaryNeeds, Triple};

    fn check(needs: BinaryNeeds, change: fn(&mut Hello), expected: &str) {
        let mut worker = Hello {
            target: "x86_64-unknown-linux-gnu".to_owned(),
            libc: "glibc 2.36".to_owned(),
            cpu_features: vec!["avx".to_owned(), "avx2".to_owned()],
            ..Hello::default()
        };
        change(&mut worker);
        let binary = TestBinary {
            needs,
            triple: Triple::new("x86_64-unknown-linux-gnu"),
            ..TestBinary::sample()
        };
        let told = obstacle(&binary, &worker).map(|(why, _)| why).unwrap_or_default();
        assert_eq!(told, expected);
    }

    #[test]
    fn each_obstacle_is_named() {
        let none = BinaryNeeds::default();
        let glibc = |version| BinaryNeeds { glibc: Some(version), ..BinaryNeeds::default() };
        let cpu = |features: &[&str]| BinaryNeeds {
            cpu_features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            ..BinaryNeeds::default()
        };
        let cargo = BinaryNeeds { cargo_for: Some("trybuild".to_owned()), ..none.clone() };
        check(none.clone(), |_| {}, "");
        check(glibc((2, 36)), |_| {}, "");
        check(glibc((2, 38)), |_| {}, "it needs glibc 2.38, there is glibc 2.36 there");
        check(glibc((2, 38)), |worker| worker.libc.clear(), "");
        let other = "built for x86_64-unknown-linux-gnu, it runs aarch64-apple-darwin";
        check(none, |worker| worker.target = "aarch64-apple-darwin".to_owned(), other);

        // What every such processor has is in no greeting.
        check(cpu(&["sse2", "avx2"]), |_| {}, "");
        let lacking = "it was built for a processor with avx512f, which the one there hasn't";
        check(cpu(&["avx2", "avx512f"]), |_| {}, lacking);
        check(cpu(&["avx512f"]), |worker| worker.cpu_features.clear(), "");

        let mut worker = Hello::default();
        let old = private_network_lack(&worker);
        assert_eq!(old.as_deref(), Some("its version knows nothing of that"));
        worker.private_network = true;
        assert_eq!(private_network_lack(&worker), None);

        let (port, socket) = (Forward::Port(1), Forward::Socket("/run/x".into()));
        let both = [port.clone(), socket];
        assert_eq!(forward_lack(&worker, false, &[]), None);
        let lack = forward_lack(&worker, false, std::slice::from_ref(&port));
        assert_eq!(lack.as_deref(), Some("its version knows nothing of that"));
        worker.forwards = true;
        assert_eq!(forward_lack(&worker, false, &[port]), None);
        let lack = forward_lack(&worker, false, &both);
        assert_eq!(lack.as_deref(), Some("it has no sandbox in which /run/x could be shown"));
        assert_eq!(forward_lack(&worker, true, &both), None);
        worker.sandbox_level = Level::Mounts.number();
        assert_eq!(forward_lack(&worker, false, &both), None);

        let without = "its tests call cargo (trybuild does), and there is none in PATH there";
        check(cargo.clone(), |_| {}, without);
        check(cargo, |worker| worker.tools.push("cargo".to_owned()), "");
    }
}
