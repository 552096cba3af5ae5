//! What an ADD owns so far, and how to give it back.

use crate::error::{Code, Error};
use crate::kernel::signals::Terminated;

/// The stack of owned things: at most a lease, a masquerade entry, a link and its spoof_check.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Box<dyn FnOnce() -> Result<(), Error> + 'a>>,
}

impl<'a> Undo<'a> {
    /// Remembers how to give back what was just taken.
    pub fn push(&mut self, step: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Gives everything back, last taken first. `cause` comes back with what could not be undone in its details.
    pub fn unwind(self, cause: Error) -> Error {
        self.steps
            .into_iter()
            .rev()
            .fold(cause, |cause, step| match step() {
                Ok(()) => cause,
                Err(left) => cause.details(format!("and the undo failed: {left}")),
            })
    }
}

/// What turns an ADD back.
impl From<Terminated> for Error {
    fn from(stopped: Terminated) -> Error {
        Error::new(Code::TRY_AGAIN, stopped.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn steps_run_backwards_and_their_failures_join_the_cause() {
        let order = RefCell::new(Vec::new());
        let note = |step: i32| order.borrow_mut().push(step);
        let mut undo = Undo::default();
        undo.push(|| {
            note(1);
            Ok(())
        });
        undo.push(|| Err(Error::failed("stuck")));
        undo.push(|| {
            note(3);
            Ok(())
        });
        let error = undo.unwind(Error::failed("cause"));
        assert_eq!(*order.borrow(), [3, 1]);
        assert_eq!(error.to_string(), "cause (and the undo failed: stuck)");
    }
}
