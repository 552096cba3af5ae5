//! The inverse of each effect of an ADD, run if the ADD fails.

use crate::error::{Code, Error};
use crate::kernel::signals::Terminated;

#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Box<dyn FnOnce() -> Result<(), Error> + 'a>>,
}

impl<'a> Undo<'a> {
    /// Registers the inverse of an effect.
    pub fn push(&mut self, step: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Runs the steps in reverse order. Returns `cause` with their errors in its details.
    pub fn unwind(self, cause: Error) -> Error {
        self.steps
            .into_iter()
            .rev()
            .fold(cause, |cause, step| match step() {
                Ok(()) => cause,
                Err(error) => cause.details(format!("and the undo failed: {error}")),
            })
    }
}

impl From<Terminated> for Error {
    fn from(signal: Terminated) -> Error {
        Error::new(Code::TRY_AGAIN, signal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn steps_run_in_reverse_order_and_their_errors_are_added_to_the_cause() {
        let order = RefCell::new(Vec::new());
        let run = |step: i32| order.borrow_mut().push(step);
        let mut undo = Undo::default();
        undo.push(|| {
            run(1);
            Ok(())
        });
        undo.push(|| Err(Error::failed("stuck")));
        undo.push(|| {
            run(3);
            Ok(())
        });
        let error = undo.unwind(Error::failed("cause"));
        assert_eq!(*order.borrow(), [3, 1]);
        assert_eq!(error.to_string(), "cause (and the undo failed: stuck)");
    }
}
