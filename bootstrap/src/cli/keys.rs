//! `messager keys`.
