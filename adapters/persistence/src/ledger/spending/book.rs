use std::collections::BTreeMap;

use application::ports::Cost;
use domain::GatewayName;
use sea_orm::FromQueryResult;
use serde_json::{Value, json};

use crate::database::{DatabaseError, Parameters, Sql, Transaction};

/// The cost of a call, as it is reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ledger) struct Reservation {
    pub(super) gateway: String,
    scopes: Vec<String>,
    /// Days since 1970.
    day: i32,
    amount: i64,
}

/// The key of a daily limit: gateway, scope, day.
type Key = (String, String, i32);

/// The amounts that were spent under daily limits.
#[derive(Debug, Default)]
pub(super) struct Book(BTreeMap<Key, i64>);

#[derive(FromQueryResult)]
struct SpentRow {
    gateway: String,
    scope: String,
    day: i32,
    spent: i64,
}

impl Reservation {
    pub(super) fn of(gateway: &GatewayName, cost: &Cost, day: i32) -> Self {
        Self {
            gateway: gateway.as_str().to_owned(),
            scopes: cost.limits.iter().map(|limit| limit.scope.clone()).collect(),
            day,
            amount: amount(cost.amount),
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { gateway, scopes, day, amount } = self;
        json!({ "gateway": gateway, "scopes": scopes, "day": day, "amount": amount }).to_string()
    }

    /// Reads what `text` wrote.
    pub(super) fn read(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let scopes = value["scopes"].as_array()?.iter();
        Some(Self {
            gateway: value["gateway"].as_str()?.to_owned(),
            scopes: scopes.map(|scope| scope.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            day: value["day"].as_i64()?.try_into().ok()?,
            amount: value["amount"].as_i64()?,
        })
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        self.scopes.iter().map(|scope| (self.gateway.clone(), scope.clone(), self.day))
    }
}

impl Book {
    /// Locks the rows of `wanted` and of what is given back, and reads what was spent.
    pub(super) async fn open<'a>(
        transaction: &Transaction,
        none: &Parameters,
        wanted: impl Iterator<Item = &'a Reservation>,
        back: &[Reservation],
    ) -> Result<Self, DatabaseError> {
        let wanted: Self = wanted.flat_map(Reservation::keys).map(|key| (key, 0)).collect();
        let all = back.iter().flat_map(Reservation::keys).map(|key| (key, 0));
        let all: Self = all.chain(wanted.0.clone()).collect();
        if all.0.is_empty() {
            return Ok(all);
        }
        let mut spent = all.read(transaction, none).await?;
        if !wanted.0.keys().all(|key| spent.0.contains_key(key)) {
            // The first calls of the day.
            transaction.execute(&OPEN, wanted.rows(none)).await?;
            spent = all.read(transaction, none).await?;
        }
        Ok(spent)
    }

    async fn read(
        &self,
        transaction: &Transaction,
        none: &Parameters,
    ) -> Result<Self, DatabaseError> {
        let rows: Vec<SpentRow> = transaction.rows(&SPENT, self.rows(none)).await?;
        Ok(rows.into_iter().map(|it| ((it.gateway, it.scope, it.day), it.spent)).collect())
    }

    /// Reserves the cost of a call, if each of its limits has room.
    pub(super) fn reserve(&mut self, reservation: &Reservation, cost: &Cost) -> bool {
        let is_free = |(key, limit): (Key, u64)| {
            let spent = self.0.get(&key).copied().unwrap_or(0);
            spent.saturating_add(reservation.amount) <= amount(limit)
        };
        let limits = cost.limits.iter().map(|it| it.limit);
        let has_room = reservation.keys().zip(limits).all(is_free);
        if has_room {
            self.add(reservation);
        }
        has_room
    }

    pub(super) fn add(&mut self, reservation: &Reservation) {
        for key in reservation.keys() {
            *self.0.entry(key).or_default() += reservation.amount;
        }
    }

    pub(super) fn give_back(&mut self, reservation: &Reservation) {
        for key in reservation.keys() {
            *self.0.entry(key).or_default() -= reservation.amount;
        }
    }

    /// Adds these amounts to what was spent.
    pub(super) async fn store(
        self,
        transaction: &Transaction,
        none: &Parameters,
    ) -> Result<(), DatabaseError> {
        let changes: Self = self.0.into_iter().filter(|(_, amount)| *amount != 0).collect();
        if !changes.0.is_empty() {
            transaction.execute(&SPEND, changes.rows(none)).await?;
        }
        Ok(())
    }

    fn rows(&self, none: &Parameters) -> Parameters {
        none.clone().rows("spending", self.0.iter(), |rows| {
            rows.column("gateway", |((gateway, _, _), _)| gateway.clone())
                .column("scope", |((_, scope, _), _)| scope.clone())
                .column("day", |((_, _, day), _)| *day)
                .column("amount", |(_, amount)| *amount)
        })
    }
}

impl FromIterator<(Key, i64)> for Book {
    fn from_iter<I: IntoIterator<Item = (Key, i64)>>(rows: I) -> Self {
        Self(rows.into_iter().collect())
    }
}

fn amount(millionths: u64) -> i64 {
    i64::try_from(millionths).unwrap_or(i64::MAX)
}

static OPEN: Sql = Sql::new(
    "
INSERT INTO gateway_spending (gateway, scope, day, spent)
SELECT gateway, scope, day, 0
FROM :spending
WHERE true
ORDER BY gateway, scope, day
ON CONFLICT DO NOTHING",
);

static SPENT: Sql = Sql::pair(
    "
SELECT gateway, scope, day, spent
FROM gateway_spending
WHERE (gateway, scope, day) IN (SELECT gateway, scope, day FROM :spending)
ORDER BY gateway, scope, day
FOR UPDATE",
    "
SELECT gateway, scope, day, spent
FROM gateway_spending
WHERE (gateway, scope, day) IN (SELECT gateway, scope, day FROM :spending)",
);

static SPEND: Sql = Sql::new(
    "
UPDATE gateway_spending
SET spent = gateway_spending.spent + spending.amount
FROM :spending
WHERE gateway_spending.gateway = spending.gateway AND gateway_spending.scope = spending.scope
  AND gateway_spending.day = spending.day",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_read_as_it_was_written() {
        let reservation = Reservation {
            gateway: "main".to_owned(),
            scopes: vec![String::new(), "RU".to_owned()],
            day: 20_788,
            amount: 50_000,
        };

        assert_eq!(Reservation::read(&reservation.text()), Some(reservation));
        assert_eq!(Reservation::read("{}"), None);
    }
}
