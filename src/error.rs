//! What went wrong, in the form a runtime and a person at night can both use.
//!
//! An [`Error`] is one CNI error document: a code for the runtime, a message that names operation, object and value,
//! and details with cause and remedy. [`Failures`] gathers the errors of verbs that go on after the first one.

use std::fmt;

/// A CNI error code (CNI spec 1.1, section "Error").
///
/// A delegate may answer with any number; ours are the constants below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// The configuration's `cniVersion` is not supported, or too old for the verb.
    pub const INCOMPATIBLE_VERSION: Code = Code(1);
    /// A key of the configuration that cannot be honoured; the message names key and value.
    pub const UNSUPPORTED_FIELD: Code = Code(2);
    /// An environment variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: Code = Code(4);
    /// Reading stdin or writing stdout failed.
    pub const IO: Code = Code(5);
    /// The content is not JSON, or a value has the wrong JSON type.
    pub const DECODE: Code = Code(6);
    /// The configuration is JSON of the right types, but asks for something invalid.
    pub const INVALID_CONFIG: Code = Code(7);
    /// CNI_NETNS is the plugin's own network namespace (a code of the reference's library).
    pub const OWN_NETNS: Code = Code(8);
    /// A passing condition: the runtime should try again later.
    pub const TRY_AGAIN: Code = Code(11);
    /// STATUS: no ADD can work here now (CNI spec 1.1, "STATUS").
    pub const NOT_AVAILABLE: Code = Code(50);
    /// Everything else: the operation itself failed (what the reference uses for all failures of a plugin).
    pub const PLUGIN: Code = Code(999);
}

/// One failure, as it is reported to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The CNI error code.
    pub code: Code,
    /// Operation, object, value and cause, in one line.
    pub msg: String,
    /// What else helps: the remedy, what was tried, failures of the undo. May be empty.
    pub details: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl Error {
    /// An error with a code of its own.
    pub fn new(code: Code, msg: impl Into<String>) -> Error {
        Error {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// A failed operation, code 999.
    pub fn failed(msg: impl Into<String>) -> Error {
        Error::new(Code::PLUGIN, msg)
    }

    /// An ADD could not work now, code 50: the same error as the answer to STATUS.
    pub fn into_not_available(self) -> Error {
        Error {
            code: Code::NOT_AVAILABLE,
            ..self
        }
    }

    /// A configuration value that is refused, code 7: which `field`, what it holds, what would be right.
    pub fn config(
        field: impl fmt::Display,
        value: impl fmt::Display,
        wanted: impl fmt::Display,
    ) -> Error {
        Error::new(
            Code::INVALID_CONFIG,
            format!("configuration: {field} is {value}, but {wanted}"),
        )
    }

    /// Adds a sentence to the details.
    pub fn details(mut self, more: impl fmt::Display) -> Error {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(&more.to_string());
        self
    }

    /// Puts what was being done in front of the message: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.msg = format!("{context}: {}", self.msg);
        self
    }
}

/// The errors of a verb that does all it can and reports at the end: DEL, GC, an undo.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Keeps the error of `outcome`, if it is one; the value, if there is one.
    pub fn note<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        outcome.map_err(|error| self.0.push(error)).ok()
    }

    /// The first error, with the others in its details; `Ok` when there was none.
    ///
    /// # Errors
    /// When at least one was noted.
    pub fn into_result(self) -> Result<(), Error> {
        let mut errors = self.0.into_iter();
        match errors.next() {
            None => Ok(()),
            Some(first) => {
                Err(errors.fold(first, |first, more| first.details(format!("also: {more}"))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_reported_and_the_others_are_its_details() {
        let mut failures = Failures::default();
        assert_eq!(failures.note(Ok(3)), Some(3));
        failures.note::<()>(Err(Error::failed("one")));
        failures.note::<()>(Err(Error::failed("two").details("why")));
        let error = failures.into_result().unwrap_err();
        assert_eq!(error.to_string(), "one (also: two (why))");
    }

    #[test]
    fn no_failure_is_success() {
        assert!(Failures::default().into_result().is_ok());
    }
}
