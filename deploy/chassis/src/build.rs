//! The build that this process runs.

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, if the build was told it.
pub const COMMIT: Option<&str> = option_env!("GIT_COMMIT");
pub(crate) const RUSTC: &str = env!("CHASSIS_RUSTC");
pub(crate) const PROFILE: &str = env!("CHASSIS_PROFILE");
