//! The tests of the whole are in `it`; this library is empty, because a package needs a target of its own.
