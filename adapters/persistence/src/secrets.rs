//! Secrets that were drawn: in a table, or in a file beside SQLite's.
