//! Boots of the kernel: which one this is, and since when it runs.

use std::fs;
use std::time::{Duration, SystemTime};

/// What the wall clock shows of the start may be off by the ticks in which files are stamped.
const MARGIN: Duration = Duration::from_secs(1);

/// The id of this boot, different for each; `None` where the kernel does not tell (random(4)).
pub fn id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// A time before which no file was written since the boot, as far as the kernel can tell; `None` when it cannot.
///
/// The time of the boot is what the clock shows now, less the time that has passed. Had the clock been set forward
/// meanwhile, files written before that would seem older than the boot. /proc is a witness: it was stamped when it was
/// mounted, by the clock of then. So the earlier of the two counts; a clock set back only makes it earlier.
pub fn earliest_write() -> Option<SystemTime> {
    let uptime = parse_uptime(&fs::read_to_string("/proc/uptime").ok()?)?;
    let mounted = fs::metadata("/proc")
        .and_then(|proc| proc.modified())
        .ok()?;
    earlier(SystemTime::now(), uptime, mounted)
}

fn earlier(now: SystemTime, uptime: Duration, mounted: SystemTime) -> Option<SystemTime> {
    now.checked_sub(uptime)?.min(mounted).checked_sub(MARGIN)
}

/// The first of the two numbers, in seconds (proc_uptime(5)).
fn parse_uptime(text: &str) -> Option<Duration> {
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_that_jumped_never_makes_the_boot_later_than_it_was() {
        let up = Duration::from_secs(100);
        let earliest = |now, mounted| earlier(at(now), up, at(mounted)).unwrap();
        assert_eq!(earliest(10_000, 9_903), at(9_899));
        // Booted in 1970 and set right since.
        assert_eq!(earliest(10_000, 5), at(4));
        // Set back since.
        assert_eq!(earliest(5_000, 9_903), at(4_899));
        assert_eq!(
            earlier(SystemTime::UNIX_EPOCH, up, at(0)),
            Some(at(0) - up - MARGIN)
        );
    }

    #[test]
    fn this_kernel_tells() {
        assert_eq!(
            parse_uptime("12.25 99.0\n"),
            Some(Duration::from_millis(12_250))
        );
        assert_eq!(parse_uptime("-1 2"), None);
        assert_eq!(id().map(|id| id.len()), Some(36));
        assert!(earliest_write().unwrap() < SystemTime::now());
    }
}
