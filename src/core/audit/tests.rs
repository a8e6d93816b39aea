//! The spool on a real file system: threads that append, one that reads and removes, files that somebody has damaged.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod former_lives;

const MB: u64 = 1 << 20;

/// A base directory that goes with the test.
struct Base {
    root: PathBuf,
    base: PathBuf,
}

impl Base {
    fn new() -> Self {
        let root = std::env::temp_dir().join(format!("hv-spool-{}", crate::envelope::Id::random().unwrap()));
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        Self { base: root.join("spool"), root }
    }

    fn place(&self, limit: u64) -> Place<'_> {
        Place { base: &self.base, limit, facts: &usual }
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let _ = fs::set_permissions(&self.base, fs::Permissions::from_mode(0o700));
        let _ = fs::remove_dir_all(&self.root);
    }
}

thread_local! {
    static NOW_MS: Cell<u64> = const { Cell::new(1_000_000) };
    static OTHER_OWNER: Cell<bool> = const { Cell::new(false) };
    /// On a file system whose files are not mapped.
    static UNMAPPED: Cell<bool> = const { Cell::new(false) };
}

fn usual() -> Facts {
    // Whoever runs the tests owns what they make.
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap());
    let owner = owner + u32::from(OTHER_OWNER.get());
    Facts { owner, system_id: 7, now_ms: NOW_MS.get(), clock: 5, keeps_blocks: !UNMAPPED.get() }
}

/// The staging buffer by reads and writes of its file, since this crate maps nothing.
struct FileStaging(File);

type Appender = super::Appender<FileStaging>;

impl Staging for FileStaging {
    fn open(path: &Path) -> io::Result<(Self, u64)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let inode = file.metadata()?.ino();
        Ok((Self(file), inode))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= STAGING_BYTES - STAGING_HEADER);
        self.0.write_all_at(bytes, (STAGING_HEADER + at) as u64).unwrap();
    }

    fn publish(&mut self, staged: Staged) {
        let words = staged.words().map(u64::to_ne_bytes).concat();
        self.0.write_all_at(&words, 0).unwrap();
    }

    fn with<R>(&self, length: usize, f: impl FnOnce(&[u8]) -> R) -> R {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, STAGING_HEADER as u64).unwrap();
        f(&bytes)
    }
}

/// So much later that what failed is tried again.
fn later() {
    NOW_MS.set(NOW_MS.get() + 10_000);
}

/// Of a server that has the directory to itself.
fn shared() -> Box<Shared> {
    let shared = Box::<Shared>::default();
    shared.held.store(1, SeqCst);
    shared
}

fn record(subject: &str) -> Record<'_> {
    Record {
        at: 17,
        timeline: 1,
        xid: 0,
        occurrences: 1,
        outcome: Outcome::Ok,
        sqlstate: None,
        version: Some(3),
        client: Client::Local,
        node: "node",
        session_role: "app",
        role: "app",
        token: None,
        action: "read",
        function: "read_secret",
        subject: Some(subject),
        detail: None,
    }
}

fn frame(subject: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    push(&mut frame, |out| record(subject).encode(out));
    frame
}

fn append(appender: &mut Appender, shared: &Shared, place: &Place<'_>, subject: &str) {
    appender.append(shared, place, &mut frame(subject), 1, Class::Needed).unwrap();
}

/// Subjects of a segment's whole records, and how many stretches of it are none; as of a former spool.
fn subjects(spool: &Spool, segment: u64) -> (Vec<String>, usize) {
    let (mut found, mut torn, mut taken) = (Vec::new(), 0, position(segment, 0));
    // In parts so small that frames lie across their ends.
    let part = |taken| spool.next_part(&Shared::default(), false, taken, 1500).unwrap();
    while let Some(Part { bytes, offset, last, .. }) = part(taken).filter(|part| part.segment == segment) {
        let frames = Frames { key: spool.key(), segment, offset, bytes: &bytes };
        let mut at = 0;
        loop {
            match frames.next(at) {
                Next::Frame(payload) => {
                    at = payload.end;
                    found.push(Record::decode(&bytes[payload]).unwrap().subject.unwrap().to_owned());
                }
                Next::Torn(range) => {
                    at = range.end;
                    torn += 1;
                }
                Next::End if last => {
                    torn += usize::from(at < bytes.len());
                    at = bytes.len();
                    break;
                }
                Next::End if at == 0 => panic!("more than a part without a frame"),
                Next::End => break,
            }
        }
        taken = position(segment, offset + at as u64);
    }
    (found, torn)
}

fn only_spool(base: &Path) -> Spool {
    let mut spools = spools(base).unwrap();
    assert_eq!(spools.len(), 1);
    spools.remove(0)
}

/// What there is in all, written to segments.
fn drained(shared: &Shared, place: &Place<'_>) -> Spool {
    Appender::default().drain(shared, place).unwrap();
    only_spool(place.base)
}

fn segment_path(base: &Base, segment: u64) -> PathBuf {
    let spool = only_spool(&base.base);
    base.base.join(spool.id.to_string()).join(format!("{segment:08}.log"))
}

#[test]
fn what_is_appended_is_read_in_order_and_files_are_private() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    for i in 0..100 {
        append(&mut appender, &shared, &place, &format!("a/{i}"));
    }
    assert_eq!(fs::metadata(segment_path(&base, 1)).unwrap().len(), 0, "no write for a record alone");
    assert_eq!(only_spool(&base.base).segments[0].bytes, shared.size(), "but it counts");
    let spool = drained(&shared, &place);
    assert_eq!(spool.id, shared.id());
    assert_eq!((spool.system_id, spool.created), (7, 5));
    let (found, torn) = subjects(&spool, 1);
    assert_eq!((found.len(), torn), (100, 0));
    assert!(found.iter().enumerate().all(|(i, subject)| *subject == format!("a/{i}")));
    assert_eq!(shared.size(), spool.segments[0].bytes);
    let directory = base.base.join(spool.id.to_string());
    for (path, mode) in [
        (base.base.clone(), 0o700),
        (directory.clone(), 0o700),
        (directory.join("identity"), 0o600),
        (directory.join("00000001.log"), 0o600),
        (directory.join("staging"), 0o600),
    ] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn many_writers_and_a_reader_lose_and_double_nothing() {
    writers_and_a_reader();
}

#[test]
fn nor_without_a_staging_buffer() {
    UNMAPPED.set(true);
    writers_and_a_reader();
}

fn writers_and_a_reader() {
    const WRITERS: usize = 6;
    const EACH: usize = 4000;
    let base = Arc::new(Base::new());
    let shared: Arc<Shared> = Arc::from(shared());
    open_spool(&shared, &base.place(MB)).unwrap();
    assert_eq!(shared.staging().is_some(), !UNMAPPED.get());
    let done = Arc::new(AtomicBool::new(false));
    // Segments of 128 kB: some twenty of them.
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (base, shared) = (Arc::clone(&base), Arc::clone(&shared));
            std::thread::spawn(move || {
                let mut appender = Appender::default();
                for i in 0..EACH {
                    loop {
                        let place = base.place(MB);
                        match appender.append(
                            &shared,
                            &place,
                            &mut frame(&format!("{writer}/{i}")),
                            1,
                            Class::Needed,
                        ) {
                            Ok(_) => break,
                            // The reader is behind, or another is opening.
                            Err(AppendError::Full { .. } | AppendError::Closed) => std::thread::yield_now(),
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    let reader = {
        let (base, shared, done) = (Arc::clone(&base), Arc::clone(&shared), Arc::clone(&done));
        std::thread::spawn(move || {
            // As the relay does it.
            let (mut seen, mut removed) = (BTreeMap::<String, usize>::new(), 0);
            let (mut taken, mut appender) = (0, Appender::default());
            loop {
                let over = done.load(SeqCst);
                appender.drain(&shared, &base.place(MB)).unwrap();
                let Some(spool) = spools(&base.base).unwrap().pop() else { continue };
                let part = spool.next_part(&shared, true, taken, 4096).unwrap();
                if let Some(Part { bytes, segment, offset, .. }) = &part {
                    let frames = Frames { key: spool.key(), segment: *segment, offset: *offset, bytes };
                    let mut at = 0;
                    while let Next::Frame(payload) = frames.next(at) {
                        at = payload.end;
                        let subject = Record::decode(&bytes[payload]).unwrap().subject.unwrap().to_owned();
                        *seen.entry(subject).or_default() += 1;
                    }
                    assert!(at > 0, "segment {segment} is torn at {offset}");
                    taken = position(*segment, offset + at as u64);
                }
                for Segment { number, bytes } in spool.spent(&shared, true, taken).unwrap() {
                    remove_segment(&spool, number).unwrap();
                    shared.shrink(bytes);
                    removed += 1;
                }
                if over && part.is_none() {
                    return (seen, removed);
                }
            }
        })
    };
    for writer in writers {
        writer.join().unwrap();
    }
    done.store(true, SeqCst);
    let (seen, removed) = reader.join().unwrap();
    assert_eq!(seen.len(), WRITERS * EACH);
    assert!(seen.values().all(|count| *count == 1));
    assert!(removed > 5, "only {removed} segments");
    assert_eq!(shared.appended(), (WRITERS * EACH) as u64);
}

#[test]
fn what_was_appended_after_the_look_at_a_spool_is_not_removed() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(8 * MB);
    let mut appender = Appender::default();
    open_spool(&shared, &place).unwrap();
    append(&mut appender, &shared, &place, "a");
    // The relay looks, and takes what it sees.
    appender.drain(&shared, &place).unwrap();
    let spool = only_spool(&base.base);
    let seen = spool.next_part(&shared, true, 0, 4096).unwrap().unwrap();
    assert!(!seen.last);
    let taken = position(seen.segment, seen.bytes.len() as u64);
    // Meanwhile another record comes, and the segment is closed.
    append(&mut appender, &shared, &place, "b");
    appender.close_segment(&shared, &place).unwrap();
    assert!(shared.finished(1));
    assert_eq!(spool.spent(&shared, true, taken).unwrap(), []);
    let rest = spool.next_part(&shared, true, taken, 4096).unwrap().unwrap();
    assert!(rest.last);
    let taken = position(1, rest.offset + rest.bytes.len() as u64);
    let spent = spool.spent(&shared, true, taken).unwrap();
    assert_eq!(spent, [Segment { number: 1, bytes: 2 * frame("a").len() as u64 }]);
}

#[test]
fn a_torn_record_costs_itself_only_and_no_name_looks_like_a_record() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    let long = "x".repeat(1000);
    for subject in ["before", &long, "after"] {
        append(&mut appender, &shared, &place, subject);
    }
    drained(&shared, &place);
    // In the place of the second, one that was cut short by a full disk, in whose payload a caller has put what looks like a
    // frame: under another key, since he does not know this one.
    let mut forged = frame("forged");
    SpoolKey([9; 16]).seal_all(&mut forged);
    let name: String = forged.iter().map(|byte| char::from(*byte)).collect();
    let mut torn = frame(&name);
    torn.extend_from_slice(&forged);
    torn.resize(frame(&long).len(), b'y');
    let file = OpenOptions::new().write(true).open(segment_path(&base, 1)).unwrap();
    file.write_all_at(&torn, frame("before").len() as u64).unwrap();
    let end = file.metadata().unwrap().len();
    file.write_all_at(&frame("x")[..20], end).unwrap();
    let (found, torn) = subjects(&only_spool(&base.base), 1);
    assert_eq!((found, torn), (vec!["before".to_owned(), "after".to_owned()], 2));
}

#[test]
fn neither_a_segment_nor_a_record_can_take_anothers_place() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    append(&mut appender, &shared, &place, "one");
    append(&mut appender, &shared, &place, "two");
    drained(&shared, &place);
    let path = segment_path(&base, 1);
    fs::copy(&path, path.with_file_name("00000002.log")).unwrap();
    let spool = only_spool(&base.base);
    assert_eq!(subjects(&spool, 1).0.len(), 2);
    assert_eq!(subjects(&spool, 2), (vec![], 1));
    // The first once more, behind the second.
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_within(..frame("one").len());
    fs::write(&path, bytes).unwrap();
    assert_eq!(subjects(&spool, 1), (vec!["one".to_owned(), "two".to_owned()], 1));
}

#[test]
fn who_leaves_without_destructors_gives_up_his_rights_and_no_others() {
    let shared: Arc<Shared> = Arc::from(shared());
    std::mem::forget(shared.lock());
    std::mem::forget(shared.sync());
    let other = Arc::clone(&shared);
    std::thread::spawn(move || {
        let held = other.opening().unwrap();
        other.let_go();
        assert!(other.sync().is_none(), "another's");
        drop(held);
    })
    .join()
    .unwrap();
    let opening = shared.opening().unwrap();
    drop(opening);
    assert!(shared.sync().is_none());
    shared.let_go();
    assert!(shared.sync().is_some() && shared.lock().is_some());
}

#[test]
fn lives_in_which_nothing_happened_leave_nothing() {
    let base = Base::new();
    let place = base.place(64 * MB);
    for _ in 0..5 {
        open_spool(&shared(), &place).unwrap();
    }
    assert_eq!(spools(&base.base).unwrap().len(), 1);
    append(&mut Appender::default(), &shared(), &place, "a");
    open_spool(&shared(), &place).unwrap();
    open_spool(&shared(), &place).unwrap();
    assert_eq!(spools(&base.base).unwrap().len(), 2, "what has only staged something is not empty");
}

#[test]
fn a_segment_that_cannot_be_written_loses_nothing_that_was_staged() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    append(&mut appender, &shared, &place, "0");
    let (path, aside) = (segment_path(&base, 1), base.root.join("aside"));
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    let mut count = 1;
    let error = loop {
        match appender.append(&shared, &place, &mut frame(&count.to_string()), 1, Class::Needed) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::Io { doing: "opening a segment", .. }), "{error:?}");
    assert!(count > 1000, "only {count} in the buffer");
    assert_eq!(shared.appended(), count);
    let refused = Appender::default().append(&shared, &place, &mut frame(&"x".repeat(300)), 1, Class::Needed);
    assert!(refused.is_err(), "so are others");
    fs::remove_dir(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    append(&mut appender, &shared, &place, "last");
    let (found, torn) = subjects(&drained(&shared, &place), 1);
    let expected: Vec<_> = (0..count).map(|i| i.to_string()).collect();
    assert_eq!(torn, 0);
    assert_eq!(found[..count as usize], expected);
    assert_eq!(found.last().unwrap(), "last");
}

#[test]
fn more_than_the_buffer_holds_keeps_its_turn() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    append(&mut appender, &shared, &place, "before");
    let mut many: Vec<u8> = (0..5000).flat_map(|i| frame(&i.to_string())).collect();
    assert!(many.len() > STAGING_BYTES);
    appender.append(&shared, &place, &mut many, 5000, Class::Needed).unwrap();
    append(&mut appender, &shared, &place, "after");
    let (found, torn) = subjects(&drained(&shared, &place), 1);
    assert_eq!((found.len(), torn, shared.appended()), (5002, 0, 5002));
    assert_eq!((found[0].as_str(), found[5000].as_str(), found[5001].as_str()), ("before", "4999", "after"));
}

#[test]
fn at_the_limit_reads_are_refused_and_go_on_when_there_is_room() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(MB);
    let mut appender = Appender::default();
    let mut refused_first = 0;
    let mut count = 0;
    loop {
        if refused_first == 0 && appender.append(&shared, &place, &mut frame("r"), 1, Class::Refusal).is_err()
        {
            refused_first = count;
        }
        match appender.append(&shared, &place, &mut frame("n"), 1, Class::Needed) {
            Ok(_) => count += 1,
            Err(AppendError::Full { limit }) => {
                assert_eq!(limit, MB);
                break;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused_first > 0, "refusals left no reserve");
    assert!(count - refused_first > 500, "{count} {refused_first}");
    let spool = only_spool(&base.base);
    assert!(spool.segments.len() >= 8, "{:?}", spool.segments);
    assert!(size_below(&base.base) <= MB);
    remove_segment(&spool, 1).unwrap();
    shared.shrink(spool.segments[0].bytes);
    append(&mut appender, &shared, &place, "again");
}

#[test]
fn each_life_opens_a_spool_of_its_own_and_leaves_the_former_alone() {
    let base = Base::new();
    let place = base.place(64 * MB);
    let first = shared();
    {
        let lock = hold_base(&place).unwrap();
        append(&mut Appender::default(), &first, &place, "first");
        // While one lives, no other server may use the directory.
        assert!(matches!(hold_base(&place), Err(AppendError::Unfit(Why::InUse))));
        let other = Box::<Shared>::default();
        let refused = Appender::default().append(&other, &place, &mut frame("x"), 1, Class::Needed);
        assert!(matches!(refused, Err(AppendError::Closed)));
        drop(lock);
    }
    hold_base(&place).unwrap();
    let before = only_spool(&base.base);
    let second = shared();
    let mut appender = Appender::default();
    append(&mut appender, &second, &place, "second");
    let all = spools(&base.base).unwrap();
    assert_eq!(all.len(), 2);
    assert_ne!(first.id(), second.id());
    let again = all.iter().find(|spool| spool.id == before.id).unwrap();
    assert_eq!(*again, before);
    Appender::default().drain(&second, &place).unwrap();
    assert_eq!(second.size(), size_below(&base.base));
    remove_segment(again, 1).unwrap();
    remove_spool(again).unwrap();
    assert_eq!(only_spool(&base.base).id, second.id());
}

#[test]
fn a_directory_that_is_not_the_servers_own_is_refused_until_it_is() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    let mut refused =
        |place: &Place<'_>| match appender.append(&shared, place, &mut frame("x"), 1, Class::Needed) {
            Err(AppendError::Unfit(why)) => why.as_str(),
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("not refused"),
        };
    fs::create_dir(&base.base).unwrap();
    fs::set_permissions(&base.base, fs::Permissions::from_mode(0o722)).unwrap();
    assert!(refused(&place).contains("write to it"));
    fs::set_permissions(&base.base, fs::Permissions::from_mode(0o700)).unwrap();
    later();
    OTHER_OWNER.set(true);
    assert!(refused(&place).contains("another user"));
    OTHER_OWNER.set(false);
    fs::remove_dir(&base.base).unwrap();
    std::os::unix::fs::symlink(&base.root, &base.base).unwrap();
    later();
    assert!(refused(&place).contains("not a directory"));
    fs::remove_file(&base.base).unwrap();
    // Within the pause nothing is tried; after it, it works.
    let soon = appender.append(&shared, &place, &mut frame("x"), 1, Class::Needed);
    assert!(matches!(soon, Err(AppendError::Closed)));
    later();
    appender.append(&shared, &place, &mut frame("x"), 1, Class::Needed).unwrap();
}

#[test]
fn a_spool_that_is_removed_under_the_server_is_replaced() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    append(&mut appender, &shared, &place, "lost");
    let spool = only_spool(&base.base);
    assert!(intact(&base.base, &shared));
    fs::remove_dir_all(base.base.join(spool.id.to_string())).unwrap();
    assert!(!intact(&base.base, &shared));
    // The relay notices; a process that has no descriptor yet does so by itself.
    later();
    drop(appender);
    append(&mut Appender::default(), &shared, &place, "kept");
    assert_eq!(subjects(&drained(&shared, &place), 1).0, ["kept"]);
}

#[test]
fn a_sync_serves_everything_before_it() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let (mut a, mut b) = (Appender::default(), Appender::default());
    let first = a.append(&shared, &place, &mut frame("1"), 1, Class::Needed).unwrap();
    let second = b.append(&shared, &place, &mut frame("2"), 1, Class::Needed).unwrap();
    {
        let _held = shared.sync().unwrap();
        assert!(!a.sync(&shared, &place, &first).unwrap(), "another is at it");
    }
    assert!(b.sync(&shared, &place, &second).unwrap());
    let done = shared.synced(shared.generation());
    assert_eq!(done, Some(Synced::new(1, 2 * frame("1").len() as u64)));
    {
        let _held = shared.sync().unwrap();
        assert!(a.sync(&shared, &place, &first).unwrap(), "the second's sync covers the first");
    }
    assert_eq!(shared.synced(shared.generation()), done);
    // What is in an earlier segment by now is covered as well, and one that the relay has removed is no hindrance.
    let mut third = Vec::new();
    for segment in 2..5 {
        third.push(a.append(&shared, &place, &mut frame("3"), 1, Class::Needed).unwrap());
        a.close_segment(&shared, &place).unwrap();
        assert_eq!(shared.segment(), segment);
    }
    remove_segment(&only_spool(&base.base), 2).unwrap();
    assert!(a.sync(&shared, &place, &third[0]).unwrap());
    assert_eq!(shared.synced(shared.generation()), Some(Synced::new(4, 0)));
    // Of a spool that is gone nothing is said to be on disk, and nothing of it is said of the next.
    let (generation, lost) = (shared.generation(), &third[2]);
    shared.close(generation);
    later();
    append(&mut b, &shared, &place, "new");
    assert!(a.sync(&shared, &place, lost).is_err());
    shared.set_synced(generation, Synced::new(9, 9));
    shared.set_broken(generation);
    assert_eq!(shared.synced(shared.generation()), Some(Synced::new(0, 0)));
    assert_eq!(shared.synced(generation), None);
    // Nor is anything said of one that could not be brought to disk.
    let last = a.append(&shared, &place, &mut frame("4"), 1, Class::Needed).unwrap();
    shared.set_broken(shared.generation());
    assert!(a.sync(&shared, &place, &last).is_err());
}

#[test]
fn a_segment_that_is_removed_takes_no_room_whoever_has_it_open() {
    let (base, shared) = (Base::new(), shared());
    let place = base.place(64 * MB);
    let mut appender = Appender::default();
    append(&mut appender, &shared, &place, "a");
    appender.close_segment(&shared, &place).unwrap();
    let open = File::open(segment_path(&base, 1)).unwrap();
    assert!(open.metadata().unwrap().len() > 0);
    remove_segment(&only_spool(&base.base), 1).unwrap();
    assert_eq!(open.metadata().unwrap().len(), 0);
}

#[test]
fn who_asks_in_vain_for_a_right_takes_it_from_nobody() {
    let shared = shared();
    let held = shared.opening().unwrap();
    assert!(shared.opening().is_none());
    assert!(shared.opening().is_none(), "the one who had it still has");
    drop(held);
    assert!(shared.opening().is_some());
}

#[test]
fn what_is_no_spool_is_left_alone() {
    let base = Base::new();
    assert_eq!(spools(&base.base).unwrap(), []);
    fs::create_dir(&base.base).unwrap();
    let id = crate::envelope::Id([1; 16]).to_string();
    for name in ["x", id.as_str()] {
        fs::create_dir(base.base.join(name)).unwrap();
        fs::write(base.base.join(name).join("00000001.log"), b"data").unwrap();
    }
    // An identity that was not written to its end, and one of another spool.
    fs::write(base.base.join(&id).join("identity"), b"HVSPOOL1").unwrap();
    assert_eq!(spools(&base.base).unwrap(), []);
    append(&mut Appender::default(), &shared(), &base.place(64 * MB), "s");
    let real = only_spool(&base.base);
    fs::copy(base.base.join(real.id.to_string()).join("identity"), base.base.join(&id).join("identity"))
        .unwrap();
    assert_eq!(spools(&base.base).unwrap().len(), 1);
    fs::write(base.base.join(real.id.to_string()).join("notes"), b"mine").unwrap();
    remove_segment(&real, 1).unwrap();
    assert!(remove_spool(&real).is_err(), "something else lies in it");
}

#[test]
fn a_burst_is_taken_later_and_a_flood_at_once() {
    let busy = Duration::from_millis(10);
    assert_eq!(rest(busy, 0, 1024 * MB), Duration::from_millis(90));
    assert_eq!(rest(busy, 16 * MB - 1, 1024 * MB), Duration::from_millis(90));
    assert_eq!(rest(busy, 16 * MB, 1024 * MB), Duration::ZERO);
    // A small limit would be reached meanwhile.
    assert_eq!(rest(busy, 0, 128 * MB), Duration::from_millis(90));
    assert_eq!(rest(busy, 0, 128 * MB - 1), Duration::ZERO);
    assert_eq!(rest(Duration::from_secs(5), 0, 1024 * MB), Duration::from_secs(1));
}

#[test]
fn who_appends_gives_way_in_the_last_quarter_the_more_the_less_is_left() {
    let limit = 1024 * MB;
    assert_eq!(give_way(0, limit), None);
    assert_eq!(give_way(limit / 4 * 3, limit), None);
    let waits: Vec<_> =
        (1..=4).map(|part| give_way(limit / 4 * 3 + limit / 16 * part, limit).unwrap()).collect();
    assert!(waits.is_sorted() && waits[0] >= Duration::from_millis(1), "{waits:?}");
    assert_eq!(waits[3], Duration::from_millis(8));
    assert_eq!(give_way(limit * 2, limit), Some(Duration::from_millis(8)), "a limit that was lowered");
}

#[test]
fn positions_order_as_the_spool_does() {
    let all: Vec<i64> =
        [(1, 0), (1, 7), (1, u64::from(u32::MAX)), (2, 0), (300, 5)].map(|(s, o)| position(s, o)).to_vec();
    assert!(all.is_sorted() && all.iter().collect::<HashSet<_>>().len() == all.len());
    assert_eq!(split(position(300, 5)), (300, 5));
}

fn actor(role: u32, address: Option<&str>) -> Actor {
    Actor { role, address: address.map(|text| text.parse::<IpAddr>().unwrap()) }
}

#[test]
fn a_flood_of_refusals_becomes_a_number() {
    let denials: Box<Denials> = Box::default();
    let (flood, other) = (actor(10, Some("192.0.2.1")), actor(11, None));
    let mut written = 0;
    for _ in 0..1000 {
        let seen = denials.seen(flood, 100);
        assert_eq!(seen.counted, None);
        written += u64::from(seen.write);
    }
    assert_eq!(written, 20);
    // Nobody else is affected.
    assert!(denials.seen(other, 100).write);
    assert!(denials.seen(actor(10, Some("192.0.2.2")), 100).write);
    assert_eq!(denials.take_counted(100), [], "the window is not over");
    let later = 100 + WINDOW_SECS;
    assert_eq!(denials.take_counted(later), [(flood, 980)]);
    assert_eq!(denials.take_counted(later), [], "told once");
    assert!(denials.give_back(flood, 980));
    assert_eq!(denials.take_counted(later), [(flood, 980)], "and again if it could not be written");
    assert!(!denials.give_back(actor(99, None), 1));
    // A new window, told by the next refusal.
    for _ in 0..25 {
        denials.seen(flood, later);
    }
    let seen = denials.seen(flood, later + WINDOW_SECS);
    assert_eq!(seen, Seen { write: true, counted: Some((flood, 5)) });
}

#[test]
fn more_actors_than_places_lose_no_count() {
    let denials: Box<Denials> = Box::default();
    let (mut written, mut counted) = (0, 0);
    let mut told = |seen: Seen| {
        written += u64::from(seen.write);
        counted += seen.counted.map_or(0, |(_, count)| count);
    };
    for _ in 0..30 {
        for role in 1..=1000 {
            told(denials.seen(actor(role, Some("2001:db8::1")), 5));
        }
    }
    for (_, count) in denials.take_counted(5 + WINDOW_SECS) {
        counted += count;
    }
    assert_eq!(written + counted, 30_000);
}

fn any_text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[^\\x00]{0,60}").unwrap()
}

fn any_client() -> impl Strategy<Value = (u8, u128, String)> {
    (0..5u8, any::<u128>(), any_text())
}

proptest! {
    #[test]
    fn records_come_back_as_they_were(
        (at, timeline, xid, occurrences, outcome, version) in
            (any::<i64>(), any::<u32>(), any::<u64>(), any::<u32>(), 0..6usize, proptest::option::of(1..i32::MAX)),
        (kind, bits, worker) in any_client(),
        texts in proptest::collection::vec(any_text(), 8),
        absent in any::<[bool; 4]>(),
    ) {
        let outcomes = [Outcome::Ok, Outcome::Denied, Outcome::Error, Outcome::Pending, Outcome::RolledBack, Outcome::Unknown];
        let client = match kind {
            0 => Client::None,
            1 => Client::Local,
            2 => Client::Ip(IpAddr::V4((bits as u32).into())),
            3 => Client::Ip(IpAddr::V6(bits.into())),
            _ => Client::Internal(&worker),
        };
        let optional = |index: usize, absent: bool| (!absent).then_some(texts[index].as_str());
        let record = Record {
            at, timeline, xid, occurrences,
            outcome: outcomes[outcome],
            sqlstate: (!absent[0]).then_some(*b"42501"),
            version, client,
            node: &texts[0], session_role: &texts[1], role: &texts[2],
            token: optional(3, absent[1]),
            action: &texts[4], function: &texts[5],
            subject: optional(6, absent[2]),
            detail: optional(7, absent[3]),
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let back = Record::decode(&bytes);
        prop_assert_eq!(back.as_ref(), Some(&record));
        for end in 0..bytes.len() {
            prop_assert_eq!(Record::decode(&bytes[..end]), None);
        }
        bytes.push(0);
        prop_assert_eq!(Record::decode(&bytes), None);
    }

    #[test]
    fn no_bytes_make_the_readers_fail(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0..450usize) {
        let _ = Record::decode(&bytes);
        let frames = Frames { key: SpoolKey([1; 16]), segment: 1, offset: 0, bytes: &bytes };
        prop_assert_eq!(frames.next(at), Next::End);
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed(bit in 0..1000usize) {
        let mut bytes = frame("db/password");
        SpoolKey([3; 16]).seal_all(&mut bytes);
        SpoolKey([3; 16]).place_all(1, 0, &mut bytes);
        let whole = Frames { key: SpoolKey([3; 16]), segment: 1, offset: 0, bytes: &bytes };
        prop_assert!(matches!(whole.next(0), Next::Frame(_)));
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let changed = Frames { key: SpoolKey([3; 16]), segment: 1, offset: 0, bytes: &bytes };
        prop_assert_eq!(changed.next(0), Next::End);
    }
}

#[test]
fn texts_that_are_too_long_are_cut_between_characters() {
    let long = "é".repeat(2000);
    let mut bytes = Vec::new();
    Record { subject: Some(&long), ..record("") }.encode(&mut bytes);
    let back = Record::decode(&bytes).unwrap().subject.unwrap();
    assert!(back.len() <= 1024 && long.starts_with(back) && !back.is_empty());
}
