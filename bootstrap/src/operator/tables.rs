//! The tables of the commands, as the page shows them.

use adapters_http::{Action, Cell, Details, Story, Table as Page};
use adapters_persistence::Story as Told;
use application::ports::DeadLetter;
use domain::{GatewayName, MessageId, VerificationId};
use serde_json::Value;

use crate::cli::{
    dead_letters,
    gateways::Gateways,
    message,
    status::Shown,
    table::{Table, shown},
};

pub(super) fn status_tables(shown: &Shown) -> Vec<Page> {
    let mut errors = page("Last errors", "There are no errors.", &shown.errors());
    // The command prints no title, and names the table in its first column instead.
    errors.head[0] = "time";
    vec![
        page("Messages", "", &shown.numbers()),
        page("Gateways", "No gateway is known.", shown.gateways().table()),
        errors,
        page("Partitions", "No consumer has registered a partition.", &shown.partitions()),
    ]
}

pub(super) fn gateway_tables(gateways: &Gateways) -> Vec<Page> {
    let service = |(name, is_in_service): &(GatewayName, bool)| {
        let (state, action) = if *is_in_service {
            ("in service", Action::Drain(name.clone()))
        } else {
            ("drained", Action::Undrain(name.clone()))
        };
        let name = Cell::Text(name.to_string());
        vec![name, Cell::Text(state.to_owned()), Cell::Actions(vec![action])]
    };
    let service = Page {
        title: "Service",
        empty: "No gateway is known.",
        head: vec!["gateway", "state", "action"],
        rows: gateways.in_service().iter().map(service).collect(),
    };
    vec![page("State", "No gateway is known.", gateways.table()), service]
}

/// Returns the dead letters. `most` of them were asked for.
pub(super) fn letter_table(letters: Vec<DeadLetter>, most: u64) -> Page {
    let title = if letters.len() as u64 == most { "The oldest; there may be more" } else { "All" };
    let row = |letter: DeadLetter| {
        let actions = vec![Action::Retry(letter.id), Action::Discard(letter.id)];
        let mut cells: Vec<Cell> = letter_details(letter).into_iter().map(|it| it.1).collect();
        cells.push(Cell::Actions(actions));
        cells
    };
    let mut head = dead_letters::NAMES.to_vec();
    head.push("action");
    let rows = letters.into_iter().map(row).collect();
    Page { title, empty: "There are no dead letters.", head, rows }
}

pub(super) fn letter_details(letter: DeadLetter) -> Details {
    let values = dead_letters::values(letter);
    let named = dead_letters::NAMES.into_iter().zip(&values);
    named.map(|(name, value)| (name, cell(name, value))).collect()
}

pub(super) fn story(story: &Told) -> Story {
    let verification = story.verification.as_ref().map(|it| it.id.to_string());
    let title = || story.messages.first().map(|it| it.id.to_string());
    // The first is the id, which the title shows.
    let details = message::head(story).into_iter().skip(usize::from(verification.is_some()));
    Story {
        title: verification.or_else(title).map_or(Cell::None, Cell::Message),
        details: details.map(|(name, value)| (name, cell(name, &value))).collect(),
        steps: page("Steps", "Nothing is known.", &message::step_table(story)),
    }
}

fn page<const N: usize>(title: &'static str, empty: &'static str, table: &Table<N>) -> Page {
    let row = |row: &[Value; N]| {
        table.head().iter().zip(row).map(|(name, value)| cell(name, value)).collect()
    };
    let rows = table.rows().iter().map(row).collect();
    Page { title, empty, head: table.head().to_vec(), rows }
}

fn cell(name: &str, value: &Value) -> Cell {
    match value {
        Value::Null => Cell::None,
        Value::String(text) if text.is_empty() || text == "-" => Cell::None,
        Value::String(text) if is_id(name, text) => Cell::Message(text.clone()),
        Value::String(_) => Cell::Text(shown(value)),
        _ => Cell::Number(shown(value)),
    }
}

fn is_id(name: &str, text: &str) -> bool {
    match name {
        "message" => text.parse::<MessageId>().is_ok(),
        "verification" => text.parse::<VerificationId>().is_ok(),
        _ => false,
    }
}
