//! What identifies a file as this program, of whatever version, without running it.

/// Stands in each binary once as it is, in front of the version.
const MARK: &str = "\u{1}gangplank-build\u{2}";

/// Behind the version.
const END: char = '\u{3}';

/// The mark with the version of this binary.
const OWN: &str = concat!(
    "\u{1}gangplank-build\u{2}",
    env!("CARGO_PKG_VERSION"),
    "\u{3}"
);

/// How an executable begins (elf(5), EI_MAG0 to EI_MAG3).
const ELF: &[u8] = b"\x7fELF";

/// The name and version of this binary, as semantic versioning has them in build metadata.
pub fn version() -> String {
    // Read from the mark, so that no build leaves it out.
    let own = std::hint::black_box(OWN).strip_prefix(MARK);
    let version = own.unwrap_or_default().trim_end_matches(END);
    format!("gangplank.{version}")
}

/// The version of the gangplank that a file's content is; `None` for another program. A script that calls gangplank, or
/// says that it is one, is another program.
pub fn version_of(content: &[u8]) -> Option<String> {
    if !content.starts_with(ELF) {
        return None;
    }
    let mark = MARK.as_bytes();
    let versions = content
        .windows(mark.len())
        .enumerate()
        .filter(|(_, window)| *window == mark)
        .filter_map(|(at, _)| version_at(&content[at + mark.len()..]));
    versions.into_iter().next()
}

fn version_at(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(64).position(|byte| *byte == END as u8)?;
    let version = std::str::from_utf8(&bytes[..end]).ok()?;
    let is_version = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    (!version.is_empty() && version.chars().all(is_version)).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_with_the_mark_and_a_version_is_gangplank() {
        let binary = |text: &str| [b"\x7fELF...", text.as_bytes()].concat();
        assert_eq!(
            version_of(&binary(OWN)).as_deref(),
            Some(env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(
            version_of(&binary(&format!("{MARK}\0\0{MARK}1.2.3-rc.1{END}"))).as_deref(),
            Some("1.2.3-rc.1")
        );
        assert_eq!(version_of(OWN.as_bytes()), None);
        for other in [
            "",
            "gangplank 0.1.0",
            MARK,
            &format!("{MARK}{END}"),
            &format!("{MARK}1 2{END}"),
        ] {
            assert_eq!(version_of(&binary(other)), None, "{other:?}");
        }
    }
}
