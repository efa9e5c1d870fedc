//! Secret values and the files they come from.
//!
//! A secret is a [`SecretString`]: redacted in `Debug`, without `Display` or `Serialize`, wiped when dropped.
//! Its value is in an error message never, whatever is wrong with it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub use secrecy::{ExposeSecret, SecretString};

/// No secret in use is longer; a larger file was mounted by mistake.
const MAX_BYTES: u64 = 64 * 1024;

/// Reads the value of a setting from `path`, without exactly one trailing newline (`\n` or `\r\n`).
///
/// Editors and `echo` append that newline and people do not see it; all other white space belongs to the value.
/// The error names path, owner, mode and our user id where a file cannot be read, and never its content.
pub fn read_file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(
        |error| {
            format!(
                "cannot read {shown}: {error} (owner {}:{}, mode {:04o}, we run as uid {})",
                metadata.uid(),
                metadata.gid(),
                metadata.mode() & 0o7777,
                rustix::process::geteuid().as_raw(),
            )
        },
    )?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{shown} is larger than {MAX_BYTES} bytes"));
    }
    let mut value = String::from_utf8(bytes).map_err(|_| format!("{shown} does not hold valid UTF-8"))?;
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    check(&value).map_err(|problem| format!("{shown} {problem}"))?;
    Ok(value)
}

/// What no value of a setting may be: empty, or with a NUL byte, which PostgreSQL and the environment end at.
fn check(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        Err("is empty")
    } else if value.contains('\0') {
        Err("holds a NUL byte")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        read_file(file.path())
    }

    #[test]
    fn exactly_one_trailing_newline_is_removed() {
        let cases =
            [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("\ta\r", "\ta\r")];
        for (content, value) in cases {
            assert_eq!(read(content.as_bytes()).as_deref(), Ok(value), "{content:?}");
        }
    }

    #[test]
    fn unusable_content_is_refused_without_being_shown() {
        let large = vec![b'x'; 64 * 1024 + 1];
        let cases: [(&[u8], &str); 5] = [
            (b"", "is empty"),
            (b"\n", "is empty"),
            (b"s3cr\0t", "NUL"),
            (b"s3cr\xff", "UTF-8"),
            (&large, "larger"),
        ];
        for (content, expected) in cases {
            let error = read(content).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("s3cr"), "{error}");
        }
    }

    #[test]
    fn a_directory_or_missing_file_is_named() {
        assert!(read_file(Path::new("/tmp")).unwrap_err().contains("/tmp is not a regular file"));
        assert!(read_file(Path::new("/nowhere/x")).unwrap_err().contains("/nowhere/x"));
    }
}
