//! Errors: machine-readable for the runtime, actionable for operators.
//!
//! An [`Error`] has a code, a message that names operation, object and value, and details with cause and remedy.
//! [`Failures`] collects the errors of operations that continue after the first one.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// A CNI error code (CNI spec 1.1, section "Error").
///
/// A delegated plugin may return any number; the constants are the codes that gangplank returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// The configuration's `cniVersion` is not supported, or too old for the operation.
    pub const INCOMPATIBLE_VERSION: Code = Code(1);
    /// A key of the configuration is not supported; the message names key and value.
    pub const UNSUPPORTED_FIELD: Code = Code(2);
    /// An environment variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: Code = Code(4);
    /// Reading stdin or writing stdout failed.
    pub const IO: Code = Code(5);
    /// The input is not JSON, or a value has the wrong JSON type.
    pub const DECODE: Code = Code(6);
    /// A value of the configuration has the right type but is invalid.
    pub const INVALID_CONFIG: Code = Code(7);
    /// CNI_NETNS is the plugin's own network namespace (`ErrInvalidNetNS` of containernetworking/cni).
    pub const OWN_NETNS: Code = Code(8);
    /// A temporary failure: the runtime should try again later.
    pub const TRY_AGAIN: Code = Code(11);
    /// STATUS: an ADD cannot work now (CNI spec 1.1, "STATUS").
    pub const NOT_AVAILABLE: Code = Code(50);
    /// The operation failed. The Go plugins use it for all errors.
    pub const PLUGIN: Code = Code(999);
}

/// A CNI error. Boxed: as part of nearly every result it would be moved from call to call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error(Box<Fields>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    pub code: Code,
    /// Operation, object, value and cause, in one line.
    pub msg: String,
    /// Remedy, attempts, errors of the undo. May be empty.
    pub details: String,
}

impl Deref for Error {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl DerefMut for Error {
    fn deref_mut(&mut self) -> &mut Fields {
        &mut self.0
    }
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
    pub fn new(code: Code, msg: impl Into<String>) -> Error {
        Error(Box::new(Fields {
            code,
            msg: msg.into(),
            details: String::new(),
        }))
    }

    /// The same error with another code.
    pub fn with_code(mut self, code: Code) -> Error {
        self.code = code;
        self
    }

    /// A failed operation, code 999.
    pub fn failed(msg: impl Into<String>) -> Error {
        Error::new(Code::PLUGIN, msg)
    }

    /// Changes the code to 50: an ADD would fail with this error.
    pub fn into_not_available(self) -> Error {
        self.with_code(Code::NOT_AVAILABLE)
    }

    /// Code 7: a configuration value is invalid.
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

    /// Appends to the details, separated by a semicolon.
    pub fn details(mut self, more: impl fmt::Display) -> Error {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(&more.to_string());
        self
    }

    /// Appends another error to the details.
    pub fn and(self, outcome: Result<(), Error>) -> Error {
        match outcome {
            Ok(()) => self,
            Err(other) => self.details(format!("also: {other}")),
        }
    }

    /// Prefixes the message: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.msg = format!("{context}: {}", self.msg);
        self
    }
}

/// The errors of an operation that continues after an error: DEL, GC, undo.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Records an error, returns a value.
    pub fn note<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        outcome.map_err(|error| self.0.push(error)).ok()
    }

    /// Returns the first error, with the others in its details.
    pub fn into_result(self) -> Result<(), Error> {
        let mut errors = self.0.into_iter();
        match errors.next() {
            None => Ok(()),
            Some(first) => Err(errors.fold(first, |first, error| first.and(Err(error)))),
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
