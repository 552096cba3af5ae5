//! Messages of D-Bus: answers of the bus and of firewalld.

#![no_main]

use gangplank::kernel::dbus::message::{Value, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(Ok(Value::Text(text)))) = answer(data, 1) {
        assert!(text.len() <= data.len());
    }
});
