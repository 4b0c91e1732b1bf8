/// The database that a text is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

/// A part that several statements share. `{argument}` in it is what stands in the parentheses
/// behind its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment {
    pub(super) name: &'static str,
    pub(super) postgres: &'static str,
    pub(super) sqlite: &'static str,
}

impl Fragment {
    /// The fragment of an `EventSql` that records no events.
    pub(crate) const NO_EVENTS: Self = Self::new("events", "");

    /// A part that both databases understand.
    pub(crate) const fn new(name: &'static str, text: &'static str) -> Self {
        Self::pair(name, text, text)
    }

    pub(crate) const fn pair(
        name: &'static str,
        postgres: &'static str,
        sqlite: &'static str,
    ) -> Self {
        Self { name, postgres, sqlite }
    }
}
