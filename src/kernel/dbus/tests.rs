use std::io::Read;
use std::net::Shutdown;
use std::thread;

use super::message::{answer, call, length, pad, put_string};
use super::*;

const ZONE: Interface = Interface {
    destination: "org.example.D",
    path: "/org/example",
    name: "org.example.I",
};

/// An answer as a bus sends it: kind, header fields (code, type, value) and the body with its signature.
fn message(kind: u8, reply_to: u32, error: &str, (signature, body): (&str, &[u8])) -> Vec<u8> {
    let mut bytes = vec![b'l', kind, 1, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(7u32.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend([5, 1, b'u', 0]);
    bytes.extend(reply_to.to_le_bytes());
    if !error.is_empty() {
        pad(&mut bytes, 8);
        bytes.extend([4, 1, b's', 0]);
        put_string(&mut bytes, error);
    }
    pad(&mut bytes, 8);
    bytes.extend([8, 1, b'g', 0, signature.len() as u8]);
    bytes.extend(signature.bytes().chain([0]));
    let fields = bytes.len() as u32 - 16;
    bytes[12..16].copy_from_slice(&fields.to_le_bytes());
    pad(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

fn text(value: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_string(&mut body, value);
    body
}

/// A connection to a bus that sends these bytes after the first call.
fn bus(answer: Vec<u8>) -> Bus {
    let (stream, mut server) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let _ = server.read(&mut [0; 4096]);
        server.write_all(&answer).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        let _ = server.read_to_end(&mut Vec::new());
    });
    Bus {
        is_authenticated: true,
        serial: 0,
        unsent: Vec::new(),
        ..Bus::on(stream)
    }
}

#[test]
fn a_call_has_the_bytes_of_the_specification() {
    let expected = b"l\x01\0\x01\x0f\0\0\0\x02\0\0\0\x60\0\0\0\
        \x01\x01o\0\x0c\0\0\0/org/example\0\0\0\0\
        \x02\x01s\0\x0d\0\0\0org.example.I\0\0\0\
        \x03\x01s\0\x03\0\0\0add\0\0\0\0\0\
        \x06\x01s\0\x0d\0\0\0org.example.D\0\0\0\
        \x08\x01g\0\x02ss\0\
        \x01\0\0\0z\0\0\0\x02\0\0\x00ab\0";
    assert_eq!(call(2, ZONE, "add", &["z", "ab"]), expected);
}

#[test]
fn an_answer_is_found_among_signals_and_other_answers() {
    let mut bytes = message(4, 0, "", ("s", &text(":1.7")));
    bytes.extend(message(2, 9, "", ("s", &text("late"))));
    bytes.extend(message(2, 1, "", ("s", &text("trusted"))));
    let answer = bus(bytes).call(ZONE, "add", &["z"]).unwrap();
    assert_eq!(answer, Value::Text("trusted".to_owned()));
    let answer = bus(message(2, 1, "", ("b", &[1, 0, 0, 0]))).call(ZONE, "query", &[]);
    assert_eq!(answer.unwrap(), Value::Bool(true));
}

#[test]
fn an_error_has_name_and_text() {
    let bytes = message(3, 1, "org.example.Exception", ("s", &text("NO_ZONE: x")));
    let error = bus(bytes).call(ZONE, "add", &[]).unwrap_err();
    assert_eq!(error.to_string(), "NO_ZONE: x (org.example.Exception)");
}

#[test]
fn malformed_answers_are_errors() {
    let valid = message(2, 1, "", ("s", &text("trusted")));
    for length in 0..valid.len() {
        assert!(answer(&valid[..length], 1).is_err(), "{length} bytes");
    }
    for at in 0..valid.len() {
        for value in [0, 1, 7, 0x7f, 0xff] {
            let mut bytes = valid.clone();
            bytes[at] = value;
            let _ = (answer(&bytes, 1), length(&bytes));
        }
    }
    let mut huge = valid;
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(length(&huge).is_err());
}

#[test]
fn a_closed_connection_is_an_error() {
    let error = bus(Vec::new()).call(ZONE, "add", &[]).unwrap_err();
    assert!(matches!(error, DbusError::Broken(_)), "{error}");
}

#[test]
fn a_missing_answer_is_a_timeout() {
    let (stream, _server) = UnixStream::pair().unwrap();
    let mut bus = Bus::on(stream);
    let soon = Deadline::after(Duration::from_millis(20));
    assert!(matches!(bus.at_least(1, soon), Err(DbusError::TimedOut(_))));
}

#[test]
fn authentication_succeeds_or_names_the_answer() {
    for (answer, is_ok) in [
        ("DATA\r\nOK 1234\r\n", true),
        ("REJECTED EXTERNAL\r\n", false),
    ] {
        let mut bytes = answer.as_bytes().to_vec();
        bytes.extend(message(2, 1, "", ("s", &text(":1.7"))));
        bytes.extend(message(2, 2, "", ("s", &text(":1.3"))));
        let outcome = Bus::on(bus(bytes).stream).call(BUS, "GetNameOwner", &["x"]);
        assert_eq!(outcome.is_ok(), is_ok, "{outcome:?}");
    }
}

#[test]
fn addresses_are_parsed() {
    let path = |address| {
        socket_address(address)
            .unwrap()
            .path()
            .map(ToOwned::to_owned)
    };
    assert_eq!(
        path("unix:path=/run/a%20b").unwrap().to_str(),
        Some("/run/a b")
    );
    assert_eq!(path("unix:guid=12,path=/x").unwrap().to_str(), Some("/x"));
    let hidden = socket_address("unix:abstract=/tmp/x").unwrap();
    assert_eq!(hidden.as_abstract(), Some(&b"/tmp/x"[..]));
    for invalid in [
        "tcp:host=h",
        "unix:path",
        "unix:path=/%2",
        "unix:path=/%zz",
        "unix:tmpdir=/x",
        "",
    ] {
        assert_eq!(socket_address(invalid), None, "{invalid}");
    }
}
