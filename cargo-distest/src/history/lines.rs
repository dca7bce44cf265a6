//! Lines of words, apart by a space, of which the last is a name: how history keeps what there is
//! one of for each test.

const NOTHING: &str = "-";

/// The rest of a line.
pub(super) struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self(line)
    }

    /// What is left: a name, which may have spaces of its own.
    pub(super) fn rest(&self) -> &'a str {
        self.0
    }

    pub(super) fn word(&mut self) -> Option<&'a str> {
        // Words are short: to search them as long texts are searched takes longer.
        let end = self.0.bytes().position(|byte| byte == b' ')?;
        let word = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(word)
    }

    pub(super) fn number<T: TryFrom<i64>>(&mut self) -> Option<T> {
        number(self.word()?)
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        Some(self.number::<u8>()? != 0)
    }

    #[expect(clippy::option_option, reason = "nothing is known, which is no mistake")]
    pub(super) fn maybe<T: TryFrom<i64>>(&mut self) -> Option<Option<T>> {
        match self.word()? {
            NOTHING => Some(None),
            word => Some(Some(number(word)?)),
        }
    }
}

fn number<T: TryFrom<i64>>(word: &str) -> Option<T> {
    // The standard library's way looks for signs and other bases, too.
    let digit = |number: i64, byte: u8| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    word.bytes().try_fold(0, digit).filter(|_| !word.is_empty())?.try_into().ok()
}

/// Lines that come into being.
pub(super) struct Text(String);

impl Text {
    /// With as much room as a line for each of these names will probably take.
    pub(super) fn with_room_for<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        const WORDS_BYTES: usize = 80;
        Self(String::with_capacity(names.map(|name| name.len() + WORDS_BYTES).sum()))
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    pub(super) fn begin_line(&mut self) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
    }

    /// With a name, which may have spaces of its own.
    pub(super) fn end_line(&mut self, name: &str) {
        self.0.push_str(name);
    }

    pub(super) fn word(&mut self, word: &str) {
        self.0.push_str(word);
        self.0.push(' ');
    }

    pub(super) fn number(&mut self, number: impl itoa::Integer) {
        self.word(itoa::Buffer::new().format(number));
    }

    pub(super) fn maybe(&mut self, number: Option<impl itoa::Integer>) {
        match number {
            Some(number) => self.number(number),
            None => self.word(NOTHING),
        }
    }
}
