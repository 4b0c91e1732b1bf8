//! Events for others.
