//! Events that others are still to be told of.
