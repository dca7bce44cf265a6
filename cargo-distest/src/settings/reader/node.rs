//! A value in a configuration file that knows its name and its line.

use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::{ExitCode, Failure};
use crate::settings::{ConfigText, Dialect};

/// A value, where it lies, and what it is called.
pub(in crate::settings) struct Node<'a> {
    /// Dotted name: `profile.ci.retries`. Empty for the file itself.
    pub(in crate::settings) name: String,
    /// What the file may contain.
    pub(in crate::settings) dialect: Dialect,
    file: &'a ConfigText,
    /// Bytes of the key, or of the value where there is no key.
    span: Range<usize>,
    value: Value<'a>,
}

enum Value<'a> {
    Root(&'a DeTable<'a>),
    Inner(&'a DeValue<'a>),
}

/// The document in a file.
pub(in crate::settings) fn parse(file: &ConfigText) -> Result<Spanned<DeTable<'_>>, Failure> {
    DeTable::parse(&file.text)
        .map_err(|error| failure_at(file, error.span().unwrap_or(0..0), error.message()))
}

impl<'a> Node<'a> {
    /// The file itself.
    pub(in crate::settings) fn root(
        file: &'a ConfigText,
        dialect: Dialect,
        document: &'a Spanned<DeTable<'a>>,
    ) -> Self {
        let value = Value::Root(document.get_ref());
        Self { name: String::new(), dialect, file, span: 0..0, value }
    }

    /// Whether this is a table.
    pub(in crate::settings) fn is_table(&self) -> bool {
        self.table().is_some()
    }

    /// A table's entries.
    pub(in crate::settings) fn entries(&self) -> Result<Vec<(&'a str, Node<'a>)>, Failure> {
        let table = self.table().ok_or_else(|| self.wrong("a table"))?;
        let entries = table.iter().map(|(key, value)| {
            let name = match self.name.as_str() {
                "" => key.get_ref().to_string(),
                outer => format!("{outer}.{}", key.get_ref()),
            };
            let value = Value::Inner(value.get_ref());
            let node =
                Self { name, dialect: self.dialect, file: self.file, span: key.span(), value };
            (key.get_ref().as_ref(), node)
        });
        Ok(entries.collect())
    }

    /// An array's items.
    pub(in crate::settings) fn items(&self) -> Result<Vec<Node<'a>>, Failure> {
        let array = match self.value {
            Value::Inner(DeValue::Array(array)) => array,
            Value::Inner(DeValue::String(text)) => return Err(self.no_array(&format!("{text:?}"))),
            Value::Inner(DeValue::Integer(number)) => return Err(self.no_array(number.as_str())),
            Value::Inner(_) | Value::Root(_) => return Err(self.wrong("an array")),
        };
        let items = array.iter().map(|item| Self {
            name: self.name.clone(),
            dialect: self.dialect,
            file: self.file,
            span: item.span(),
            value: Value::Inner(item.get_ref()),
        });
        Ok(items.collect())
    }

    /// A string.
    pub(in crate::settings) fn text(&self) -> Result<&'a str, Failure> {
        match self.value {
            Value::Inner(DeValue::String(text)) => Ok(text),
            _ => Err(self.wrong("a string")),
        }
    }

    /// A whole number.
    pub(in crate::settings) fn number(&self) -> Result<i64, Failure> {
        match self.value {
            Value::Inner(DeValue::Integer(number)) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok()
            }
            _ => None,
        }
        .ok_or_else(|| self.wrong("a whole number"))
    }

    /// `true` or `false`.
    pub(in crate::settings) fn flag(&self) -> Result<bool, Failure> {
        match self.value {
            Value::Inner(DeValue::Boolean(flag)) => Ok(*flag),
            _ => Err(self.wrong("`true` or `false`")),
        }
    }

    /// A string that means something.
    pub(in crate::settings) fn parse<T, E: Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Failure> {
        let text = self.text()?;
        parse(text).map_err(|error| {
            self.failure(format!("invalid value `{text}` of `{}`: {error}", self.name))
        })
    }

    /// A number or a string that means something.
    pub(in crate::settings) fn number_or<T>(
        &self,
        number: impl FnOnce(i64) -> Option<T>,
        text: impl FnOnce(&str) -> Result<T, String>,
        expected: &str,
    ) -> Result<T, Failure> {
        match self.value {
            Value::Inner(DeValue::Integer(_)) => {
                number(self.number()?).ok_or_else(|| self.wrong(expected))
            }
            Value::Inner(DeValue::String(_)) => self.parse(text),
            _ => Err(self.wrong(expected)),
        }
    }

    /// A value that makes no sense here.
    pub(in crate::settings) fn wrong(&self, expected: &str) -> Failure {
        self.failure(format!("invalid value of `{}`: expected {expected}", self.name))
    }

    /// A value that stands where a list of such values belongs.
    fn no_array(&self, value: &str) -> Failure {
        let key = self.name.rsplit('.').next().unwrap_or_default();
        self.wrong("an array").hint(format!("write `{key} = [{value}]`"))
    }

    /// A key that is not known here: an error, except in a file of cargo-nextest's.
    pub(in crate::settings) fn unknown(&self, known: &[&str]) -> Result<(), Failure> {
        if self.dialect == Dialect::Nextest {
            return Ok(());
        }
        let (place, key) = match self.name.rsplit_once('.') {
            Some((table, key)) => (format!(" in [{table}]"), key),
            None => (String::new(), self.name.as_str()),
        };
        let failure = self.failure(format!("unknown key `{key}`{place}"));
        let nearest = known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(key, known), known))
            .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
            .min();
        Err(match nearest {
            Some((_, known)) => failure.hint(format!("did you mean `{known}`?")),
            None => failure.hint(format!("known keys: {}", known.join(", "))),
        })
    }

    /// Anything else that is wrong with it.
    pub(in crate::settings) fn failure(&self, what: String) -> Failure {
        failure_at(self.file, self.span.clone(), &what)
    }

    fn table(&self) -> Option<&'a DeTable<'a>> {
        match self.value {
            Value::Root(table) | Value::Inner(DeValue::Table(table)) => Some(table),
            Value::Inner(_) => None,
        }
    }
}

fn failure_at(file: &ConfigText, span: Range<usize>, what: &str) -> Failure {
    let before = file.text.get(..span.start).unwrap_or_default();
    let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
    Failure::new(ExitCode::Setup, format!("{}:{line}: {what}", file.path.display()))
}
