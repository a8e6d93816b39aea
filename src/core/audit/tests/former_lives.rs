//! What a server's former life has left: the end of its last segment, and the staging buffer over it, read and never
//! written; and a buffer that is taken away under a server that lives.

use super::*;

/// A server's life that ended with these records appended, the first `written` of them in the segment's file.
fn former_life(base: &Base, subjects: &[&str], written: usize) -> Spool {
    let (shared, place) = (shared(), base.place(64 * MB));
    let mut appender = Appender::default();
    for (i, subject) in subjects.iter().enumerate() {
        if i == written {
            appender.drain(&shared, &place).unwrap();
        }
        append(&mut appender, &shared, &place, subject);
    }
    only_spool(&base.base)
}

fn staging_path(base: &Base) -> PathBuf {
    segment_path(base, 1).with_file_name("staging")
}

fn texts(subjects: &[&str]) -> Vec<String> {
    subjects.iter().map(|subject| (*subject).to_owned()).collect()
}

#[test]
fn what_a_former_life_had_staged_is_read_with_its_segment() {
    let base = Base::new();
    let spool = former_life(&base, &["a", "b", "c", "d"], 2);
    let length = frame("a").len() as u64;
    assert_eq!(fs::metadata(segment_path(&base, 1)).unwrap().len(), 2 * length);
    assert_eq!(subjects(&spool, 1), (texts(&["a", "b", "c", "d"]), 0));
    assert_eq!(size_below(&base.base), 4 * length);
    // It goes only when all of that is taken.
    let spent = |offset| spool.spent(&Shared::default(), false, position(1, offset)).unwrap();
    assert_eq!((spent(2 * length), spent(4 * length - 1)), (vec![], vec![]));
    assert_eq!(spent(4 * length), [Segment { number: 1, bytes: 4 * length }]);
    remove_segment(&spool, 1).unwrap();
    remove_spool(&spool).unwrap();
    assert_eq!(spools(&base.base).unwrap(), []);
}

#[test]
fn of_what_was_being_written_when_life_ended_nothing_is_lost_or_doubled() {
    let length = frame("a").len();
    // Cut off at each place of what was staged, and between writing it and saying so.
    for cut in 0..=2 * length {
        let base = Base::new();
        let spool = former_life(&base, &["a", "b", "c", "d"], 2);
        let staged = fs::read(staging_path(&base)).unwrap();
        let mut file = OpenOptions::new().append(true).open(segment_path(&base, 1)).unwrap();
        file.write_all(&staged[STAGING_HEADER..STAGING_HEADER + cut]).unwrap();
        assert_eq!(subjects(&spool, 1), (texts(&["a", "b", "c", "d"]), 0), "{cut}");
    }
}

#[test]
fn a_buffer_that_a_crash_of_the_machine_left_behind_the_times_adds_and_hides_nothing() {
    let base = Base::new();
    let (shared, place) = (shared(), base.place(64 * MB));
    let mut appender = Appender::default();
    let mut life = |subjects: &[&str]| {
        subjects.iter().for_each(|subject| append(&mut appender, &shared, &place, subject));
        fs::read(staging_path(&base)).unwrap()
    };
    let early = life(&["a", "b"]);
    drained(&shared, &place);
    let late = life(&["c", "d"]);
    drained(&shared, &place);
    let (spool, path, length) = (only_spool(&base.base), staging_path(&base), frame("a").len());
    let all = texts(&["a", "b", "c", "d"]);
    for stale in [&early, &late] {
        fs::write(&path, stale).unwrap();
        assert_eq!(subjects(&spool, 1), (all.clone(), 0));
    }
    // The header of the second filling over the bytes of the first: what was there before does not come twice, and what is in
    // the segment is not hidden, whole or with a hole in it.
    let mixed = [&late[..STAGING_HEADER], &early[STAGING_HEADER..]].concat();
    fs::write(&path, &mixed).unwrap();
    assert_eq!(subjects(&spool, 1), (all.clone(), 0));
    let file = OpenOptions::new().write(true).open(segment_path(&base, 1)).unwrap();
    file.write_all_at(&vec![0; length], 2 * length as u64).unwrap();
    assert_eq!(subjects(&spool, 1), (texts(&["a", "b", "d"]), 1));
    // Nor does the right buffer leave the hole.
    fs::write(&path, &late).unwrap();
    assert_eq!(subjects(&spool, 1), (all.clone(), 0));
    // No buffer at all: cut short, or with a header that cannot be. The spool still ends.
    file.set_len(2 * length as u64).unwrap();
    let header = |staged: Staged| [&staged.words().map(u64::to_ne_bytes).concat(), &[0; 48][..]].concat();
    let beyond = header(Staged { segment: 1, written: 0, length: STAGING_BYTES as u32 });
    let nowhere = [header(Staged { segment: 77, written: 9, length: 100 }), vec![7; 200]].concat();
    for broken in [&late[..10], &[0xff; 64][..], &[][..], &beyond, &nowhere] {
        fs::write(&path, broken).unwrap();
        assert_eq!(subjects(&spool, 1), (all[..2].to_vec(), 0));
        let taken = position(1, 2 * length as u64);
        assert_eq!(only_spool(&base.base).spent(&shared, false, taken).unwrap().len(), 1);
    }
}

#[test]
fn a_segment_that_ends_long_before_its_buffer_begins_is_taken_to_the_end() {
    let base = Base::new();
    let (shared, place) = (shared(), base.place(64 * MB));
    let mut appender = Appender::default();
    let length = frame("0000").len() as u64;
    let name = |i: usize| format!("{i:04}");
    // Far more than `subjects` looks at at once.
    for i in 0..3000 {
        append(&mut appender, &shared, &place, &name(i));
    }
    appender.drain(&shared, &place).unwrap();
    append(&mut appender, &shared, &place, "tail");
    append(&mut appender, &shared, &place, "end.");
    let (spool, path) = (only_spool(&base.base), segment_path(&base, 1));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for left in [2 * length, length + 7, 0] {
        file.set_len(left).unwrap();
        let mut expected: Vec<_> = (0..(left / length) as usize).map(name).collect();
        expected.extend(texts(&["tail", "end."]));
        let (found, _) = subjects(&spool, 1);
        assert_eq!(found, expected, "{left}");
        let spent = |offset| spool.spent(&Shared::default(), false, position(1, offset)).unwrap().len();
        assert_eq!((spent(3001 * length), spent(3002 * length)), (0, 1));
        assert!(size_below(&base.base) < left + MB, "what is not there is not counted");
    }
}

#[test]
fn a_spool_that_has_got_another_segment_is_not_removed_as_it_was_listed() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    append(&mut appender, &shared, &place, "a");
    let spool = drained(&shared, &place);
    appender.close_segment(&shared, &place).unwrap();
    append(&mut appender, &shared, &place, "b");
    shared.close(shared.generation());
    remove_segment(&spool, 1).unwrap();
    remove_spool(&spool).unwrap();
    assert_eq!(subjects(&only_spool(&base.base), 2).0, ["b"]);
}

#[test]
fn a_buffer_that_cannot_be_read_is_its_spools_trouble_alone() {
    let base = Base::new();
    let broken = former_life(&base, &["a"], 0);
    let path = staging_path(&base);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    append(&mut Appender::default(), &shared(), &base.place(64 * MB), "b");
    assert_eq!(spools(&base.base).unwrap().len(), 2);
    assert!(broken.next_part(&Shared::default(), false, 0, 4096).is_err());
}

#[test]
fn a_damaged_record_in_the_buffer_costs_itself_only() {
    let base = Base::new();
    let spool = former_life(&base, &["a", "b", "c"], 0);
    let (path, length) = (staging_path(&base), frame("a").len());
    for (damaged, left) in [(0, ["b", "c"]), (1, ["a", "c"]), (2, ["a", "b"])] {
        let bytes = fs::read(&path).unwrap();
        let mut broken = bytes.clone();
        broken[STAGING_HEADER + damaged * length + length / 2] ^= 1;
        fs::write(&path, &broken).unwrap();
        let (found, _) = subjects(&spool, 1);
        assert_eq!(found, left);
        // And the spool has an end all the same.
        let end = if damaged == 2 { 2 } else { 3 } * length as u64;
        assert_eq!(spool.spent(&Shared::default(), false, position(1, end)).unwrap().len(), 1);
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn a_buffer_that_is_removed_or_replaced_is_a_loss_and_no_mixture() {
    for replaced in [false, true] {
        let (base, shared) = (Base::new(), shared());
        let place = base.place(64 * MB);
        let mut appender = Appender::default();
        append(&mut appender, &shared, &place, "lost");
        assert!(intact(&base.base, &shared));
        let (path, generation) = (staging_path(&base), shared.generation());
        let bytes = fs::read(&path).unwrap();
        // Kept, so that its inode does not come back.
        let _kept = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        if replaced {
            fs::write(&path, bytes).unwrap();
        }
        assert!(!intact(&base.base, &shared));
        // A process that comes to it now neither mixes the two nor is refused: it begins another spool.
        later();
        let mut other = Appender::default();
        append(&mut other, &shared, &place, "new");
        assert_eq!(shared.generation(), generation + 1);
        append(&mut appender, &shared, &place, "too");
        assert_eq!(shared.generation(), generation + 1);
    }
}
