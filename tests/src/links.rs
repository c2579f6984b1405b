//! Links between the repository's documents lead somewhere, and the first one stays short.

use std::fs;
use std::path::Path;

use crate::documents::{self, root};

/// Maximum size of the README at the root, which a newcomer should be able to read at a sitting.
const MAX_README_BYTES: usize = 9000;
/// Returns the lines of a document that are not within a fenced block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Returns the targets of the links in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// Returns the anchors of a document's headings, as GitHub derives them.
fn anchors(text: &str) -> Vec<String> {
    let heading = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
        kept.map(|char| if char == ' ' { '-' } else { char }).collect()
    };
    prose(text).filter(|line| line.starts_with('#')).map(heading).collect()
}

/// Returns the reason why a link of `document` leads nowhere, if it does.
fn fault(document: &Path, target: &str) -> Option<String> {
    if target.contains("://") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    if !path.exists() {
        return Some("no such file".to_owned());
    }
    let has_anchor = || anchors(&fs::read_to_string(&path).unwrap()).iter().any(|known| known == anchor);
    (!anchor.is_empty() && !has_anchor()).then(|| "no such heading".to_owned())
}

#[test]
fn every_relative_link_of_a_document_leads_to_a_file_and_to_a_heading_in_it() {
    let mut faults = Vec::new();
    let documents = documents::all();
    assert!(documents.len() > 8, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for target in prose(&text).flat_map(links) {
            faults.extend(fault(&document, target).map(|fault| format!("{}: {target}: {fault}", document.display())));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_first_document_is_short() {
    let size = fs::read(root().join("README.md")).unwrap().len();
    assert!(size <= MAX_README_BYTES, "README.md has {size} bytes, more than {MAX_README_BYTES}");
}
