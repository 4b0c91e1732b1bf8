//! `messager secrets`.
