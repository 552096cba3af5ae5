//! Identifies a file as gangplank, of any version, without running it.

/// Precedes the version in every gangplank binary.
const PREFIX: &str = "\u{1}gangplank-build\u{2}";

/// Follows the version.
const SUFFIX: char = '\u{3}';

const EMBEDDED: &str = concat!(
    "\u{1}gangplank-build\u{2}",
    env!("CARGO_PKG_VERSION"),
    "\u{3}"
);

/// The first bytes of an executable (elf(5), EI_MAG0 to EI_MAG3).
const ELF: &[u8] = b"\x7fELF";

/// Name and version of this binary in the form of semantic versioning's build metadata.
pub fn version() -> String {
    // Read at run time, so that the linker keeps it in the binary.
    let embedded = std::hint::black_box(EMBEDDED).strip_prefix(PREFIX);
    let version = embedded.unwrap_or_default().trim_end_matches(SUFFIX);
    format!("gangplank.{version}")
}

/// The version of gangplank in the content of a file; `None` for another program, including scripts that call or
/// mention gangplank.
pub fn version_of(content: &[u8]) -> Option<String> {
    if !content.starts_with(ELF) {
        return None;
    }
    let prefix = PREFIX.as_bytes();
    content
        .windows(prefix.len())
        .enumerate()
        .filter(|(_, window)| *window == prefix)
        .find_map(|(at, _)| version_at(&content[at + prefix.len()..]))
}

fn version_at(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .take(64)
        .position(|byte| *byte == SUFFIX as u8)?;
    let version = std::str::from_utf8(&bytes[..end]).ok()?;
    let is_version = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    (!version.is_empty() && version.chars().all(is_version)).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_with_prefix_and_version_is_gangplank() {
        let binary = |text: &str| [b"\x7fELF...", text.as_bytes()].concat();
        assert_eq!(
            version_of(&binary(EMBEDDED)).as_deref(),
            Some(env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(
            version_of(&binary(&format!("{PREFIX}\0\0{PREFIX}1.2.3-rc.1{SUFFIX}"))).as_deref(),
            Some("1.2.3-rc.1")
        );
        assert_eq!(version_of(EMBEDDED.as_bytes()), None);
        for other in [
            "",
            "gangplank 0.1.0",
            PREFIX,
            &format!("{PREFIX}{SUFFIX}"),
            &format!("{PREFIX}1 2{SUFFIX}"),
        ] {
            assert_eq!(version_of(&binary(other)), None, "{other:?}");
        }
    }
}
