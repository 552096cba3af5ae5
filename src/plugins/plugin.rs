//! What every plugin implements.

use crate::cni::environment::{DelTarget, Target};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::undo::Undo;

/// A CNI plugin. A value is a request that was read and found valid.
pub trait Plugin: Sized {
    /// Reads a request for ADD, CHECK or STATUS. Nothing is changed.
    ///
    /// # Errors
    /// Everything that can be rejected by reading the request alone; each error names the key or variable.
    fn parse(request: &Request) -> Result<Self, Error>;

    /// Attaches a container. Every effect pushes its inverse, so that the dispatcher can undo it when a later step fails
    /// or the result cannot be written.
    ///
    /// # Errors
    /// When a step fails.
    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error>;

    /// Detaches a container, as far as it is attached. Reads of the configuration only what names its resources, so that
    /// a key that became invalid since the ADD keeps nothing behind.
    ///
    /// # Errors
    /// When something could not be removed; that it is gone already is success.
    fn del(request: &Request, target: &DelTarget) -> Result<(), Error>;

    /// Compares an attachment with what its ADD made.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self, _target: &Target) -> Result<(), Error> {
        Ok(())
    }

    /// Removes what no valid attachment names (`cni.dev/valid-attachments`).
    ///
    /// # Errors
    /// When something could not be removed, after everything else was tried.
    fn gc(_request: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Reports what would make every ADD fail.
    ///
    /// # Errors
    /// Code 50; those of a configuration that ADD would reject.
    fn status(&self) -> Result<(), Error> {
        Ok(())
    }
}
