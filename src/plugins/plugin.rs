//! The trait that every plugin implements.

use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::KeyPaths;
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::undo::Undo;

/// A CNI plugin. A value of the type is a valid request.
pub trait Plugin: Sized {
    /// The keys of its configuration ([`crate::cni::json::key_paths`] of each struct that it reads). Values of other keys
    /// are redacted in the log.
    const KEYS: &'static [fn() -> KeyPaths] = &[];

    /// Parses a request for ADD, CHECK or STATUS. Changes nothing.
    ///
    /// # Errors
    /// If a key or variable is invalid; the error names it.
    fn parse(request: &Request) -> Result<Self, Error>;

    /// Attaches a container. Every effect pushes its inverse, so that the dispatcher can undo it when a later step fails
    /// or the result cannot be written.
    ///
    /// # Errors
    /// If a step fails.
    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error>;

    /// Detaches a container, as far as it is attached. Reads only the keys that name its resources, so that a key that
    /// became invalid since the ADD does not prevent the removal.
    ///
    /// # Errors
    /// If something could not be removed; a resource that does not exist any more counts as removed.
    fn del(request: &Request, target: &DelTarget) -> Result<(), Error>;

    /// Compares an attachment with its configuration and prevResult.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self, _target: &Target) -> Result<(), Error> {
        Ok(())
    }

    /// Removes resources that belong to no valid attachment (`cni.dev/valid-attachments`).
    ///
    /// # Errors
    /// If something could not be removed, after everything else was tried.
    fn gc(_request: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Reports conditions that make every ADD fail until they are repaired.
    ///
    /// # Errors
    /// Code 50.
    fn status(&self) -> Result<(), Error> {
        Ok(())
    }
}
