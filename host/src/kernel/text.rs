//! Strangers' texts where people read them: in a terminal, in a log, in an error's words.

/// Append a character of a stranger's text; escaped if it would move a cursor, break a line, turn the direction of reading
/// (Unicode UAX #9, explicit directional formatting), or not be seen.
pub(crate) fn push_escaped(text: &mut String, character: char) {
    match character {
        '\n' | '\r' | '\t' => text.extend(character.escape_default()),
        c if c.is_control() => text.extend(c.escape_unicode()),
        '\u{61c}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => text.extend(character.escape_unicode()),
        c => text.push(c),
    }
}

/// A stranger's text on one line, which does nothing to a terminal.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    text.chars().for_each(|character| push_escaped(&mut escaped, character));
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_does_nothing_to_a_terminal() {
        let text = "a \u{1b}[31m\u{9b}2J\u{202e}\u{2066}\u{2028}\u{200f}\u{feff}\r\n\t\0";
        let harmless = r"a \u{1b}[31m\u{9b}2J\u{202e}\u{2066}\u{2028}\u{200f}\u{feff}\r\n\t\u{0}";
        assert_eq!(escaped(text), harmless);
        let words = "'\"\\ e\u{301} हिन्दी می\u{200c}خواهم \u{1f468}\u{200d}\u{1f469}";
        assert_eq!(escaped(words), words);
    }
}
