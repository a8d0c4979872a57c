//! Frames, there and back, and what a process could send instead.

use proptest::prelude::*;

use super::*;
use crate::plugins::isolated::frame::{
    HEAD, Malformed, Writer, begin_answer, read_changes, read_fault, read_verdicts_of,
};

const LIMITS: Limits = Limits { event_bytes: 100 };

/// The body of the frame that `write` makes.
fn body(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer);
    let frame = writer.finish();
    assert_eq!(u32::from_le_bytes(*frame.first_chunk().unwrap()) as usize, frame.len() - 4);
    frame[HEAD..].to_vec()
}

fn outcome(outcome: &Result<Vec<Verdict>, Fault>) -> Vec<u8> {
    body(|to| frame::write_outcome(to, &[], outcome))
}

/// Behind the changes.
fn verdicts(body: &[u8], events: usize) -> Result<Result<Vec<Verdict>, Fault>, Malformed> {
    let mut reader = Reader::new(body);
    read_changes(&mut reader)?;
    read_verdicts_of(reader, events, 0, LIMITS)
}

#[test]
fn a_start_and_a_call_arrive() {
    let start = Start { level: 3, memory: 1 << 40, event_bytes: 9, plugin: "p", sha256: "s", config: "{}" };
    let bytes = body(|to| start.write(to));
    assert_eq!(Start::read(Reader::new(&bytes)), Ok(start));
    let problem = "the engine that asks is of another version than this program";
    assert_eq!(Start::read(Reader::new(&[9, 0, 0, 0])), Err(Malformed(problem)));

    let events = [("{}", "a", 1), ("{\"\u{e4}\":1}", "b", 2)];
    let events = events.map(|(json, kind, id)| Input { json, kind, id: EventId(Uuid::from_bytes([id; 16])) });
    let tenant = TenantId(Uuid::from_bytes([9; 16]));
    let call = Call { tenant, received_at_ms: i64::MIN, purpose: Purpose::REPROCESS, events: &events };
    let bytes = body(|to| frame::write_call(to, &call));
    let called = frame::Called::read(Reader::new(&bytes)).unwrap_or_else(|problem| panic!("{problem:?}"));
    assert_eq!(format!("{:?}", called.call()), format!("{call:?}"));
}

#[test]
fn answers_arrive() {
    let changes = [("seen", Change::Counted(u64::MAX)), ("level", Change::Set(-0.5))];
    let bytes = body(|to| {
        begin_answer(to, Kind::Ill, &changes).text("words");
    });
    let mut reader = Reader::new(&bytes);
    assert_eq!(read_changes(&mut reader).unwrap(), changes);
    assert_eq!(reader.words().unwrap(), "words");
    reader.end().unwrap();

    let all = vec![
        Verdict::Keep,
        Verdict::Replace("{}".to_owned()),
        Verdict::Reject { code: "a".to_owned(), detail: "b".to_owned() },
        Verdict::Drop { reason: "c".to_owned() },
    ];
    assert_eq!(verdicts(&outcome(&Ok(all.clone())), 4), Ok(Ok(all)));
    for fault in [
        Fault::Failed { message: "a".to_owned() },
        Fault::Panicked { message: "b".to_owned() },
        Fault::BadOutput { problem: "c".to_owned() },
    ] {
        let bytes = outcome(&Err(fault.clone()));
        let mut reader = Reader::new(&bytes);
        read_changes(&mut reader).unwrap();
        assert_eq!(read_fault(reader), Ok(fault));
    }
}

#[test]
fn verdicts_are_judged_again() {
    let problem = |verdict: Verdict| match verdicts(&outcome(&Ok(vec![verdict])), 1) {
        Ok(Err(Fault::BadOutput { problem })) => problem,
        other => panic!("{other:?}"),
    };
    assert!(problem(Verdict::Replace("x".repeat(101))).contains("its JSON"));
    assert!(problem(Verdict::Replace(String::new())).contains("replaced by nothing"));
    assert!(problem(Verdict::Drop { reason: "No name".to_owned() }).contains("the reason"));
    // Each of them small enough, but not together.
    let many = vec![Verdict::Replace("x".repeat(100)); 17];
    assert!(matches!(verdicts(&outcome(&Ok(many)), 17), Ok(Err(Fault::BadOutput { .. }))));
    // A code that is none, and no verdict.
    for byte in [0, 9] {
        let mut bytes = outcome(&Ok(vec![Verdict::Keep]));
        bytes[8] = byte;
        assert!(matches!(verdicts(&bytes, 1), Ok(Err(Fault::BadOutput { .. }))));
    }
}

#[test]
fn malformed_answers_are_refused() {
    let good = outcome(&Ok(vec![Verdict::Replace("{}".to_owned())]));
    assert!(verdicts(&good, 1).is_ok());
    for cut in 0..good.len() {
        assert!(verdicts(&good[..cut], 1).is_err(), "cut at {cut}");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (frame, problem) in [
        (with(0, &[101]), "it changes more series than a plugin may have"),
        (with(0, &[0xff; 4]), "it changes more series than a plugin may have"),
        (with(4, &[2]), "it has not one verdict for each event"),
        (with(4, &[0]), "it has not one verdict for each event"),
        (with(9, &[0xff; 4]), "it ends too early"),
        ([&good[..], b"x"].concat(), "it goes on after its end"),
    ] {
        assert_eq!(verdicts(&frame, 1), Err(Malformed(problem)));
    }
    assert_eq!(read_fault(Reader::new(&[3, 0, 0, 0, 0])), Err(Malformed("it is a fault of no known kind")));
    let series = [1, 0, 0, 0, 2, 1, 0, 0, 0, b'a', 0, 0, 0, 0, 0, 0, 0, 0];
    let problem = "it changes a series of no known kind";
    assert_eq!(read_changes(&mut Reader::new(&series)), Err(Malformed(problem)));
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200), events in 0_usize..4) {
        // Only that it returns; what is taken for verdicts must be as many as were asked for.
        if let Ok(Ok(verdicts)) = verdicts(&bytes, events) {
            prop_assert_eq!(verdicts.len(), events);
        }
        let mut reader = Reader::new(&bytes);
        if read_changes(&mut reader).is_ok() {
            read_fault(reader).ok();
        }
    }
}
