//! Which of the ended holds lapse together.

use super::*;

/// A time at which all holds of these tests have ended.
const AT: TimeMs = TimeMs(1_000_000);
const MAX: u64 = MAX_AT_ONCE as u64;

fn name(number: u64) -> Fingerprint {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&number.to_be_bytes());
    Fingerprint(name)
}

/// Returns holds of one unit each, numbered from 1, of which each ends at the time that `end` returns.
fn holds(count: u64, end: impl Fn(u64) -> u64) -> Holds {
    Holds::of((1..=count).map(|number| (name(number), Hold { quantity: 1, until: Some(TimeMs(end(number))) })), None)
}

/// Returns the end of the last hold that lapses, the units, and the end of the first one that remains.
fn parts(lapsed: Option<Lapsed>) -> Option<(u64, u64, Option<u64>)> {
    lapsed.map(|lapsed| (lapsed.until.0, lapsed.quantity, lapsed.next.map(|next| next.0)))
}

#[test]
fn no_more_than_the_maximum_lapse_at_once() {
    let all = holds(MAX + 2, |number| number);
    assert_eq!(parts(all.lapsed(0, None, AT)), Some((MAX, MAX, Some(MAX + 1))));
    assert_eq!(parts(holds(3, |number| number).lapsed(0, None, AT)), Some((3, 3, None)));
}

#[test]
fn holds_that_end_together_lapse_together() {
    let all = holds(MAX + 3, |number| number.min(MAX - 1));
    assert_eq!(parts(all.lapsed(0, None, AT)), Some((MAX - 1, MAX + 3, None)));
}

#[test]
fn as_many_more_lapse_as_are_needed() {
    let all = holds(MAX + 9, |number| number);
    assert_eq!(parts(all.lapsed(MAX + 2, None, AT)), Some((MAX + 2, MAX + 2, Some(MAX + 3))));
    assert_eq!(parts(all.lapsed(0, Some(&name(MAX + 4)), AT)), Some((MAX + 4, MAX + 4, Some(MAX + 5))));
}

#[test]
fn a_hold_lapses_at_its_end_and_not_before() {
    let all = holds(3, |number| number * 10);
    assert_eq!(parts(all.lapsed(0, None, TimeMs(20))), Some((20, 2, Some(30))));
    assert_eq!(parts(all.lapsed(0, None, TimeMs(9))), None);
}

#[test]
fn a_hold_needs_an_alarm_unless_one_comes_by_its_end() {
    let alarm = |told, until| Holds::of([], told).alarm_with(TimeMs(until), AT, None).map(|alarm| alarm.0);
    assert_eq!(alarm(None, AT.0 + 5), Some(AT.0 + 5));
    assert_eq!(alarm(Some(AT), AT.0 + 5), Some(AT.0 + 5), "an alarm of this moment may have fired already");
    assert_eq!(alarm(Some(TimeMs(AT.0 + 5)), AT.0 + 4), Some(AT.0 + 4));
    assert_eq!(alarm(Some(TimeMs(AT.0 + 5)), AT.0 + 5), None);
}
