//! `/v1`: beginning verifications and checking codes.

use std::sync::Arc;

use anyhow::ensure;

use super::{api, end, stand};
use crate::bench::{
    Setting,
    http::{Requests, closed, post, rates},
    report::Row,
};

const CONNECTIONS: usize = 256;

pub async fn measure(setting: &Setting) -> anyhow::Result<Vec<Row>> {
    let stand = stand(setting, (1, 0, 0), &[("API_AUTH", "none")]).await?;
    let port = api(&stand).await?;
    let (old, new) = (legacy(), starts());
    let (mut legacy, mut ours) = (vec![], vec![]);
    closed(port, CONNECTIONS, setting.measured / 4, 0, &new).await?;
    for round in 1..=setting.repeats {
        // Numbers that were used by no other round: each is within its limits.
        let first = u64::try_from(round)? * 1_000_000;
        legacy.push(closed(port, CONNECTIONS, setting.measured, first, &old).await?.only_good()?);
        let load = closed(port, CONNECTIONS, setting.measured, first + 500_000, &new).await?;
        ours.push(load.only_good()?);
    }

    let codes: Vec<(String, String)> = sqlx::query_as(
        "SELECT 'ver_' || left(replace(outbox.id::text, '-', ''), 30) || '00', code
        FROM outbox JOIN verification AS it ON it.sequence = outbox.sequence
        WHERE it.origin = 'v1'",
    )
    .fetch_all(&stand.database)
    .await?;
    let checks = checks(codes.clone());
    let mut load = closed(port, CONNECTIONS, setting.measured, 0, &checks).await?;
    // Each is right once; what comes after the last one finds it approved.
    let right = load.answers.remove(&200).unwrap_or(0);
    let late = load.answers.values().sum::<usize>();
    let approved =
        stand.count("SELECT count(*) FROM verification WHERE status = 'approved'").await?;
    ensure!(usize::try_from(approved)? == right, "{right} were told so, {approved} are approved");
    ensure!(late == 0 || right == codes.len(), "{late} other answers: {:?}", load.answers);
    load.answers = [(200, right)].into();
    end(&stand).await?;
    Ok(vec![
        Row::new("verification", "POST /v1/verifications, default limits", "/s", rates(&ours))
            .against("POST /api, default limits", rates(&legacy))
            .at_least(0.7, 0.9),
        Row::new("verification", "checks, each right", "/s", rates(&[load])),
    ])
}

/// A Russian mobile number of its own for each.
fn phone(number: u64) -> String {
    format!("7999{:07}", number % 10_000_000)
}

fn legacy() -> Requests {
    Arc::new(|number, request| {
        post(request, "/api/", &format!("{{\"phone\":\"{}\"}}", phone(number)));
    })
}

fn starts() -> Requests {
    Arc::new(|number, request| {
        post(request, "/v1/verifications", &format!("{{\"phone\":\"+{}\"}}", phone(number)));
    })
}

fn checks(codes: Vec<(String, String)>) -> Requests {
    Arc::new(move |number, request| {
        let place = usize::try_from(number).unwrap_or(usize::MAX) % codes.len().max(1);
        let Some((id, code)) = codes.get(place) else { return };
        let path = format!("/v1/verifications/{id}/checks");
        post(request, &path, &format!("{{\"code\":\"{code}\"}}"));
    })
}
