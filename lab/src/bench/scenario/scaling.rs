//! The gain from more processors and consumers on one machine.

use super::{
    end,
    end_to_end::sustain,
    prepare,
    relay::{ROWS, drain, fill},
};
use crate::{
    bench::{
        Setting,
        report::{Found, Row, Spread},
    },
    kit::process::Role,
};

pub async fn measure(setting: &Setting) -> anyhow::Result<Found> {
    let mut rows = Vec::new();
    let mut alone = Spread::default();
    for (processors, consumers) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let found = end_to_end(setting, processors, consumers).await?;
        let figure = figure(processors, consumers);
        let row = Row::new(SCENARIO, figure, "/s", found);
        if (processors, consumers) == (1, 1) {
            alone = found;
            rows.push(row);
        } else {
            rows.push(row.against("one of each", alone));
        }
    }
    let (one, two) = (relay(setting, 1).await?, relay(setting, 2).await?);
    rows.push(Row::new(SCENARIO, "relay by 2 processors", "/s", two).against("by one", one));
    Ok(rows.into())
}

pub const SCENARIO: &str = "scaling";

/// Returns the name of the figure for so many processors and consumers.
pub fn figure(processors: usize, consumers: usize) -> String {
    format!("messages, processors: {processors}, consumers: {consumers}")
}

async fn end_to_end(
    setting: &Setting,
    processors: usize,
    consumers: usize,
) -> anyhow::Result<Spread> {
    let mut rates = Vec::new();
    for _ in 0..setting.repeats {
        let parts = (1, processors, consumers);
        let testbed = prepare(setting, parts, &[("LIMIT_PHONE", "off")]).await?;
        testbed.start(&Role::ALL).await?;
        rates.push(sustain(&testbed, setting.measured).await?.rate);
        end(&testbed).await?;
    }
    Ok(Spread::of(rates))
}

async fn relay(setting: &Setting, processors: usize) -> anyhow::Result<Spread> {
    let rows = setting.scaled(ROWS);
    let mut rates = Vec::new();
    for _ in 0..setting.repeats {
        let testbed = prepare(setting, (0, processors, 0), &[]).await?;
        fill(&testbed, rows).await?;
        rates.push(drain(&testbed, rows).await?);
        end(&testbed).await?;
    }
    Ok(Spread::of(rates))
}
