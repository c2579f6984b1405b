//! A shell that runs the commands of a document as they are written.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tests::documents::root;
use tokio::process;

use super::blocks::Command;
use crate::fixture::server;
use crate::stack::{Stack, base_port};

/// Address of the edge in the documents.
const EDGE: &str = "127.0.0.1:8080";
/// Address of query-api-1's admin listener in the documents, and its distance from the base port.
const ADMIN: (&str, u16) = ("127.0.0.1:18229", 229);
/// Line that precedes the output of each command.
const NEXT: &str = "=== next command";

/// A checkout whose stack has its own ports and state directory, and the `PATH` of its shell.
pub(super) struct Shell {
    folder: PathBuf,
    programs: PathBuf,
    variables: Vec<(&'static str, String)>,
    within: Duration,
}

impl Shell {
    /// Returns a shell in a folder that stands for a checkout. Its `cargo stack` is the program of this test run, and
    /// takes the services as they were built, also in the place of those of a revision.
    pub(super) fn as_built(stack: &Stack) -> Self {
        let folder = stack.state().join("checkout");
        fs::create_dir_all(&folder).unwrap();
        symlink(root().join("deploy"), folder.join("deploy")).unwrap();
        let (stack_program, built) = (server("TEST_STACK_BIN"), server("TEST_BIN_DIR"));
        let cargo = format!(
            "[ \"$1\" = stack ] || exit 1\nshift\n\
             case \"$1 $2\" in\n\
             up*) shift; set -- up --as-built \"$@\";;\n\
             recover*) shift; set -- recover --as-built \"$@\";;\n\
             restore*) shift; set -- restore --as-built \"$@\";;\n\
             'deploy HEAD') set -- deploy '{built}';;\n\
             esac\n\
             CARGO=true exec '{stack_program}' --profile dev {} \"$@\"",
            options(stack),
        );
        Self::new(stack, folder, &cargo, Duration::from_secs(300))
    }

    /// Returns a shell in a new clone of this checkout's last commit, in which nothing has been built.
    pub(super) async fn in_new_clone(stack: &Stack) -> Self {
        fs::create_dir_all(stack.state()).unwrap();
        let folder = stack.state().join("checkout");
        let cloned = process::Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(&folder).status();
        assert!(cloned.await.unwrap().success());
        // As the alias `cargo stack`.
        let cargo = format!(
            "if [ \"$1\" = stack ]; then shift; set -- run --quiet --bin stack -- {} \"$@\"; fi\n\
             PATH=$PATH_OF_CALLER; exec cargo \"$@\"",
            options(stack),
        );
        Self::new(stack, folder, &cargo, Duration::from_secs(3600))
    }

    fn new(stack: &Stack, folder: PathBuf, cargo: &str, within: Duration) -> Self {
        let programs = stack.state().join("shims");
        fs::create_dir_all(&programs).unwrap();
        program(&programs.join("cargo"), cargo);
        // An answer that is an error fails the command.
        program(
            &programs.join("curl"),
            "PATH=$PATH_OF_CALLER; exec curl --silent --show-error --fail-with-body \"$@\"",
        );
        // `.stack` is the state directory.
        symlink(stack.state(), folder.join(".stack")).unwrap();
        Self { folder, programs, variables: Vec::new(), within }
    }

    /// Adds variables of the environment.
    pub(super) fn with(mut self, variables: &[(&'static str, &str)]) -> Self {
        self.variables.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
        self
    }

    /// Runs the commands in one shell, each of which has to succeed and to print what its document says. Returns what
    /// each has printed.
    pub(super) async fn run(&self, commands: &[Command]) -> Vec<String> {
        let local = |port| format!("127.0.0.1:{port}");
        let (own, own_admin) = (local(base_port()), local(base_port() + ADMIN.1));
        let mut script =
            String::from("exec 2>&1\nset -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n");
        for command in commands {
            script += &format!("echo '{NEXT}'\n{}\n", command.text.replace(EDGE, &own).replace(ADMIN.0, &own_admin));
        }
        let mut shell = process::Command::new("bash");
        // Cargo sets them for this test. For another build they would be a reason to compile again.
        let of_cargo =
            |name: &str| name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_cargo)) {
            shell.env_remove(name);
        }
        let path = std::env::var("PATH").unwrap();
        let with_programs = format!("{}:{}:{path}", self.programs.display(), server("TEST_BIN_DIR"));
        shell.args(["-c", &script]).current_dir(&self.folder).stdin(Stdio::null()).kill_on_drop(true);
        shell.env("PATH", with_programs).env("PATH_OF_CALLER", &path).envs(self.variables.iter().cloned());
        let output =
            tokio::time::timeout(self.within, shell.output()).await.expect("the commands end in time").unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "the last of these commands failed:\n{said}");
        let outputs: Vec<_> = said.split(NEXT).skip(1).map(|output| output.trim_start().to_owned()).collect();
        assert_eq!(outputs.len(), commands.len(), "{said}");
        for (command, output) in commands.iter().zip(&outputs) {
            let mut lines = output.lines();
            for wanted in &command.prints {
                let wanted = wanted.replace(EDGE, &own);
                assert!(
                    lines.any(|line| is_like(line, &wanted)),
                    "{}\ndoes not print {wanted:?}:\n{output}",
                    command.text
                );
            }
        }
        outputs
    }
}

/// Returns the options that set a stack apart from that of a user.
fn options(stack: &Stack) -> String {
    format!("--base-port {} --state-dir '{}'", base_port(), stack.state().display())
}

/// Writes a program of the shell.
fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Returns whether a line has the parts of `wanted` between `…`, in their order. Runs of spaces are alike.
fn is_like(line: &str, wanted: &str) -> bool {
    let spaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, mut from) = (spaced(line), 0);
    wanted.split('…').map(spaced).all(|part| match line[from..].find(&part) {
        Some(at) => {
            from += at + part.len();
            true
        }
        None => false,
    })
}

#[test]
fn a_line_is_like_its_description_in_the_document() {
    for (line, wanted, expected) in [
        ("query-api-3 is ready         after 1.2 s", "query-api-3 is ready   after … s", true),
        ("HTTP/2 200 \r", "HTTP/2 200", true),
        ("HTTP/2 401 \r", "HTTP/2 200", false),
        ("b then a", "a … b", false),
    ] {
        assert_eq!(is_like(line, wanted), expected, "{line:?} {wanted:?}");
    }
}
