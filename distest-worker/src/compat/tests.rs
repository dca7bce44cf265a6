#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::process::Command;

use super::*;

#[test]
fn what_no_loader_would_find_is_lacking() {
    let own = read(Path::new("/proc/self/exe")).unwrap();
    let libc = own.needed.iter().find(|name| name.starts_with("libc.")).cloned().unwrap();
    let names = [libc.as_str(), "libno-such.so.1", "", ".", "../lib/libno-such.so", "/bin/sh"];
    let expected: Vec<_> = names[1..].to_vec();
    assert_eq!(lacking(names.map(str::to_owned).to_vec()), expected);
}

/// Compiles a little C in a folder of its own. Libraries and executables alike.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn compile(&self, name: &str, code: &str, args: &[&str]) -> PathBuf {
        let source = self.at("source.c");
        fs::write(&source, code).unwrap();
        let output = Command::new("cc")
            .current_dir(self.dir.path())
            .args(["-o", name, "source.c", "-L."])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.at(name)
    }

    fn check(&self, program: &Path, library_path: &[&str]) -> Result<(), String> {
        let loader = Loader {
            library_path: library_path.iter().map(|folder| self.at(folder)).collect(),
            on_disk: &Path::to_owned,
        };
        loader.check(program)
    }
}

const MAIN: &str = "int f(void); int main(void) { return f(); }";

#[test]
fn what_runs_here_can_be_loaded_here() {
    let bench = Bench::new();
    for program in ["/bin/sh", "/usr/bin/env"].map(Path::new) {
        assert_eq!(bench.check(program, &[]), Ok(()));
    }
    assert_eq!(bench.check(&std::env::current_exe().unwrap(), &[]), Ok(()));
    let script = bench.at("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    assert_eq!(bench.check(&script, &[]), Ok(()));
    assert_eq!(bench.check(&bench.at("absent"), &[]), Ok(()), "that is told elsewhere");
}

#[test]
fn a_missing_library_is_named() {
    let bench = Bench::new();
    bench.compile("libmine.so", "int f(void) { return 0; }", &["-shared", "-fPIC"]);
    let program = bench.compile("program", MAIN, &["-lmine"]);
    let missing = "program needs the library libmine.so, which is not installed here";
    assert_eq!(bench.check(&program, &[]), Err(missing.to_owned()));
    // In the environment's path.
    assert_eq!(bench.check(&program, &["."]), Ok(()));
    // Beside the executable, by either kind of path in it.
    for flag in ["-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags"] {
        let program = bench.compile("here", MAIN, &["-lmine", flag, "-Wl,-rpath,$ORIGIN"]);
        assert_eq!(bench.check(&program, &[]), Ok(()), "{flag}");
    }
    // Something else of that name is not it.
    fs::create_dir(bench.at("other")).unwrap();
    fs::write(bench.at("other/libmine.so"), "no library").unwrap();
    assert_eq!(bench.check(&program, &["other"]), Err(missing.to_owned()));
}

#[test]
fn a_librarys_library_counts_too() {
    let bench = Bench::new();
    bench.compile("libinner.so", "int g(void) { return 0; }", &["-shared", "-fPIC"]);
    let outer = "int g(void); int f(void) { return g(); }";
    bench.compile("libmine.so", outer, &["-shared", "-fPIC", "-linner"]);
    let program = bench.compile("program", MAIN, &["-lmine", "-Wl,-rpath-link,."]);
    assert_eq!(bench.check(&program, &["."]), Ok(()));
    fs::remove_file(bench.at("libinner.so")).unwrap();
    let missing = "libmine.so needs the library libinner.so, which is not installed here";
    assert_eq!(bench.check(&program, &["."]), Err(missing.to_owned()));
}

#[test]
fn an_older_library_is_told_from_a_newer() {
    let bench = Bench::new();
    let library = |versions: &str| {
        fs::write(bench.at("map"), versions).unwrap();
        let code = "int f(void) { return 0; }";
        bench.compile("libmine.so", code, &["-shared", "-fPIC", "-Wl,--version-script,map"]);
    };
    library("MINE_1.0 { };\nMINE_2.0 { global: f; } MINE_1.0;\n");
    let program = bench.compile("program", MAIN, &["-lmine"]);
    assert_eq!(bench.check(&program, &["."]), Ok(()));
    library("MINE_1.0 { global: f; };\n");
    let told = bench.check(&program, &["."]).unwrap_err();
    assert!(told.starts_with("program needs version MINE_2.0 of libmine.so"), "{told}");
}

#[test]
fn a_missing_loader_is_named() {
    let bench = Bench::new();
    let program =
        bench.compile("program", "int main(void) { return 0; }", &["-Wl,-I/lib/ld-other.so.9"]);
    let missing = "it needs the loader /lib/ld-other.so.9, which is not here";
    assert_eq!(bench.check(&program, &[]), Err(missing.to_owned()));
    let alone = bench.compile("alone", "int main(void) { return 0; }", &["-static"]);
    assert_eq!(bench.check(&alone, &[]), Ok(()));
}

#[test]
fn paths_are_those_that_the_process_will_see() {
    let bench = Bench::new();
    let program = bench.compile("program", "int main(void) { return 0; }", &[]);
    let on_disk = |path: &Path| match path.strip_prefix("/seen") {
        Ok(rest) => bench.dir.path().join(rest),
        Err(_) => path.to_owned(),
    };
    let loader = Loader { library_path: vec!["/seen".into()], on_disk: &on_disk };
    assert_eq!(loader.check(Path::new("/seen/program")), Ok(()));
    fs::remove_file(program).unwrap();
}
