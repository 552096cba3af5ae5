//! A prevResult of any version: parsing and printing it is lossless.

#![no_main]

use gangplank::cni::json::{self, JsonCursor};
use gangplank::cni::result::AddResult;
use gangplank::cni::{Schema, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, document)) = data.split_first() else {
        return;
    };
    let assumed = Version::ALL[usize::from(*first) % Version::ALL.len()];
    let Some(result) = read(document, assumed) else {
        return;
    };
    for version in Version::ALL {
        let Ok(printed) = result.to_document(version) else {
            assert!(version.schema() == Schema::V0_1 && result.ips.is_empty());
            continue;
        };
        let again = read(printed.as_bytes(), Version::NEWEST).expect("a valid result");
        match version.schema() {
            Schema::V1 => assert_eq!(again, result),
            Schema::V0_3 => {
                assert_eq!(
                    (&again.ips, &again.routes, &again.dns),
                    (&result.ips, &result.routes, &result.dns)
                );
                assert_eq!(again.interfaces.len(), result.interfaces.len());
            }
            Schema::V0_1 => assert_eq!(again.dns, result.dns),
        }
        assert_eq!(again.to_document(version).unwrap(), printed);
    }
});

fn read(bytes: &[u8], assumed: Version) -> Option<AddResult> {
    let value = json::parse("result", bytes).ok()?;
    let root = JsonCursor::root("result", &value).into_object().ok()?;
    AddResult::parse(&root, assumed).ok()
}
