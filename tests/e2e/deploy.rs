//! The files of `deploy/`: what a machine can check of them, so that they keep up with the program.

use std::env;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::product::{product, repository};
use distest_tests::scratch::Scratch;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use yaml_rust2::{Yaml, YamlLoader};

use crate::{case, case_if};

/// Commands of `distest-worker`.
const COMMANDS: [&str; 5] = ["serve", "join", "stdio", "registry", "invite"];
/// What would keep a worker from making sandboxes, or is unknown to older versions of systemd.
const NOT_IN_THE_UNIT: [&str; 10] = [
    "ProtectProc",
    "ProcSubset",
    "ProtectKernelTunables",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectHostname",
    "RestrictNamespaces",
    "PrivateUsers",
    "SystemCallFilter",
    "NoNewPrivileges",
];

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case_if("deploy::systemd_reads_the_units", systemd, units),
        case("deploy::the_worker_takes_the_socket_of_systemd", handed),
        case("deploy::the_worker_takes_no_socket_that_is_not_its_own", not_handed),
        case("deploy::commands_in_the_files_exist", commands),
        case("deploy::kubernetes_objects_fit_together", kubernetes),
        case("deploy::the_image_has_what_it_copies", image),
        case_if("deploy::apparmor_reads_the_profile", parser, apparmor),
    ]
}

fn file(name: &str) -> PathBuf {
    repository().join("deploy").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

fn systemd() -> Result<(), String> {
    let there = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status();
    there.map(|_| ()).map_err(|error| format!("systemd-analyze can't be run: {error}"))
}

fn units(scratch: &Scratch) {
    let installed = "/usr/local/bin/distest-worker";
    let service = text("systemd/distest-worker.service");
    assert!(service.contains(&format!("ExecStart={installed} ")));
    let here = service.replace(installed, &product().worker.display().to_string());
    scratch.write("units/distest-worker.service", &here);
    scratch.write("units/distest-worker.socket", &text("systemd/distest-worker.socket"));
    let verify = || {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(scratch.join("units/distest-worker.service"))
            .arg(scratch.join("units/distest-worker.socket"))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (fine, told) = verify();
    assert!(fine && !told.contains("distest"), "{told}");
    // It does look.
    scratch.write("units/distest-worker.service", &here.replace("[Service]", "[Service]\nNo=such"));
    assert!(verify().1.contains("distest"));
    for directive in NOT_IN_THE_UNIT {
        let given = service.lines().any(|line| line.starts_with(&format!("{directive}=")));
        assert!(!given, "{directive} keeps the worker from making sandboxes");
    }
    let user = service.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
    let users = text("systemd/distest.sysusers");
    let home = "/var/lib/distest";
    assert!(
        users
            .lines()
            .any(|line| line.starts_with(&format!("u     {user} ")) && line.contains(home))
    );
    assert!(service.contains("StateDirectory=distest\n"), "whose home that is");
}

/// A worker that gets a socket as systemd hands it over.
pub(crate) fn start_handed(scratch: &Scratch, socket: OwnedFd, given: &str) -> Worker {
    let script = format!("exec 3<&0 </dev/null; {given} exec \"$@\"");
    Worker::start_changed(scratch, "w1", 2, &scratch.join("store"), Executable::Worker, |command| {
        let mut shell = scratch.command("sh");
        shell.args(["-c", &script, "sh"]).arg(command.get_program());
        let args = command.get_args().map(|arg| match arg.to_str() {
            Some("127.0.0.1:0") => "systemd".into(),
            _ => arg.to_owned(),
        });
        shell.args(args).current_dir(scratch.path()).stdin(socket).stdout(Stdio::piped());
        shell.stderr(File::create(scratch.join("worker-w1.log")).unwrap());
        *command = shell;
    })
}

fn handed(scratch: &Scratch) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let worker = start_handed(scratch, listener.into(), "LISTEN_PID=$$ LISTEN_FDS=1");
    assert_eq!(worker.socket(), address.to_string());
    let fixture = Fixture::named("environment");
    let run = Client::run(scratch, &fixture).only_on(std::slice::from_ref(&worker));
    let transcript = run.finish().transcript(0);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
}

fn not_handed(scratch: &Scratch) {
    let serve = |given: &str| {
        let script = format!("exec 3<&0 </dev/null; {given} exec \"$@\" serve --listen systemd");
        let mut command = scratch.command("sh");
        let command = command.args(["-c", &script, "sh"]).arg(&product().worker);
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let output = command.stdin(OwnedFd::from(ours)).output().unwrap();
        assert_eq!(output.status.code(), Some(96));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (given, why) in [
        ("", "hands no socket"),
        ("LISTEN_PID=1 LISTEN_FDS=1", "hands no socket"),
        ("LISTEN_PID=$$ LISTEN_FDS=2", "hands 2 sockets"),
        ("LISTEN_PID=$$ LISTEN_FDS=1", "no TCP socket"),
    ] {
        let told = serve(given);
        assert!(told.contains(why) && told.contains("hint: "), "{given}: {told}");
    }
}

/// The command lines of a text that call one of our programs.
fn called(text: &str) -> Vec<Vec<String>> {
    let lines = text.replace("\\\n#", "").replace("\\\n", "");
    let mut found = Vec::new();
    for line in lines.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        let line = line.strip_prefix("ExecStart=").unwrap_or(line);
        let words = line.replace(['[', ']', '"', ','], " ").replace('`', " ` ");
        let words: Vec<&str> = words.split_whitespace().collect();
        for (at, pair) in words.windows(2).enumerate() {
            let program = pair[0].rsplit('/').next().unwrap();
            let worker = program == "distest-worker" && COMMANDS.contains(&pair[1]);
            if worker || (program == "cargo" && pair[1] == "distest") {
                let rest =
                    words[at..].iter().take_while(|it| !["#", "|", "`", ";", "&&"].contains(*it));
                found.push(rest.map(|word| (*word).to_owned()).collect());
            }
        }
    }
    found
}

/// That a command line would be understood: `--help` comes last, so all before it is looked at.
#[track_caller]
fn exists(scratch: &Scratch, words: &[String]) {
    understood(scratch, words).unwrap();
}

fn understood(scratch: &Scratch, words: &[String]) -> Result<(), String> {
    let (program, args) = match words[0].as_str() {
        "cargo" => (&product().client, &words[1..]),
        _ => (&product().worker, &words[1..]),
    };
    let output = scratch.command(program).args(args).arg("--help").output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn commands(scratch: &Scratch) {
    let mut count = 0;
    for name in
        ["README.md", "Dockerfile", "systemd/distest-worker.service", "kubernetes/registry.yaml"]
    {
        let found = called(&text(name));
        assert!(!found.is_empty(), "{name} calls something");
        count += found.len();
        found.iter().for_each(|words| exists(scratch, words));
    }
    assert!(count >= 8, "{count}");
    // What the check is worth.
    let wrong = ["distest-worker", "serve", "--listen", "0.0.0.0:1", "--no-such"].map(String::from);
    assert!(understood(scratch, &wrong).is_err());
    // The files that the README copies.
    let readme = text("README.md");
    let named: Vec<_> =
        readme.split_whitespace().filter(|word| word.starts_with("deploy/")).collect();
    assert!(named.len() >= 6, "{named:?}");
    named.iter().for_each(|name| assert!(repository().join(name).is_file(), "{name}"));
}

fn objects(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&text(name)).unwrap()
}

fn strings(list: &Yaml) -> Vec<String> {
    list.as_vec().into_iter().flatten().map(|it| it.as_str().unwrap().to_owned()).collect()
}

/// The words of the image's entry point.
fn entry_point() -> Vec<String> {
    let dockerfile = text("Dockerfile");
    let line = dockerfile.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).unwrap();
    serde_json::from_str(line).unwrap()
}

fn kubernetes(scratch: &Scratch) {
    let all = [objects("kubernetes/registry.yaml"), objects("kubernetes/worker.yaml")].concat();
    let mut kinds = Vec::new();
    let mut ports = Vec::new();
    for object in &all {
        let kind = object["kind"].as_str().unwrap();
        kinds.push(kind);
        let version = object["apiVersion"].as_str().unwrap();
        assert_eq!(version, if kind == "Service" { "v1" } else { "apps/v1" });
        let name = object["metadata"]["name"].as_str().unwrap();
        assert!(name.len() < 64 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
        if kind == "Deployment" {
            ports.extend(deployment(scratch, object));
        }
    }
    assert_eq!(kinds, ["Deployment", "Service", "Deployment"]);
    let service = &all[1];
    let labels = &all[0]["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&service["spec"]["selector"], labels);
    let port = &service["spec"]["ports"][0];
    let number = port["port"].as_i64().unwrap();
    let target = port["targetPort"].as_str().unwrap().to_owned();
    assert!(ports.contains(&(target, number)), "{ports:?}");
    let place = format!("{}:{number}", service["metadata"]["name"].as_str().unwrap());
    let args = strings(&all[2]["spec"]["template"]["spec"]["containers"][0]["args"]);
    assert!(args.windows(2).any(|it| it == ["--register", place.as_str()]), "{args:?}");
    assert!(text("README.md").contains(&format!("registry://{place}")));
}

/// Checks what a deployment says of itself; the ports that it names.
fn deployment(scratch: &Scratch, object: &Yaml) -> Vec<(String, i64)> {
    let template = &object["spec"]["template"];
    assert_eq!(&object["spec"]["selector"]["matchLabels"], &template["metadata"]["labels"]);
    let spec = &template["spec"];
    let names = |list: &Yaml, key: &str| -> Vec<String> {
        let list = list.as_vec().into_iter().flatten();
        list.map(|it| it[key].as_str().unwrap().to_owned()).collect()
    };
    let volumes = names(&spec["volumes"], "name");
    let uid = spec["securityContext"]["runAsUser"].as_i64().unwrap();
    assert!(text("Dockerfile").contains(&format!("\nUSER {uid}:{uid}\n")));
    let mut ports = Vec::new();
    for key in ["initContainers", "containers"] {
        for container in spec[key].as_vec().into_iter().flatten() {
            for mounted in names(&container["volumeMounts"], "name") {
                assert!(volumes.contains(&mounted), "no volume {mounted}");
            }
            let named = container["ports"].as_vec().into_iter().flatten();
            let named = named.map(|port| {
                (port["name"].as_str().unwrap().to_owned(), port["containerPort"].as_i64().unwrap())
            });
            let named: Vec<_> = named.collect();
            if key == "containers" {
                let mut words = strings(&container["command"]);
                if words.is_empty() {
                    words = entry_point();
                }
                words.extend(strings(&container["args"]));
                exists(scratch, &[vec!["distest-worker".to_owned()], words[1..].to_vec()].concat());
                // It listens where the object says.
                for (name, port) in &named {
                    let at = format!("0.0.0.0:{port}");
                    assert!(words.contains(&at), "nothing listens at {name}: {words:?}");
                }
                let probe = &container["readinessProbe"];
                let asked = ["tcpSocket", "httpGet"].map(|kind| probe[kind]["port"].as_str());
                let probe = asked.into_iter().flatten().next().expect("a port is asked");
                assert!(named.iter().any(|(name, _)| name == probe));
            }
            ports.extend(named);
        }
    }
    ports
}

fn image(scratch: &Scratch) {
    let dockerfile = text("Dockerfile");
    let toolchain = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let version = toolchain.lines().find_map(|it| it.strip_prefix("rust-version = ")).unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{}-", version.trim_matches('"'))));
    let words = entry_point();
    exists(scratch, &[vec!["distest-worker".to_owned()], words[1..].to_vec()].concat());
    let copied = dockerfile.lines().find(|line| line.starts_with("COPY --from=build")).unwrap();
    assert!(copied.ends_with(&words[0]), "{copied}");
    let port = words.last().unwrap().rsplit(':').next().unwrap();
    assert!(dockerfile.contains(&format!("\nEXPOSE {port}\n")));
    assert!(Path::new(&repository()).join(".dockerignore").is_file());
}

/// AppArmor's parser, found by `sbin`'s place too, which an ordinary user's `PATH` may lack.
fn apparmor_parser() -> Command {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut command = Command::new("apparmor_parser");
    command.env("PATH", env::join_paths(folders).unwrap());
    command
}

fn parser() -> Result<(), String> {
    let there = apparmor_parser().arg("--version").stdout(Stdio::null()).status();
    there.map(drop).map_err(|error| format!("apparmor_parser (apparmor) can't be run: {error}"))
}

/// Rules about user namespaces come with AppArmor 4, which not every system has: an older parser
/// reads all the rest.
fn apparmor(scratch: &Scratch) {
    let profile = text("apparmor/distest-worker");
    for rule in ["abi <abi/4.0>,", "\n  userns,\n", "flags=(unconfined)"] {
        assert!(profile.contains(rule), "{rule}");
    }
    let version = apparmor_parser().arg("--version").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let major = version.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    let profile = match major {
        None => panic!("which version is that? {version}"),
        Some(..=3) => profile.replace("abi/4.0", "abi/3.0").replace("  userns,\n", ""),
        Some(4_u32..) => profile,
    };
    let read = |profile: &str| {
        let file = scratch.write("profile", profile);
        // Nothing is loaded into the kernel, and nothing cached.
        let read = apparmor_parser().arg("-QTK").arg(file).output().unwrap();
        (read.status.success(), String::from_utf8_lossy(&read.stderr).into_owned())
    };
    let (fine, told) = read(&profile);
    assert!(fine, "{told}");
    // It does look.
    assert!(!read(&profile.replace("(unconfined)", "(no-such)")).0);
    assert!(!read(&profile.replace("include if", "includes if")).0);
}
