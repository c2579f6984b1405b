//! IDs of views and of feeds, and the arrays that they index.
//!
//! Invariant: IDs are created only in this module, so every ID has a view and an element in every such array.

use std::ops::{Index, IndexMut};

use crate::views::{JOURNAL, Source, VIEWS, View};

/// ID of a view in [`VIEWS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ViewId(usize);

/// ID of a view with rows, and therefore checkpoints, of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredView(usize);

/// ID of a holder of checkpoints and applied positions: a stored view or the journal.
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

    /// Returns the view's index in [`VIEWS`].
    pub fn index(self) -> usize {
        self.0
    }

    pub fn view(self) -> &'static View {
        VIEWS[self.0]
    }

    pub fn name(self) -> &'static str {
        self.view().name
    }

    /// Returns the view as a stored one, unless it shows the rows of another view.
    pub fn stored(self) -> Option<StoredView> {
        (self.0 < StoredView::COUNT).then_some(StoredView(self.0))
    }

    /// Returns the stored view whose rows this one shows: itself, or the view that it is derived from.
    pub fn base(self) -> StoredView {
        match self.view().source {
            Source::Aggregate(_) | Source::Sum(_) => StoredView(self.0),
            Source::View(base) => {
                StoredView::named(base).expect("a test checks that every other view is derived from a stored one")
            }
        }
    }

    /// Returns the feed that updates the view's rows.
    pub fn feed(self) -> FeedId {
        FeedId::View(self.base())
    }
}

impl StoredView {
    /// Number of stored views, which come first in [`VIEWS`].
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

    /// Returns the view's index among the stored views.
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

    /// Returns the form of the feed's fold. The journal's form is 1, because its rows are the events themselves.
    pub fn form(self) -> i32 {
        match self {
            Self::View(view) => view.view().form,
            Self::Journal => 1,
        }
    }

    /// Returns whether projectors write the feed's rows to Redis, where its positions advance with them. They do so for
    /// views that are fed by one aggregate.
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
    fn stored_views_come_first_and_every_other_view_shows_their_rows() {
        for view in ViewId::all() {
            assert_eq!(view.stored().is_some(), !matches!(view.view().source, Source::View(_)), "{}", view.name());
            assert_eq!(view.stored().unwrap_or(view.base()), view.base(), "{}", view.name());
        }
    }

    #[test]
    fn every_id_is_found_by_its_name_and_indexes_its_own_element() {
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
