use application::ports::Newest;
use domain::{PhoneNumber, VerificationId};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Fragment, Sql, parsed};

/// Selects the pending verification that `/v1` started last for a phone.
///
/// `status || ''` is the status without an index (ADR 26): a plan might otherwise read all pending
/// verifications to find one by its id.
pub(super) const NEWEST_OF_V1: Fragment = Fragment::new(
    "newest_of_v1",
    "
    FROM verification
    WHERE id = (SELECT newest FROM phone WHERE phone = {argument} AND newest_until > {now})
      AND status || '' = 'pending' AND expires_at > {now}",
);

/// The same for `/api`. The id is in the row that counts its messages (`Account`).
pub(super) const NEWEST_OF_API: Fragment = Fragment::new(
    "newest_of_api",
    "
    FROM verification
    WHERE id = (
            SELECT api_newest
            FROM phone
            WHERE phone IN ({argument}, 'api:' || {argument}) AND api_newest_until > {now}
            ORDER BY api_newest_until DESC
            LIMIT 1
        ) AND status || '' = 'pending' AND expires_at > {now}",
);

pub(super) async fn find(
    database: &Database,
    phone: &PhoneNumber,
) -> Result<Newest, DatabaseError> {
    static NEWEST: Sql = Sql::with(&[NEWEST_OF_V1, NEWEST_OF_API], TEXT, TEXT);
    const TEXT: &str = "
SELECT (SELECT {text(id)}{newest_of_v1(:phone)}) AS v1,
    (SELECT {text(id)}{newest_of_api(:phone)}) AS api";

    #[derive(FromQueryResult)]
    struct Row {
        v1: Option<String>,
        api: Option<String>,
    }

    let parameters = database.parameters().with("phone", phone.as_str());
    let Some(row) = database.row::<Row>(&NEWEST, parameters).await? else {
        return Ok(Newest::default());
    };
    let id = |id: Option<String>| {
        id.map(|id| parsed(&id, "an id").map(VerificationId::from_uuid)).transpose()
    };
    Ok(Newest { v1: id(row.v1)?, api: id(row.api)? })
}
