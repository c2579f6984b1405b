//! Passes the compiler version and the build profile to `/buildinfo`.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    println!("cargo::rustc-env=CHASSIS_RUSTC={}", rustc_version().unwrap_or_else(unknown));
    println!("cargo::rustc-env=CHASSIS_PROFILE={}", env::var("PROFILE").unwrap_or_else(|_| unknown()));
}

fn rustc_version() -> Option<String> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn unknown() -> String {
    "unknown".to_owned()
}
