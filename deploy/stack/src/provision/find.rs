//! Finds programs, modules and headers in their usual locations.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folders searched after PATH: servers are in sbin, which an unprivileged user's PATH often lacks.
const USUAL: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const MIN_JAVA: u32 = 17;
const MIN_POSTGRES: u32 = 15;
const MIN_REDIS: u32 = 7;

/// Returns the first program of this name.
pub fn program(name: &str) -> Option<PathBuf> {
    candidates(name).into_iter().next()
}

pub(super) fn java() -> Option<PathBuf> {
    let home = env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let installed = subfolders("/usr/lib/jvm").into_iter().map(|dir| dir.join("bin/java"));
    home.into_iter().chain(candidates("java")).chain(installed).find(|java| is_new_enough(java, "-version", MIN_JAVA))
}

/// Returns the folder of the newest PostgreSQL. Debian keeps the servers off PATH, in one folder per version.
pub(super) fn postgres() -> Option<PathBuf> {
    let mut dirs: Vec<_> = subfolders("/usr/lib/postgresql").into_iter().map(|dir| dir.join("bin")).collect();
    dirs.sort_by_key(|dir| version(&dir.join("postgres"), "--version"));
    let on_path = candidates("postgres").into_iter().filter_map(|path| {
        // PATH may hold a symlink; initdb is next to its target.
        Some(fs::canonicalize(path).ok()?.parent()?.to_owned())
    });
    dirs.into_iter().rev().chain(on_path).find(|dir| {
        let whole = ["initdb", "pg_isready"].iter().all(|name| dir.join(name).is_file());
        whole && is_new_enough(&dir.join("postgres"), "--version", MIN_POSTGRES)
    })
}

pub(super) fn redis() -> Option<PathBuf> {
    candidates("redis-server").into_iter().find(|path| is_new_enough(path, "--version", MIN_REDIS))
}

/// Returns Alertmanager, which Debian calls by another name.
pub(super) fn alertmanager() -> Option<PathBuf> {
    program("prometheus-alertmanager").or_else(|| program("alertmanager"))
}

/// Returns the folder of nginx's Lua module and of the NDK module that it requires.
pub(crate) fn nginx_modules() -> Option<PathBuf> {
    let dirs = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules", "/etc/nginx/modules"];
    let has_all =
        |dir: &Path| ["ndk_http_module.so", "ngx_http_lua_module.so"].iter().all(|name| dir.join(name).is_file());
    dirs.into_iter().map(PathBuf::from).find(|dir| has_all(dir))
}

pub(super) fn header(name: &str) -> Option<PathBuf> {
    ["/usr/include", "/usr/local/include"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// Returns all programs of this name, those on PATH first.
pub fn candidates(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(USUAL.iter().map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).filter(|path| path.is_file()).collect()
}

fn subfolders(dir: &str) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn is_new_enough(program: &Path, flag: &str, min: u32) -> bool {
    version(program, flag).is_some_and(|version| version >= min)
}

fn version(program: &Path, flag: &str) -> Option<u32> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
    // Java prints its version to standard error.
    let text = [output.stdout, output.stderr].concat();
    parse_major(&String::from_utf8_lossy(&text))
}

/// Returns the first number in the output of `--version`, which is the major version.
fn parse_major(text: &str) -> Option<u32> {
    let words = text.split(|char: char| char.is_whitespace() || matches!(char, '"' | '=' | 'v'));
    words.filter(|word| word.starts_with(|char: char| char.is_ascii_digit())).find_map(|word| {
        let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_parsed_from_the_output_of_each_program() {
        for (text, major) in [
            ("openjdk version \"17.0.15\" 2025-04-15", 17),
            ("openjdk version \"21\" 2023-09-19", 21),
            ("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)", 15),
            ("postgres (PostgreSQL) 18beta1", 18),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", 7),
        ] {
            assert_eq!(parse_major(text), Some(major), "{text}");
        }
        assert_eq!(parse_major("no such program"), None);
    }
}
