//! DNS settings in the format of resolv.conf(5).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::cni::result::Dns;
use crate::error::Error;
use crate::kernel::files;

const MAX_BYTES: u64 = 1 << 20;

/// # Errors
/// If it cannot be read or is larger than 1 MiB.
pub fn read(path: &Path) -> Result<Dns, Error> {
    let text = read_bounded(path).map_err(|cause| unreadable(path, &cause))?;
    Ok(parse(&text))
}

/// Whether the file can be read. Only conditions that need a repair are reported.
///
/// # Errors
/// If it does not exist, is larger than 1 MiB or not a regular file.
pub fn status(path: &Path) -> Result<(), Error> {
    match read_bounded(path) {
        Err(cause) if files::needs_repair(&cause) => Err(unreadable(path, &cause)),
        _ => Ok(()),
    }
}

fn unreadable(path: &Path, cause: &io::Error) -> Error {
    let what = format!("cannot read the resolvConf {}: {cause}", path.display());
    Error::failed(what).details("ipam.resolvConf must name a file like /etc/resolv.conf")
}

fn read_bounded(path: &Path) -> io::Result<String> {
    // Opening a FIFO blocks until it has a writer.
    if fs::metadata(path)?.file_type().is_fifo() {
        return Err(io::Error::other("it is a pipe"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_BYTES} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Like the Go plugin: the last `domain` wins, the other keywords accumulate.
pub fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut fields = line.split_whitespace().map(str::to_owned);
        let keyword = fields.next().unwrap_or_default();
        match keyword.as_str() {
            "nameserver" => dns.nameservers.extend(fields.next()),
            "domain" => dns.domain = fields.next().unwrap_or(dns.domain),
            "search" => dns.search.extend(fields),
            "options" => dns.options.extend(fields),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keywords_are_ignored() {
        let text = "# nameserver 1.1.1.1\n ; x\n\nnameserver 10.0.0.2 ignored\r\n\tnameserver\tfd00::2\n\
                    domain a\ndomain\ndomain b\nsearch x y\nsearch z\noptions ndots:5\nsortlist q\nnameserver\n";
        let dns = parse(text);
        assert_eq!(dns.nameservers, ["10.0.0.2", "fd00::2"]);
        assert_eq!(dns.domain, "b");
        assert_eq!(dns.search, ["x", "y", "z"]);
        assert_eq!(dns.options, ["ndots:5"]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn errors_name_the_file() {
        for path in ["/nonexistent/resolv.conf", "/proc", "/dev/zero"] {
            let error = read(Path::new(path)).unwrap_err();
            assert!(error.msg.contains(path), "{error}");
        }
        assert!(read(Path::new("/dev/null")).unwrap().is_empty());
    }
}
