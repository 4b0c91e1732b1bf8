//! Notes of gateways, in memory.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use application::ports::{CallNotes, Noting, StoreError};
use domain::{GatewayName, MessageId};

/// Notes of gateways, in memory.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) kept: Mutex<HashMap<(GatewayName, MessageId), String>>,
    /// Whether nothing can be read or stored.
    pub(crate) is_away: bool,
}

impl Notes {
    fn answer<T>(&self, answer: T) -> Result<T, StoreError> {
        if self.is_away { Err(StoreError::Unavailable("away".into())) } else { Ok(answer) }
    }
}

impl CallNotes for Notes {
    fn find<'a>(
        &'a self,
        gateway: &'a GatewayName,
        message: MessageId,
    ) -> Noting<'a, Option<String>> {
        let found = self.kept.lock().unwrap().get(&(gateway.clone(), message)).cloned();
        Box::pin(async { self.answer(found) })
    }

    fn keep<'a>(
        &'a self,
        gateway: &'a GatewayName,
        message: MessageId,
        note: &'a str,
        _: Duration,
    ) -> Noting<'a, String> {
        let mut kept = self.kept.lock().unwrap();
        let kept = kept.entry((gateway.clone(), message)).or_insert_with(|| note.to_owned());
        let kept = kept.clone();
        Box::pin(async { self.answer(kept) })
    }
}
