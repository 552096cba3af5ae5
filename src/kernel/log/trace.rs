//! Spans with the names of OpenTelemetry, in a trace that the parent process may have begun.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Level, Line};
use crate::kernel::random;

/// The flags that are passed on: sampled, and random trace ID (W3C Trace Context Level 2, 3.2.2.5). Others must be 0.
const KNOWN_FLAGS: u8 = 0b11;

/// A span of another process (W3C Trace Context, 3.2.2 "traceparent Header Field Values").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceParent {
    /// Parses `00-TRACE_ID-SPAN_ID-FLAGS`. A version after 00 may have more fields (3.2.4 "Versioning of traceparent").
    pub fn parse(text: &str) -> Option<TraceParent> {
        let hex = |at: Range<usize>| {
            let digits = text.get(at)?;
            let is_lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let number = u128::from_str_radix(digits, 16).ok();
            number.filter(|_| digits.bytes().all(is_lower_hex))
        };
        let version = hex(0..2)?;
        let (trace_id, span_id) = (hex(3..35)?, hex(36..52)? as u64);
        let flags = hex(53..55)? as u8 & KNOWN_FLAGS;
        let is_dash = |at: usize| text.as_bytes().get(at) == Some(&b'-');
        let is_complete = text.len() == 55 || (version > 0 && is_dash(55));
        let is_valid = is_complete && [2, 35, 52].into_iter().all(is_dash);
        let is_valid = is_valid && version != 0xff && trace_id != 0 && span_id != 0;
        is_valid.then_some(TraceParent {
            trace_id,
            span_id,
            flags,
        })
    }
}

/// A part of an operation. Its number is unique in this process; 0 is the operation itself.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub name: &'static str,
    pub number: u64,
    pub parent: u64,
    pub began: Instant,
    pub time: Duration,
    pub error: Option<String>,
}

/// The numbers of spans, and if spans are logged, the trace to which they belong.
pub(super) struct Trace {
    next: AtomicU64,
    context: Option<TraceContext>,
}

struct TraceContext {
    trace_id: u128,
    parent: Option<u64>,
    flags: u8,
    /// The ID of span 0. The others follow.
    first: u64,
    /// The same point in time on both clocks.
    reference: (Instant, SystemTime),
}

impl Trace {
    pub fn without_ids() -> Trace {
        Trace {
            next: AtomicU64::new(1),
            context: None,
        }
    }

    /// A trace that continues that of `parent`, or a new one. Without random numbers there are no IDs.
    pub fn new(parent: Option<TraceParent>) -> Trace {
        let context = random::bytes().ok().map(|random| {
            let new = TraceParent {
                trace_id: u128::from_ne_bytes(random) | 1,
                span_id: 0,
                flags: KNOWN_FLAGS,
            };
            let TraceParent {
                trace_id, flags, ..
            } = parent.unwrap_or(new);
            TraceContext {
                trace_id,
                parent: parent.map(|it| it.span_id),
                flags,
                // The upper bits are random also if the trace ID is that of the parent. An ID is never 0.
                first: (new.trace_id >> 64) as u64 & !0xffff | 1 << 16,
                reference: (Instant::now(), SystemTime::now()),
            }
        });
        Trace {
            context,
            ..Trace::without_ids()
        }
    }

    pub fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The value of TRACEPARENT for a program that a span starts.
    pub fn traceparent(&self, number: u64) -> Option<String> {
        let context = self.context.as_ref()?;
        let (trace_id, span_id) = (context.trace_id, context.first + number);
        let flags = context.flags;
        Some(format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}"))
    }

    /// Appends the IDs of a span.
    pub fn ids(&self, line: Line, number: u64) -> Line {
        let Some(context) = &self.context else {
            return line;
        };
        line.field("trace_id", &format!("{:032x}", context.trace_id))
            .field("span_id", &format!("{:016x}", context.first + number))
    }

    /// The line of a span; `None` if spans are not logged.
    pub fn line(&self, level: Level, name: &str, span: &Span) -> Option<Line> {
        let context = self.context.as_ref()?;
        let parent = match span.number {
            0 => context.parent,
            _ => Some(context.first + span.parent),
        };
        let parent = parent.map_or(String::new(), |id| format!("{id:016x}"));
        let start = context.nanoseconds(span.began);
        let end = start + span.time.as_nanos();
        let status = span.error.as_ref().map_or("UNSET", |_| "ERROR");
        let line = self.ids(Line::new(level), span.number);
        // Numbers of 64 bits are strings, as in OTLP: a JSON parser with doubles would round them.
        Some(
            line.field("parent_span_id", &parent)
                .field("name", name)
                .field("start_time_unix_nano", &start.to_string())
                .field("end_time_unix_nano", &end.to_string())
                .field("status_code", status)
                .field("status_message", span.error.as_deref().unwrap_or_default()),
        )
    }
}

impl TraceContext {
    /// Since 1970. Spans that began before the trace have an earlier time.
    fn nanoseconds(&self, time: Instant) -> u128 {
        let (instant, system) = self.reference;
        let before = instant.saturating_duration_since(time);
        let after = time.saturating_duration_since(instant);
        let since = system.duration_since(UNIX_EPOCH).unwrap_or_default();
        (since + after).saturating_sub(before).as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: u8 = 1;
    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_parsed_as_the_specification_says() {
        let parsed = TraceParent::parse(VALID).unwrap();
        assert_eq!(parsed.trace_id, 0x4bf92f3577b34da6a3ce929d0e0e4736);
        assert_eq!((parsed.span_id, parsed.flags), (0x00f067aa0ba902b7, 1));
        let with = |from: &str, to: &str| VALID.replacen(from, to, 1);
        for later in [with("00-", "01-"), with("00-", "cc-") + "-what"] {
            assert_eq!(TraceParent::parse(&later), Some(parsed), "{later}");
        }
        let unknown_flags = TraceParent::parse(&with("-01", "-fd")).unwrap();
        assert_eq!(unknown_flags, parsed);
        for invalid in [
            String::new(),
            "00".to_owned(),
            with("00-", "ff-"),
            with("00-", "0-"),
            with("4bf9", "4BF9"),
            with("4bf9", "+bf9"),
            with("4bf9", "4bf"),
            with("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            with("00f067aa0ba902b7", &"0".repeat(16)),
            with("-01", "_01"),
            with("-01", "-0g"),
            with("-01", "-1"),
            with("4bf9", "4bfü"),
            format!("{VALID}-"),
            format!("{VALID}\n"),
            format!(" {VALID}"),
            with("00-", "01-") + "what",
        ] {
            assert_eq!(TraceParent::parse(&invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn a_started_program_continues_the_trace_of_the_parent() {
        let trace = Trace::new(TraceParent::parse(VALID));
        let (first, second) = (trace.next_number(), trace.next_number());
        let of = |number| trace.traceparent(number).unwrap();
        assert_eq!(of(first)[..36], VALID[..36]);
        assert_ne!(of(first)[36..], VALID[36..]);
        assert_ne!(of(first), of(second));
        assert_eq!(
            TraceParent::parse(&of(second)).map(|it| it.flags & SAMPLED),
            Some(1)
        );
        let new = Trace::new(None).traceparent(0).unwrap();
        assert!(TraceParent::parse(&new).is_some_and(|it| it.flags & SAMPLED == 1));
        assert_eq!(Trace::without_ids().traceparent(0), None);
    }
}
