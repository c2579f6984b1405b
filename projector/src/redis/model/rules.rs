//! The rules of the model, each of which can be left out.

/// The rules that make it safe to show rows before Postgres has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// A script does nothing unless it finds the position that its caller expects.
    ComparePosition,
    /// A reader's row is not filled in at a position ahead of it if the row may have changed since.
    NameRowsAhead,
    /// A reader's row is not filled in at a position ahead of it if the changed rows were not recorded.
    KnowWhatIsNamed,
    /// A reader's row is not filled in if it lacks parked records.
    FillWhole,
    /// While records are parked, no row is shown before it is committed.
    ParkedComesAfter,
    /// Rows in Redis that Postgres refused are declared stale.
    TakeBackRefused,
    /// A projector resumes from a position only if the rows have not changed without a record since.
    CompareRevision,
    /// A new incarnation that begins behind the fold gets all rows folded since, before its position moves.
    CatchUp,
    /// Each incarnation has its own row keys.
    RenameRows,
}

pub(super) const RULES: [Rule; 9] = [
    Rule::ComparePosition,
    Rule::NameRowsAhead,
    Rule::KnowWhatIsNamed,
    Rule::FillWhole,
    Rule::ParkedComesAfter,
    Rule::TakeBackRefused,
    Rule::CompareRevision,
    Rule::CatchUp,
    Rule::RenameRows,
];

#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) without: Option<Rule>,
}

impl Rules {
    pub(super) fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }
}
