use std::{fmt, pin::Pin, time::Duration};

use domain::{GatewayName, MessageId};

use crate::ports::StoreError;

/// Texts that gateways keep about the calls for a message, such as the id under which a provider sends
/// the message at most once.
///
/// An object, because a gateway must not depend on how its notes are stored.
pub trait CallNotes: fmt::Debug + Send + Sync + 'static {
    /// Returns the note of a gateway on a message, if there is one.
    fn find<'a>(
        &'a self,
        gateway: &'a GatewayName,
        message: MessageId,
    ) -> Noting<'a, Option<String>>;

    /// Stores a note, unless the gateway has one on the message. Returns the note that is stored: of
    /// several callers, also in several processes, all get the same one.
    ///
    /// Once this returns `Ok`, the note survives a crash. It is kept for at least `good_for`, which
    /// must be the time until the message expires: after it, no call follows.
    fn keep<'a>(
        &'a self,
        gateway: &'a GatewayName,
        message: MessageId,
        note: &'a str,
        good_for: Duration,
    ) -> Noting<'a, String>;
}

/// The result of a method of [`CallNotes`], in time.
pub type Noting<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;
