#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use super::*;
use crate::{
    broker::Carries,
    sink::source::{Block, RangeId, Rows},
};

const LIMITS: RangeLimits = RangeLimits { rows: 4, bytes: 1 << 20, age: Duration::from_secs(1), expiries: 20 };

fn letter_piece(offset: u64) -> Piece {
    // A message that is no row is the smallest piece there is.
    Piece::decode(Carries::Events, "events", 0, offset, Some(b"x"), Instant::now())
}

fn range(generation: u64, partition: u32, first: u64, last: u64, revoked: &CancellationToken) -> Range {
    Range {
        id: RangeId { topic: "events".into(), partition, first, last, mark: None },
        rows: 1,
        body: Rows::default(),
        parked: Block::default(),
        oldest_received_at_ms: 0,
        first_expiry: u32::MAX,
        replayed: false,
        of_earlier_opening: false,
        beside: None,
        generation,
        revoked: revoked.clone(),
    }
}

#[test]
fn what_was_read_before_is_not_read_twice() {
    let mut state = State::default();
    state.assign([(0, Some(5), Recorded::None)]);
    assert!(state.push(0, letter_piece(4), &LIMITS).is_none(), "below the committed offset");
    assert_eq!(state.push(0, letter_piece(5), &LIMITS), Some(true), "its age begins to count");
    assert!(state.push(0, letter_piece(5), &LIMITS).is_none(), "read again after a seek");
    assert_eq!(state.push(0, letter_piece(9), &LIMITS), Some(false), "offsets may have holes");
    assert!(state.push(1, letter_piece(0), &LIMITS).is_none(), "not assigned");
}

#[test]
fn a_commit_of_a_generation_that_is_gone_is_ignored() {
    let mut state = State::default();
    state.assign([(0, Some(5), Recorded::None)]);
    state.partitions.get_mut(&0).unwrap().stage = Stage::Given { first: 5, last: 6 };
    let old = range(1, 0, 5, 6, &state.partitions[&0].revoked);
    state.assign([(0, Some(5), Recorded::None)]);
    assert!(old.revoked.is_cancelled());
    state.partitions.get_mut(&0).unwrap().stage = Stage::Given { first: 5, last: 6 };
    assert!(state.done(&old).is_none());
    let other = range(2, 0, 5, 7, &state.partitions[&0].revoked);
    assert!(state.done(&other).is_none(), "not the range that is under way");
    let present = range(2, 0, 5, 6, &state.partitions[&0].revoked);
    assert!(state.done(&present).is_some());
    assert!(state.done(&present).is_none(), "committed once");
}

#[test]
fn a_revoke_withdraws_what_nobody_has_and_waits_for_what_somebody_has() {
    let mut state = State::default();
    state.assign([(0, Some(0), Recorded::None), (1, Some(0), Recorded::None), (2, Some(0), Recorded::None)]);
    for id in [0, 1] {
        state.partitions.get_mut(&id).unwrap().stage = Stage::Given { first: 0, last: 1 };
    }
    let waiting = range(1, 0, 0, 1, &state.partitions[&0].revoked);
    let taken = range(1, 1, 0, 1, &state.partitions[&1].revoked);
    state.ready.push_back(waiting);
    state.begin_revoke(&[0, 1]);
    assert!(state.ready.is_empty());
    assert!(taken.revoked.is_cancelled());
    assert!(!state.is_busy(&[0, 2]));
    assert!(state.is_busy(&[0, 1]));
    assert!(state.push(1, letter_piece(2), &LIMITS).is_none(), "a partition that is going takes nothing in");
    state.abandon(&taken);
    assert!(!state.is_busy(&[0, 1, 2]));
    assert!(!state.partitions[&2].revoked.is_cancelled());
}

#[test]
fn a_member_that_was_expelled_lets_everything_go() {
    let mut state = State::default();
    state.assign([(0, Some(0), Recorded::None), (1, Some(0), Recorded::None)]);
    for id in [0, 1] {
        state.partitions.get_mut(&id).unwrap().stage = Stage::Given { first: 0, last: 1 };
    }
    let stored = range(1, 0, 0, 1, &state.partitions[&0].revoked);
    let mut told = state.done(&stored).unwrap();
    state.expel();
    assert!(told.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    assert!(state.is_busy(&[1]), "the sink still has its range, and was told");
    assert!(state.partitions[&1].revoked.is_cancelled());
}

#[test]
fn memory_is_bounded_and_given_back() {
    let mut state = State::default();
    state.assign([(0, Some(0), Recorded::None), (1, Some(0), Recorded::Last(100))]);
    for offset in 0..10 {
        assert!(state.push(0, letter_piece(offset), &LIMITS).is_some());
        assert!(state.push(1, letter_piece(offset), &LIMITS).is_some());
    }
    let held = state.held;
    let (pause, resume) = state.balance(&LIMITS, held);
    assert_eq!((pause, resume), (vec![0], vec![]), "a range that must be formed again is always read on");
    assert!(state.hurry(held));
    assert_eq!(state.balance(&LIMITS, held), (vec![], vec![]));
    state.remove(1);
    assert_eq!(state.held, held / 2);
    assert_eq!(state.balance(&LIMITS, held * 2), (vec![], vec![0]));
    state.remove(0);
    assert_eq!(state.held, 0);
}
