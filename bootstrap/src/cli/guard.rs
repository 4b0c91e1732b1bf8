//! `messager guard`.
