//! Numbers and durations of CNI calls, in a file that `gangplank status --metrics` creates and prints. Without the file,
//! nothing is counted.
//!
//! The file is a sequence of records of one length. A call adds itself to the record of its plugin, command and code, under
//! flock(2). A record has a checksum, and one that is not valid is replaced: Prometheus recognizes counters that restart.
//! A call does not fail because it cannot be counted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::kernel::locks::{self, LockError};
use crate::kernel::{files, signals};

/// On a file system that is empty after a reboot (hier(7)).
const DIRECTORY: &str = "/run/gangplank";
pub const PATH: &str = "/run/gangplank/metrics";

/// The upper bounds of the buckets of a histogram, in milliseconds. The last bucket has none.
pub const BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];
const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// The length of a record in bytes: a divisor of the page size, so that the kernel does not interrupt its write.
const LENGTH: usize = 256;
const LABEL: usize = 32;
const CHECKSUM: usize = LENGTH - 8;

/// The file does not become larger: calls with further labels are not counted.
const MAX_RECORDS: usize = 256;

/// Of a process that was stopped while it held the lock.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// The calls of a plugin with the same command and code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub plugin: String,
    /// "other" if CNI_COMMAND is invalid.
    pub command: String,
    /// The code of the error, or 0. "other" for a number above 99 except 999: IPAM plugins may return any.
    pub code: String,
    /// The calls in each bucket.
    pub buckets: [u64; BUCKETS],
    pub time: Duration,
}

impl Calls {
    pub fn one(plugin: &str, command: Option<&str>, code: u32, time: Duration) -> Calls {
        let mut buckets = [0; BUCKETS];
        let bucket = BOUNDS_MS.partition_point(|ms| Duration::from_millis(*ms) < time);
        buckets[bucket] = 1;
        Calls {
            plugin: plugin.to_owned(),
            command: command.unwrap_or("other").to_owned(),
            code: match code {
                0..100 | 999 => code.to_string(),
                _ => "other".to_owned(),
            },
            buckets,
            time,
        }
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    fn label(&self) -> String {
        format!("{} {} {}", self.plugin, self.command, self.code)
    }

    fn add(&mut self, other: &Calls) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.saturating_add(more);
        }
        self.time = self.time.saturating_add(other.time);
    }

    /// `None` if the record is not valid, for example empty or written in part.
    fn decode(record: &[u8]) -> Option<Calls> {
        let number = |at: usize| {
            let bytes = record.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        if number(CHECKSUM)? != checksum(&record[..CHECKSUM]) {
            return None;
        }
        let label = std::str::from_utf8(&record[..LABEL]).ok()?;
        let mut labels = label.trim_end_matches('\0').split(' ').map(str::to_owned);
        let mut calls = Calls {
            plugin: labels.next()?,
            command: labels.next()?,
            code: labels.next()?,
            time: Duration::from_nanos(number(LABEL)?),
            ..Calls::default()
        };
        for (index, bucket) in calls.buckets.iter_mut().enumerate() {
            *bucket = number(LABEL + 8 + 8 * index)?;
        }
        Some(calls)
    }

    /// `None` if the label is too long.
    fn encode(&self) -> Option<[u8; LENGTH]> {
        let mut record = [0; LENGTH];
        let label = self.label();
        record[..LABEL]
            .get_mut(..label.len())?
            .copy_from_slice(label.as_bytes());
        let time = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        for (index, number) in [time].into_iter().chain(self.buckets).enumerate() {
            let at = LABEL + 8 * index;
            record[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = checksum(&record[..CHECKSUM]);
        record[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        Some(record)
    }
}

/// FNV-1a. That of an empty record is not 0.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Counts a call, if the file exists.
pub fn count(call: &Calls) {
    if let Ok(file) = files::no_follow().read(true).write(true).open(PATH) {
        // On a full or read-only file system the call is not counted.
        let _ = signals::uncancellable(|| add(file, call));
    }
}

fn add(file: File, call: &Calls) -> Result<(), LockError> {
    let file = locks::lock_within(file, LOCK_LIMIT)?;
    let content = content(&file)?;
    let records: Vec<Option<Calls>> = content.chunks_exact(LENGTH).map(Calls::decode).collect();
    let is_own = |known: &&Option<Calls>| {
        known
            .as_ref()
            .is_some_and(|known| known.label() == call.label())
    };
    let (at, mut sum) = match records.iter().position(|known| is_own(&known)) {
        Some(at) => (at, records[at].clone().unwrap_or_default()),
        None => {
            let free = records.iter().position(Option::is_none);
            let sum = Calls {
                buckets: [0; BUCKETS],
                time: Duration::ZERO,
                ..call.clone()
            };
            (free.unwrap_or(records.len()), sum)
        }
    };
    sum.add(call);
    if let (Some(record), ..MAX_RECORDS) = (sum.encode(), at) {
        file.write_all_at(&record, (at * LENGTH) as u64)?;
    }
    Ok(())
}

fn content(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().min((MAX_RECORDS * LENGTH) as u64);
    let mut content = vec![0; length as usize];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// The calls that were counted. Creates the file, so that calls are counted from now on.
///
/// # Errors
/// If the file cannot be created or read.
pub fn read() -> io::Result<Vec<Calls>> {
    let mut directory = fs::DirBuilder::new();
    directory.recursive(true).mode(0o755).create(DIRECTORY)?;
    // With read permission, any user could hold the lock.
    let mut options = files::no_follow();
    let options = options.read(true).write(true).create(true).mode(0o600);
    let file = options.open(Path::new(PATH))?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    // A record is written by one system call. Those of a file without a lock may be of different times.
    let content = content(&file)?;
    let mut calls: Vec<Calls> = content
        .chunks_exact(LENGTH)
        .filter_map(Calls::decode)
        .collect();
    calls.sort_by_key(Calls::label);
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let file = format!("gangplank-metrics-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        File::create(&path).unwrap();
        path
    }

    fn count_in(path: &Path, call: &Calls) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        add(file, call).unwrap();
    }

    fn read_from(path: &Path) -> Vec<Calls> {
        let content = fs::read(path).unwrap();
        let records = content.chunks_exact(LENGTH);
        records.filter_map(Calls::decode).collect()
    }

    fn call(command: &str, code: u32, ms: u64) -> Calls {
        Calls::one("bridge", Some(command), code, Duration::from_millis(ms))
    }

    #[test]
    fn concurrent_calls_are_all_counted_and_the_file_does_not_grow() {
        let path = scratch("concurrent");
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..100).for_each(|_| count_in(&path, &call("ADD", 0, 3))));
            }
        });
        count_in(&path, &call("ADD", 11, 60_000));
        let [ok, failed] = &read_from(&path)[..] else {
            panic!()
        };
        assert_eq!((ok.count(), ok.buckets[2]), (2000, 2000));
        assert_eq!(ok.time, Duration::from_secs(6));
        assert_eq!(
            (failed.code.as_str(), failed.buckets[BUCKETS - 1]),
            ("11", 1)
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * LENGTH as u64);
        for code in 0..MAX_RECORDS {
            let plugin = format!("plugin{code}");
            count_in(&path, &Calls::one(&plugin, None, 1000, Duration::ZERO));
        }
        let full = (MAX_RECORDS * LENGTH) as u64;
        assert_eq!(fs::metadata(&path).unwrap().len(), full);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_damaged_record_starts_again_and_the_others_are_kept() {
        let path = scratch("damaged");
        count_in(&path, &call("ADD", 0, 3));
        count_in(&path, &call("DEL", 0, 3));
        let whole = fs::read(&path).unwrap();
        for at in 0..LENGTH {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(read_from(&path), [call("DEL", 0, 3)]);
            count_in(&path, &call("ADD", 0, 5));
            assert_eq!(read_from(&path), [call("ADD", 0, 5), call("DEL", 0, 3)]);
            // Written in part.
            fs::write(&path, &whole[..LENGTH + at]).unwrap();
            count_in(&path, &call("DEL", 0, 5));
            assert_eq!(read_from(&path), [call("ADD", 0, 3), call("DEL", 0, 5)]);
        }
        fs::remove_file(path).unwrap();
    }
}
