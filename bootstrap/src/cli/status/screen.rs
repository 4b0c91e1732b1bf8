//! The terminal while a live view is on it.

use std::io::{self, Stdout, Write, stdout};

use rustix::termios::tcgetwinsize;

/// A second screen of the terminal. When it is dropped, the first one is back.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
}

const OPEN: &str = "\u{1b}[?1049h\u{1b}[?25l";
const CLOSE: &str = "\u{1b}[?25h\u{1b}[?1049l";

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let mut out = stdout();
        write!(out, "{OPEN}")?;
        Ok(Self { out })
    }

    /// Replaces what is shown. Lines that are too long are cut, and lines that are too many are left
    /// out.
    pub(super) fn show(&self, text: &str) -> io::Result<()> {
        let (columns, rows) = size(&self.out);
        let mut out = self.out.lock();
        write!(out, "\u{1b}[H{}\u{1b}[J", fitted(text, columns, rows))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = self.out.lock();
        let _ = write!(out, "{CLOSE}");
        let _ = out.flush();
    }
}

/// Returns the number of columns and of rows.
fn size(out: &Stdout) -> (usize, usize) {
    let known = tcgetwinsize(out).ok().filter(|it| it.ws_col > 0 && it.ws_row > 0);
    known.map_or((80, 24), |it| (usize::from(it.ws_col), usize::from(it.ws_row)))
}

fn fitted(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let fits = lines.len() <= rows;
    let shown = if fits { lines.len() } else { rows.saturating_sub(1) };
    let mut fitted: Vec<String> = lines[..shown].iter().map(|line| cut(line, columns)).collect();
    if !fits {
        let rest = format!("{} more lines: --once shows all", lines.len() - shown);
        fitted.push(cut(&rest, columns));
    }
    fitted.iter().map(|line| format!("{line}\u{1b}[K")).collect::<Vec<_>>().join("\r\n")
}

/// Cuts a line to `columns` characters, of which the last is an ellipsis then: a part of a number
/// would be another number. Escape sequences take no place and are kept.
fn cut(line: &str, columns: usize) -> String {
    let mut cut = String::with_capacity(line.len());
    let (mut taken, mut in_escape) = (0, false);
    let kept = if width(line) > columns { columns.saturating_sub(1) } else { columns };
    for c in line.chars() {
        if c == '\u{1b}' {
            in_escape = true;
        }
        if in_escape {
            cut.push(c);
            in_escape = !c.is_ascii_alphabetic();
        } else if taken < kept {
            cut.push(c);
            taken += 1;
        } else if taken == kept {
            cut.push('…');
            taken += 1;
        }
    }
    cut
}

/// Returns the number of characters outside of escape sequences.
fn width(line: &str) -> usize {
    let mut in_escape = false;
    let is_shown = |c: &char| {
        in_escape |= *c == '\u{1b}';
        let is_shown = !in_escape;
        in_escape &= !c.is_ascii_alphabetic();
        is_shown
    };
    line.chars().filter(is_shown).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_line_is_cut_and_its_colour_still_ends() {
        assert_eq!(cut("\u{1b}[1mabcdef\u{1b}[0m", 3), "\u{1b}[1mab…\u{1b}[0m");
        assert_eq!(cut("\u{1b}[1mabc\u{1b}[0m", 3), "\u{1b}[1mabc\u{1b}[0m");
        assert_eq!(cut("abc", 3), "abc");
    }

    #[test]
    fn lines_that_do_not_fit_are_counted() {
        let shown = fitted("a\nb\nc\nd", 80, 3);

        let lines: Vec<&str> = shown.split("\r\n").collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[2].starts_with("2 more lines"), "{shown}");
        assert_eq!(fitted("a\nb", 80, 2).split("\r\n").count(), 2);
    }
}
