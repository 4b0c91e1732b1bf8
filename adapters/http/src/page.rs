//! A page to try the API.
