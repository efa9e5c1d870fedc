//! Secret values, the files they come from, and credentials.
//!
//! A secret is a [`SecretString`]: redacted in `Debug`, without `Display` or `Serialize`, wiped when dropped.
//! Error messages never contain the value.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub use secrecy::{ExposeSecret, SecretString};

/// A larger file was mounted by mistake: no secret in use is this long.
const MAX_BYTES: u64 = 64 * 1024;

/// The user and password for a dependency. The rotation replaces them while the service runs.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: Option<SecretString>,
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        let [password, other_password] =
            [self, other].map(|credentials| credentials.password.as_ref().map(ExposeSecret::expose_secret));
        self.user == other.user && password == other_password
    }
}

/// Reads the value of a setting from `path`, without exactly one trailing newline (`\n` or `\r\n`).
///
/// Editors and `echo` append that newline; all other white space is part of the value.
///
/// # Errors
///
/// If the file cannot be read, with its path, its owner and mode, and the user ID of the process. If the content
/// cannot be the value of a setting.
pub fn read_file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| format!("failed to read {shown}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(
        |error| {
            format!(
                "failed to read {shown}: {error} (owner {}:{}, mode {:04o}; the process has uid {})",
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
    let mut value = String::from_utf8(bytes).map_err(|_| format!("{shown} is not valid UTF-8"))?;
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    check(&value).map_err(|problem| format!("{shown} {problem}"))?;
    Ok(value)
}

/// Rejects an empty value, and a NUL byte because PostgreSQL and the environment end a text there.
fn check(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        Err("is empty")
    } else if value.contains('\0') {
        Err("contains a NUL byte")
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
    fn removes_exactly_one_trailing_newline() {
        let cases =
            [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("\ta\r", "\ta\r")];
        for (content, value) in cases {
            assert_eq!(read(content.as_bytes()).as_deref(), Ok(value), "{content:?}");
        }
    }

    #[test]
    fn rejects_unusable_content_without_showing_it() {
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
    fn credentials_are_equal_if_user_and_password_are() {
        let credentials = |user: &str, password: Option<&str>| Credentials {
            user: Some(user.to_owned()),
            password: password.map(SecretString::from),
        };

        assert_eq!(credentials("app", Some("a")), credentials("app", Some("a")));
        for other in [credentials("app", Some("b")), credentials("app", None), credentials("b", Some("a"))] {
            assert_ne!(credentials("app", Some("a")), other);
        }
    }

    #[test]
    fn names_a_directory_or_missing_file() {
        assert!(read_file(Path::new("/tmp")).unwrap_err().contains("/tmp is not a regular file"));
        assert!(read_file(Path::new("/nowhere/x")).unwrap_err().contains("/nowhere/x"));
    }
}
