mod outcome;
mod postgres;
mod sqlite;

use application::ports::{Resend, Resent, StoreError, Violation};
use sea_orm::DatabaseConnection;

use self::outcome::Outcome;
use crate::{
    database::{Database, DatabaseError},
    limits::Counters,
    phones::PhoneRow,
};

/// Tries of a resend: in between, other requests change what it depends on.
const TRIES: usize = 3;

pub(super) async fn resend(database: &Database, again: &Resend) -> Result<Resent, StoreError> {
    for _ in 0..TRIES {
        let step = async |connection: DatabaseConnection| {
            if database.is_postgres() {
                postgres::resend(database, &connection, again).await
            } else {
                sqlite::resend(database, &connection, again).await
            }
        };
        let violations = match database.step(step).await? {
            Outcome::Sent(verification) => return Ok(Resent::Sent(verification)),
            Outcome::Changed => return Ok(Resent::Changed),
            Outcome::PhoneFull => phone_violations(database, again).await?,
            Outcome::CounterFull => {
                let counters = Counters::read(database, again.extra.iter()).await?;
                counters.violations(&again.extra)
            }
        };
        if !violations.is_empty() {
            return Ok(Resent::Limited(violations));
        }
        // The window has ended in between.
    }
    Err(StoreError::Full)
}

/// Returns the windows for which the phone refuses a send; none if they have room by now.
async fn phone_violations(
    database: &Database,
    again: &Resend,
) -> Result<Vec<Violation>, DatabaseError> {
    let rows = PhoneRow::of(database, vec![again.message.phone.as_str().to_owned()]).await?;
    let row = rows.into_iter().next();
    Ok(row.map(|row| row.windows.violations(&again.phone_limits)).unwrap_or_default())
}
