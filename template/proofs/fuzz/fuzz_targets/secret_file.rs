//! For any content of a secret file: the result is the content without its final newline, or one of four error messages,
//! which do not contain the content.
#![no_main]

use std::io::{Seek, Write};
use std::sync::{LazyLock, Mutex};

use app::platform::config::secret::read_file;
use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;

static FILE: LazyLock<Mutex<NamedTempFile>> = LazyLock::new(|| Mutex::new(NamedTempFile::new().unwrap()));

fuzz_target!(|data: (u8, &[u8])| {
    let (copies, content) = data;
    let content = content.repeat(usize::from(copies).max(1)); // to exceed 64 KiB
    let mut file = FILE.lock().unwrap();
    file.as_file().set_len(0).unwrap();
    file.rewind().unwrap();
    file.write_all(&content).unwrap();

    match read_file(file.path()) {
        Ok(value) => {
            assert!(!value.is_empty() && !value.contains('\0') && content.len() <= 64 * 1024);
            let newline = content.strip_prefix(value.as_bytes()).expect("the content begins with the value");
            assert!(matches!(newline, b"\n" | b"\r\n") || (newline.is_empty() && !value.ends_with('\n')));
            assert!(newline != b"\n" || !value.ends_with('\r'));
        }
        Err(error) => {
            let problem = match std::str::from_utf8(&content) {
                _ if content.len() > 64 * 1024 => "is larger than 65536 bytes",
                Err(_) => "is not valid UTF-8",
                Ok("" | "\n" | "\r\n") => "is empty",
                Ok(text) => {
                    assert!(text.contains('\0'));
                    "contains a NUL byte"
                }
            };
            assert_eq!(error, format!("{} {problem}", file.path().display()));
        }
    }
});
