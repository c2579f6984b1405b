//! The repository's documents.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders of build output and of installed programs.
const NOT_OURS: [&str; 4] = ["target", ".git", ".stack", "node_modules"];

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is below the root")
}

/// Returns the paths of all documents, sorted.
pub fn all() -> Vec<PathBuf> {
    let mut found = below(root());
    found.sort();
    found
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the folder is readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !NOT_OURS.contains(&name) {
            found.extend(below(&path));
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found
}
