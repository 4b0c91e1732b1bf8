//! Numbers and codes as people type and paste them.
//!
//! Keyboards write the digits of other scripts. Phones, spreadsheets and messengers put spaces,
//! brackets and dashes between digits, and invisible direction marks around them. None of this
//! changes the number, so `/v1` ignores it. Letters are never dropped.

/// The digit 0 of each other script. Its 1 to 9 follow it (Unicode 14, general category Nd).
#[rustfmt::skip]
const ZEROS: &[char] = &[
    '\u{660}', '\u{6f0}', '\u{7c0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}',
    '\u{be6}', '\u{c66}', '\u{ce6}', '\u{d66}', '\u{de6}', '\u{e50}', '\u{ed0}', '\u{f20}',
    '\u{1040}', '\u{1090}', '\u{17e0}', '\u{1810}', '\u{1946}', '\u{19d0}', '\u{1a80}', '\u{1a90}',
    '\u{1b50}', '\u{1bb0}', '\u{1c40}', '\u{1c50}', '\u{a620}', '\u{a8d0}', '\u{a900}', '\u{a9d0}',
    '\u{a9f0}', '\u{aa50}', '\u{abf0}', '\u{ff10}', '\u{104a0}', '\u{10d30}', '\u{11066}',
    '\u{110f0}', '\u{11136}', '\u{111d0}', '\u{112f0}', '\u{11450}', '\u{114d0}', '\u{11650}',
    '\u{116c0}', '\u{11730}', '\u{118e0}', '\u{11950}', '\u{11c50}', '\u{11d50}', '\u{11da0}',
    '\u{16a60}', '\u{16ac0}', '\u{16b50}', '\u{1d7ce}', '\u{1d7d8}', '\u{1d7e2}', '\u{1d7ec}',
    '\u{1d7f6}', '\u{1e140}', '\u{1e2f0}', '\u{1e950}', '\u{1fbf0}',
];

/// Converts digits of any script to 0 to 9, and drops separators and invisible characters.
pub(super) fn digits(text: &str) -> String {
    text.chars().filter(|&char| !is_separator(char)).map(ascii_digit).collect()
}

/// Like [`digits`], for a phone number: accepts a full-width plus, and drops a leading `tel:` (RFC
/// 3966).
pub(super) fn phone(text: &str) -> String {
    let text = digits(text).replace(['\u{ff0b}', '\u{fe62}'], "+");
    match text.get(..4) {
        Some(scheme) if scheme.eq_ignore_ascii_case("tel:") => text[4..].to_owned(),
        _ => text,
    }
}

fn ascii_digit(char: char) -> char {
    if char.is_ascii() {
        return char;
    }
    let of_its_script = |&zero: &char| {
        let value = u32::from(char).checked_sub(u32::from(zero))?;
        char::from_digit(value, 10)
    };
    ZEROS.iter().find_map(of_its_script).unwrap_or(char)
}

/// All that the library of numbering plans takes between digits, and more that keyboards write.
fn is_separator(char: char) -> bool {
    // U+30FC is what the key for a dash writes on a Japanese keyboard.
    let is_dash = matches!(
        char,
        '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{30fc}' | '\u{fe63}' | '\u{ff0d}'
    );
    let is_tilde = matches!(char, '~' | '\u{2053}' | '\u{223c}' | '\u{ff5e}');
    let is_mark = matches!(
        char,
        '.' | '/'
            | '('
            | ')'
            | '['
            | ']'
            | '\u{ff08}'
            | '\u{ff09}'
            | '\u{ff0e}'
            | '\u{ff0f}'
            | '\u{ff3b}'
            | '\u{ff3d}'
    );
    // U+FFFC stands for an object in a text: iOS leaves it where a contact was.
    let is_invisible = matches!(
        char,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fffc}'
    );
    char.is_whitespace() || is_dash || is_tilde || is_mark || is_invisible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(read: fn(&str) -> String, text: &str, expected: &str) {
        assert_eq!(read(text), expected, "{}", text.escape_unicode());
    }

    #[test]
    fn digits_of_any_script_are_converted() {
        for text in ["123456", "١٢٣٤٥٦", "۱۲۳۴۵۶", "१२३४५६", "１２３４５６", "𝟏𝟐𝟑𝟒𝟓𝟔"]
        {
            check(digits, text, "123456");
        }
        check(digits, "٠٩", "09");
    }

    #[test]
    fn separators_are_dropped() {
        for text in [
            "123 456",
            "123\u{a0}456",
            "123\u{202f}456",
            " 123456\r\n",
            "123-456",
            "123\u{2011}456",
            "\u{202a}123456\u{202c}",
            "\u{feff}123\u{200b}456",
            "123456.",
        ] {
            check(digits, text, "123456");
        }
    }

    /// `VALID_PUNCTUATION` of libphonenumber, but for `x`, which begins an extension.
    #[test]
    fn all_that_libphonenumber_takes_between_digits_is_left_out() {
        const PUNCTUATION: &str = "-\u{2010}\u{2011}\u{2012}\u{2013}\u{2014}\u{2015}\u{2212}\
            \u{30fc}\u{ff0d}\u{ff0e}\u{ff0f} \u{a0}\u{ad}\u{200b}\u{2060}\u{3000}()\u{ff08}\
            \u{ff09}\u{ff3b}\u{ff3d}.[]/~\u{2053}\u{223c}\u{ff5e}";
        for separator in PUNCTUATION.chars() {
            check(digits, &format!("12{separator}34"), "1234");
            check(phone, &format!("+79{separator}99"), "+7999");
        }
    }

    #[test]
    fn other_characters_are_kept() {
        for text in ["12a456", "12+456", "12,456", "½", "①", "x"] {
            check(digits, text, text);
        }
    }

    #[test]
    fn pasted_phone_numbers_are_read() {
        for text in [
            "+7 (999) 123-45-67",
            "\u{202a}+7\u{a0}(999)\u{a0}123\u{2011}45\u{2011}67\u{202c}",
            "＋７９９９１２３４５６７",
            "+٧٩٩٩١٢٣٤٥٦٧",
            "+7.999.123.45.67",
            "+7 999/123 45 67",
            "+7~999\u{ff5e}123\u{ff0e}45\u{ff0f}67\u{fffc}",
            "tel:+7-999-123-45-67",
            "TEL:+79991234567\n",
        ] {
            check(phone, text, "+79991234567");
        }
        check(phone, "０９０ー１２３４ー５６７８", "09012345678");
        check(phone, "8 (999) 123-45-67", "89991234567");
        check(phone, "+7 999 123-45-67 ext. 8", "+79991234567ext8");
    }
}
