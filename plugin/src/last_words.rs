//! What a streamer said last on its standard error: bytes go in as they come, and once it has ended, the line
//! that tells a reader why comes out.

use std::collections::VecDeque;

/// The last lines of a process.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    pending: Vec<u8>,
    lines: VecDeque<String>,
}

impl LastWords {
    /// Takes `bytes`, and gives the whole lines that they complete, to be passed on. A line that is too long is
    /// cut in two, so that nothing grows without end.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        let end = match self.pending.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if self.pending.len() >= MAX_LINE => self.pending.len(),
            None => return Vec::new(),
        };
        let whole: Vec<u8> = self.pending.drain(..end).collect();
        self.keep(&whole);
        whole
    }

    /// The stream has ended: what has come of its last line, to be passed on with the line break that it lacks.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            rest.push(b'\n');
            self.keep(&rest);
        }
        rest
    }

    /// The latest line that begins with `error:`, or else the last one: a usage error is followed by hints at
    /// `--help` that explain nothing.
    pub(crate) fn why(&self) -> Option<&str> {
        let is_error = |line: &&String| line.to_ascii_lowercase().starts_with("error:");
        let line = self.lines.iter().rfind(is_error).or(self.lines.back())?;
        Some(line.as_str())
    }

    fn keep(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines().map(plain) {
            if line.is_empty() {
                continue;
            }
            if self.lines.len() == MAX_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }
}

/// A line as it reads on a terminal: no colours, no other control characters, and no more of it than helps.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // `ESC [ … letter`: what colours a terminal.
            let _ = chars.by_ref().find(char::is_ascii_alphabetic);
        } else if !c.is_control() {
            text.push(c);
        }
    }
    text.trim().chars().take(MAX_KEPT).collect()
}

/// Lines kept: an error and the hints below it.
const MAX_LINES: usize = 8;
/// Bytes without a line break that are passed on as they are.
const MAX_LINE: usize = 8 << 10;
/// Characters kept of a line.
const MAX_KEPT: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_pass_whole_however_they_arrive() {
        let text = b"one\ntwo\n\nthree";
        for size in 1..text.len() {
            let mut words = LastWords::default();
            let mut passed: Vec<u8> = text.chunks(size).flat_map(|part| words.push(part)).collect();
            passed.extend(words.finish());
            assert_eq!(passed, b"one\ntwo\n\nthree\n");
            assert_eq!(words.why(), Some("three"));
        }
    }

    #[test]
    fn an_error_counts_for_more_than_the_hints_that_follow_it() {
        let mut words = LastWords::default();
        words.push(b"error: 1080p60 takes 13 encoder units\n\nUsage: penstock-streamer\n\nTry '--help'.\n");
        assert_eq!(words.why(), Some("error: 1080p60 takes 13 encoder units"));
    }

    #[test]
    fn colours_are_left_out() {
        let mut words = LastWords::default();
        words.push(b"\x1b[2m12:00\x1b[0m \x1b[32m INFO\x1b[0m ready\r\n");
        assert_eq!(words.why(), Some("12:00  INFO ready"));
    }

    #[test]
    fn an_endless_line_does_not_grow() {
        let mut words = LastWords::default();
        for _ in 0..100 {
            words.push(&[b'x'; 1000]);
            assert!(words.pending.len() < MAX_LINE);
        }
        assert_eq!(words.why().map(str::len), Some(MAX_KEPT));
        assert!(words.lines.len() <= MAX_LINES);
    }

    #[test]
    fn silence_explains_nothing() {
        assert_eq!(LastWords::default().why(), None);
    }
}
