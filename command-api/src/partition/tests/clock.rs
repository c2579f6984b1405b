//! Tests of clocks: an owner with a wrong clock decides nothing, and a log ahead of a right clock continues.

use domain::TimeMs;
use domain::product::Command;
use schemas::answers::Answer;
use schemas::record::Record;

use super::{NOW, RESERVED, RESTOCKED, Shop, accepted, replayed, reserve};
use crate::partition::{ClockTrust, Role};

const HOUR_MS: u64 = 3_600_000;

impl Shop {
    fn look(&mut self, clock: ClockTrust, now: TimeMs) -> bool {
        self.now = now;
        let lets_go = self.machine.look_at_clock(clock, now);
        self.end_turn();
        lets_go
    }

    /// Returns the times of the commits in the log.
    fn times(&self) -> Vec<u64> {
        let time = |value: &Vec<u8>| match Record::decode(value).unwrap().unwrap() {
            Record::Commit(commit) => Some(commit.at_ms),
            Record::Claim(_) | Record::Fence(_) => None,
        };
        self.log.iter().filter_map(time).collect()
    }
}

#[test]
fn an_owner_with_a_wrong_clock_answers_decided_commands_and_releases_the_partition() {
    let mut shop = Shop::stocked(5);
    shop.ask_for("before", reserve("o-1"));
    assert!(shop.look(ClockTrust::Wrong, TimeMs(NOW.0 + HOUR_MS)));
    assert_eq!(shop.machine.role(), Role::Leaving);
    shop.ask_for("after", reserve("o-2"));
    shop.settle();
    assert_eq!(shop.answers(), [("after", Answer::Misdirected), ("before", accepted(2, RESERVED, 2))]);
    assert_eq!((shop.machine.role(), shop.times()), (Role::Idle, vec![NOW.0, NOW.0]));
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Idle, "it does not take over while its clock is wrong");
    shop.look(ClockTrust::Right, NOW);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    assert_eq!(shop.machine.role(), Role::Owner);
}

#[test]
fn a_command_in_doubt_is_not_decided_anew_by_a_wrong_clock() {
    let mut shop = Shop::stocked(5);
    shop.ask_for("lost", reserve("o-1"));
    let lost = shop.lose();
    shop.look(ClockTrust::Wrong, TimeMs(NOW.0 + HOUR_MS));
    shop.report_failure(lost.ticket);
    shop.settle();
    assert_eq!(shop.answers(), [("lost", Answer::NoOwner)]);
    assert_eq!((shop.machine.role(), shop.times()), (Role::Idle, vec![NOW.0]));
}

#[test]
fn an_unverified_clock_is_wrong_if_over_a_minute_behind_the_log() {
    let mut shop = Shop::stocked(5);
    assert!(!shop.look(ClockTrust::Unknown, TimeMs(NOW.0 - 60_000)));
    shop.ask_for("a", reserve("o-1"));
    shop.settle();
    assert_eq!(shop.answers(), [("a", accepted(2, RESERVED, 2))]);
    assert_eq!(shop.times(), [NOW.0, NOW.0], "time never runs back in the log");
    assert!(shop.look(ClockTrust::Unknown, TimeMs(NOW.0 - 60_001)));
    shop.ask_for("b", reserve("o-2"));
    assert_eq!(shop.answers(), [("b", Answer::Misdirected)]);
    assert_eq!(shop.machine.role(), Role::Idle);
}

#[test]
fn a_log_that_is_far_ahead_of_a_right_clock_goes_on_and_forgets_no_key_early() {
    // The previous owner ran an earlier build and had a wrong clock.
    let mut before = Shop::stocked(5);
    before.ask_for("key", reserve("o-1"));
    before.now = TimeMs(NOW.0 + HOUR_MS);
    before.ask_for("poison", Command::Restock { quantity: 1 });
    before.settle();
    let mut shop = Shop { log: before.log, ..Shop::closed() };
    shop.look(ClockTrust::Right, NOW);
    shop.machine.take_over(&mut shop.out);
    shop.settle();
    shop.ask_for("key", reserve("o-1"));
    shop.ask_for("next", Command::Restock { quantity: 1 });
    shop.settle();
    assert_eq!(shop.answers(), [("key", replayed(2, RESERVED, 2)), ("next", accepted(4, RESTOCKED, 6))]);
    assert_eq!(shop.times(), [NOW.0, NOW.0, NOW.0 + HOUR_MS, NOW.0 + HOUR_MS], "time waits for the clock");
}
