use std::{error::Error, fmt};

/// A cause that callers only show.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Displays an error with its causes: `error: cause: cause of the cause`.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
