//! Finds or makes the programs of a build.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::layout::{root, shared_builds};
use crate::process;
use crate::services::{self, PACKAGES, Profile};

/// Returns the folder with the programs of a build, which is a folder or a revision.
pub(super) fn find(build: &str, profile: Profile) -> Result<PathBuf> {
    let folder = Path::new(build);
    if folder.is_dir() {
        let missing: Vec<_> = PACKAGES.into_iter().filter(|program| !folder.join(program).is_file()).collect();
        ensure!(missing.is_empty(), "{} lacks {}", folder.display(), missing.join(", "));
        return folder.canonicalize().with_context(|| format!("cannot read {}", folder.display()));
    }
    let Ok(commit) = git(&["rev-parse", "--verify", "--quiet", &format!("{build}^{{commit}}")]) else {
        bail!("{build} is neither a folder nor a revision of this repository");
    };
    of_commit(&shared_builds(), &commit, profile)
}

/// Builds a commit in a worktree of its own, unless that was done before.
fn of_commit(builds: &Path, commit: &str, profile: Profile) -> Result<PathBuf> {
    let folder = builds.join(format!("{commit}-{}", profile.name()));
    // Builds share the worktree, and cargo's output.
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = File::create(builds.join("lock")).context("cannot create the builds' lock")?;
    if lock.try_lock().is_err() {
        println!("waiting until another build has ended");
        lock.lock().context("cannot lock the builds")?;
    }
    if PACKAGES.iter().all(|program| folder.join(program).is_file()) {
        return Ok(folder);
    }
    println!("building {commit}, with {} as its profile; the first time takes minutes", profile.name());
    let source = builds.join("source");
    let path = source.to_str().context("the state directory's path is not UTF-8")?;
    // Left behind by a build that was interrupted.
    let _ = git(&["worktree", "remove", "--force", path]);
    git(&["worktree", "add", "--detach", "--force", path, commit])?;
    let built = compile(&source, &builds.join("target"), profile).and_then(|from| {
        PACKAGES.iter().try_for_each(|program| {
            let copied = fs::copy(from.join(program), folder.join(program));
            copied.map(drop).with_context(|| format!("cannot copy {program}"))
        })
    });
    git(&["worktree", "remove", "--force", path])?;
    built.map(|()| folder)
}

/// Returns the folder of the programs.
fn compile(source: &Path, target: &Path, profile: Profile) -> Result<PathBuf> {
    let manifest = fs::read_to_string(source.join("Cargo.toml")).context("the revision has no Cargo.toml")?;
    // Earlier revisions had no profile of this name.
    let is_known = profile != Profile::Quick || manifest.contains("[profile.quick]");
    let profile = if is_known { profile } else { Profile::Release };
    // At the lowest priority, because the stack serves meanwhile.
    let mut cargo = Command::new("nice");
    process::hide_cargo(&mut cargo);
    cargo.args(["-n", "19"]).arg(services::cargo());
    cargo.args(["build", "--locked", "--profile", profile.name(), "--target-dir"]).arg(target).current_dir(source);
    cargo.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the build of the revision failed; the stack is as it was");
    Ok(target.join(profile.folder()))
}

/// Returns the output of a git command in this checkout.
fn git(args: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(args).output().context("cannot run git")?;
    if !output.status.success() {
        bail!("git {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
