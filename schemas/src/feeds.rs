//! Ids of views and of feeds, and arrays that they index.
//!
//! Invariant: an id is made here alone, so that there is a view for every id, and an element in every such array.

use std::ops::{Index, IndexMut};

use crate::views::{JOURNAL, Source, VIEWS, View};

/// A view of [`VIEWS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ViewId(usize);

/// A view with rows, and so checkpoints, of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredView(usize);

/// A holder of checkpoints and applied positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FeedId {
    View(StoredView),
    Journal,
}

/// One element for each stored view, in the order of [`VIEWS`].
pub type PerView<T> = [T; StoredView::COUNT];

/// One element for each stored view, in the order of [`VIEWS`], then the journal's.
pub type PerFeed<T> = [T; FeedId::COUNT];

impl ViewId {
    pub fn all() -> [Self; VIEWS.len()] {
        std::array::from_fn(Self)
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|view| view.name() == name)
    }

    /// Returns its place in [`VIEWS`].
    pub fn index(self) -> usize {
        self.0
    }

    pub fn view(self) -> &'static View {
        VIEWS[self.0]
    }

    pub fn name(self) -> &'static str {
        self.view().name
    }

    /// Returns the view as a stored one, unless it shows another one's rows.
    pub fn stored(self) -> Option<StoredView> {
        (self.0 < StoredView::COUNT).then_some(StoredView(self.0))
    }

    /// Returns the stored view whose rows it shows: itself, or the one that it is derived from.
    pub fn base(self) -> StoredView {
        match self.view().source {
            Source::Aggregate(_) | Source::Sum(_) => StoredView(self.0),
            Source::View(base) => StoredView::named(base).expect("the tests look that each is derived from one"),
        }
    }

    /// Returns the feed that moves its rows.
    pub fn feed(self) -> FeedId {
        FeedId::View(self.base())
    }
}

impl StoredView {
    /// The stored views come first in [`VIEWS`].
    pub const COUNT: usize = {
        let (mut stored, mut rest): (_, &[&View]) = (0, &VIEWS);
        while let [View { source: Source::Aggregate(_) | Source::Sum(_), .. }, behind @ ..] = rest {
            (stored, rest) = (stored + 1, behind);
        }
        stored
    };

    pub fn all() -> PerView<Self> {
        std::array::from_fn(Self)
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|view| view.name() == name)
    }

    pub fn view(self) -> &'static View {
        VIEWS[self.0]
    }

    pub fn name(self) -> &'static str {
        self.view().name
    }

    /// Returns its place among the stored views.
    pub fn index(self) -> usize {
        self.0
    }
}

impl FeedId {
    pub const COUNT: usize = StoredView::COUNT + 1;

    pub fn all() -> PerFeed<Self> {
        std::array::from_fn(
            |index| if index < StoredView::COUNT { Self::View(StoredView(index)) } else { Self::Journal },
        )
    }

    pub fn names() -> PerFeed<&'static str> {
        Self::all().map(Self::name)
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|feed| feed.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::View(view) => view.name(),
            Self::Journal => JOURNAL,
        }
    }

    /// Returns the form of its fold. The journal's rows are the events themselves.
    pub fn form(self) -> i32 {
        match self {
            Self::View(view) => view.view().form,
            Self::Journal => 1,
        }
    }

    /// Tells whether projectors write its rows to Redis, where its positions then move with them: those that one aggregate
    /// feeds.
    pub fn has_rows_in_redis(self) -> bool {
        matches!(self, Self::View(view) if matches!(view.view().source, Source::Aggregate(_)))
    }

    fn index(self) -> usize {
        match self {
            Self::View(view) => view.0,
            Self::Journal => StoredView::COUNT,
        }
    }
}

impl<T> Index<StoredView> for PerView<T> {
    type Output = T;

    fn index(&self, view: StoredView) -> &T {
        &self.as_slice()[view.index()]
    }
}

impl<T> IndexMut<StoredView> for PerView<T> {
    fn index_mut(&mut self, view: StoredView) -> &mut T {
        &mut self.as_mut_slice()[view.index()]
    }
}

impl<T> Index<FeedId> for PerFeed<T> {
    type Output = T;

    fn index(&self, feed: FeedId) -> &T {
        &self.as_slice()[feed.index()]
    }
}

impl<T> IndexMut<FeedId> for PerFeed<T> {
    fn index_mut(&mut self, feed: FeedId) -> &mut T {
        &mut self.as_mut_slice()[feed.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_with_rows_come_first_and_every_other_one_shows_theirs() {
        for view in ViewId::all() {
            assert_eq!(view.stored().is_some(), !matches!(view.view().source, Source::View(_)), "{}", view.name());
            assert_eq!(view.stored().unwrap_or(view.base()), view.base(), "{}", view.name());
        }
    }

    #[test]
    fn every_id_goes_by_its_name_and_names_its_own_element() {
        assert!(ViewId::all().into_iter().all(|view| ViewId::named(view.name()) == Some(view)));
        let (mut views, mut feeds) = (StoredView::all().map(StoredView::name), FeedId::names());
        for view in StoredView::all() {
            assert_eq!((StoredView::named(view.name()), views[view]), (Some(view), view.name()));
            views[view] = "";
        }
        for feed in FeedId::all() {
            assert_eq!((FeedId::named(feed.name()), feeds[feed]), (Some(feed), feed.name()));
            feeds[feed] = "";
        }
        assert_eq!((views.concat(), feeds.concat()), (String::new(), String::new()));
        assert_eq!((StoredView::named(JOURNAL), FeedId::named("reactor")), (None, None));
    }
}
