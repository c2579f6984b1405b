//! The commands of the handbook's section about clusters, as they are written there.

use std::fs;

const BOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/README.md");

pub(super) struct Handbook {
    /// From an empty cluster to running services.
    pub(super) install: String,
    /// From one build to the next.
    pub(super) upgrade: String,
    /// Restarts what reads a secret at its start alone.
    pub(super) restart: String,
    /// Makes three instances of query-api.
    pub(super) scale: String,
    /// Drains the node `NODE`.
    pub(super) drain: String,
}

impl Handbook {
    /// Reads the handbook, and fails if the section has other commands than those above.
    pub(super) fn read() -> Self {
        let book = fs::read_to_string(BOOK).unwrap();
        let (_, section) = book.split_once("\n## On a cluster\n").expect("the section is there");
        let section = section.split_once("\n## ").unwrap().0;
        // Text and blocks alternate.
        let parts: Vec<_> = section.split("```").collect();
        let blocks =
            parts.iter().skip(1).step_by(2).map(|block| block.strip_prefix("sh\n").expect("a shell's commands"));
        let inline = parts.iter().step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2));
        let inline = inline
            .filter(|code| code.starts_with("kubectl "))
            .map(|code| code.split_whitespace().collect::<Vec<_>>().join(" "));
        let (blocks, inline): (Vec<_>, Vec<_>) = (blocks.map(str::to_owned).collect(), inline.collect());
        let ([install, upgrade], [restart, scale, drain]) = (&blocks[..], &inline[..]) else {
            panic!("the test runs other commands than {blocks:?} and {inline:?}")
        };
        let [install, upgrade, restart, scale, drain] = [install, upgrade, restart, scale, drain].map(String::clone);
        Self { install, upgrade, restart, scale, drain }
    }
}
