//! The HTML of the operator's page. Maud escapes every text except our own style and script.

use std::fmt;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Action, Cell, Found, OperatorError, Status, Story, Table};
use crate::{Readiness, readiness::Standing};

pub(super) const STYLE: &str = include_str!("page.css");
pub(super) const SCRIPT: &str = include_str!("live.js");

const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Cpath d='M6 4h20a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4H14l-7 6v-6H6a4 4 0 0 1-4-4V8a4 4 0 0 1 4-4z' fill='%230f6b5c'/%3E%3Cpath d='M8 14h4l2-5 4 10 2-5h4' fill='none' stroke='white' stroke-width='2.5' stroke-linecap='round' stroke-linejoin='round'/%3E%3C/svg%3E";

/// The entries of the menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    Status,
    Messages,
    DeadLetters,
    Gateways,
}

impl Here {
    const ALL: [Self; 4] = [Self::Status, Self::Messages, Self::DeadLetters, Self::Gateways];

    pub(super) fn of(action: &Action) -> Self {
        match action {
            Action::Retry(_) | Action::Discard(_) => Self::DeadLetters,
            Action::Drain(_) | Action::Undrain(_) => Self::Gateways,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Status => "/operator",
            Self::Messages => "/operator/messages",
            Self::DeadLetters => "/operator/dead-letters",
            Self::Gateways => "/operator/gateways",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Status => "Status",
            Self::Messages => "Messages",
            Self::DeadLetters => "Dead letters",
            Self::Gateways => "Gateways",
        }
    }
}

pub(super) fn status(readiness: &Readiness, status: Result<&Status, &OperatorError>) -> Markup {
    let body = html! {
        div #state {
            p.soft #time {
                @match status {
                    Ok(status) => { "As of " time { (status.time) } }
                    Err(_) => "The state of the service is unknown.",
                }
            }
            (checks(readiness))
            @match status {
                Ok(status) => { @for it in &status.tables { (table(it)) } }
                Err(error) => { (problem(error)) }
            }
        }
    };
    let refresh = html! {
        div.refresh {
            label #live-label hidden { input #live type="checkbox" checked; " Refresh every 5 seconds" }
            a href=(Here::Status.path()) { "Refresh" }
        }
        p.note.bad #stale role="status" hidden {}
    };
    layout(Here::Status, Here::Status.name(), &html! { (refresh) (body) })
}

/// Lists the checks of `/readyz`.
fn checks(readiness: &Readiness) -> Markup {
    html! {
        ul.checks aria-label="Checks of this process" {
            @for (name, standing) in readiness.standings() {
                @let class = match standing {
                    Standing::Up => "good",
                    Standing::Starting => "wait",
                    Standing::Down(_) => "bad",
                };
                li class=(class) { b { (name) } " " (standing.to_string()) }
            }
        }
    }
}

pub(super) fn search(found: Option<Result<&Found, &OperatorError>>) -> Markup {
    let form = html! {
        form.search method="post" action=(Here::Messages.path()) role="search" {
            label for="about" { "Id of a verification or a message, or a phone number" }
            div.row {
                input #about name="about" type="text" required maxlength="64" autocomplete="off"
                    spellcheck="false" autocapitalize="off" aria-describedby="about-hint";
                button.act type="submit" { "Search" }
            }
            p.hint #about-hint {
                "For example ver_0193ad2f… or +79991234567. Numbers are masked, and appear in no "
                "URL and no log."
            }
        }
        @match found {
            None => {}
            Some(Err(error)) => { (problem(error)) }
            Some(Ok(found)) => {
                @for (number, it) in found.stories.iter().enumerate() { (story(number, it)) }
                @if let Some(note) = &found.note { p.soft { (note) } }
            }
        }
    };
    layout(Here::Messages, Here::Messages.name(), &form)
}

fn story(number: usize, story: &Story) -> Markup {
    let id = format!("story-{number}");
    html! {
        section.card aria-labelledby=(id) {
            h2 #(id) { (cell(&story.title)) }
            (details(&story.details))
            (rows(&story.steps, &id))
        }
    }
}

pub(super) fn dead_letters(letters: &Table) -> Markup {
    layout(Here::DeadLetters, Here::DeadLetters.name(), &table(letters))
}

pub(super) fn gateways(tables: &[Table]) -> Markup {
    let body = html! { @for it in tables { (table(it)) } };
    layout(Here::Gateways, Here::Gateways.name(), &body)
}

/// Asks the operator to confirm an action.
pub(super) fn confirm(action: &Action, about: &[(&str, Cell)]) -> Markup {
    let here = Here::of(action);
    let (title, consequence) = match action {
        Action::Retry(id) => (
            format!("Retry dead letter {id}?"),
            "The record is read again. If it can be read now and has not expired, its message is \
             sent within 20 seconds.",
        ),
        Action::Discard(id) => (
            format!("Discard dead letter {id}?"),
            "It cannot be retried after that. Its record stays in the topic.",
        ),
        Action::Drain(name) => (
            format!("Take gateway {name} out of service?"),
            "Within two seconds, no process calls it. Its messages take another gateway of their \
             route, or wait.",
        ),
        Action::Undrain(name) => (
            format!("Put gateway {name} back into service?"),
            "Within two seconds, all processes call it again.",
        ),
    };
    let body = html! {
        p { (consequence) }
        @if !about.is_empty() { section.card { (details(about)) } }
        form method="post" action=(action.path()) {
            div.row {
                button.act.warn[action.is_grave()] type="submit" { (action.verb()) }
                a.plain href=(here.path()) { "Cancel" }
            }
        }
    };
    layout(here, &title, &body)
}

/// Shows the result of an action.
pub(super) fn done(here: Here, done: &str) -> Markup {
    let body = html! {
        p.note.good role="status" { (done) }
        p { a href=(here.path()) { "Back to " (here.name().to_lowercase()) } }
    };
    layout(here, "Done", &body)
}

pub(super) fn failure(here: Here, error: &OperatorError) -> Markup {
    let body = html! {
        (problem(error))
        p { a href=(here.path()) { "Back to " (here.name().to_lowercase()) } }
    };
    layout(here, here.name(), &body)
}

fn problem(error: &OperatorError) -> Markup {
    let title = match error {
        OperatorError::Invalid(_) => "Invalid input",
        OperatorError::Unknown(_) => "Nothing found",
        OperatorError::Refused(_) => "The action failed",
        OperatorError::Unfinished(_) => "The action is still running",
        OperatorError::Busy(_) => "The page is busy",
        OperatorError::Unavailable(_) => "The database cannot be read",
    };
    html! { div.note.bad role="alert" { b { (title) } p { (error.text()) } } }
}

fn details(details: &[(&str, Cell)]) -> Markup {
    html! {
        dl { @for (name, value) in details { div { dt { (name) } dd { (cell(value)) } } } }
    }
}

fn table(table: &Table) -> Markup {
    let id = table.title.to_lowercase().replace(|it: char| !it.is_alphanumeric(), "-");
    html! {
        section.card aria-labelledby=(id) {
            h2 #(id) { (table.title) }
            (rows(table, &id))
        }
    }
}

/// Writes the rows. On a narrow screen, the style shows each row as a list, and browsers then drop
/// the roles of a table. So each element names its role.
fn rows(table: &Table, label: &str) -> Markup {
    html! {
        @if table.rows.is_empty() { p.soft { (table.empty) } } @else {
            div.scroll role="region" tabindex="0" aria-labelledby=(label) {
                table role="table" aria-labelledby=(label) {
                    thead role="rowgroup" {
                        tr role="row" {
                            @for (column, name) in table.head.iter().enumerate() {
                                th role="columnheader" scope="col" class=[class(table, column)] {
                                    (name)
                                }
                            }
                        }
                    }
                    tbody role="rowgroup" {
                        @for row in &table.rows {
                            tr role="row" {
                                @for (column, value) in row.iter().enumerate() {
                                    td role="cell" data-name=[table.head.get(column)]
                                        data-none[*value == Cell::None]
                                        class=[class(table, column)] { (cell(value)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the class that right-aligns a column of numbers.
fn class(table: &Table, column: usize) -> Option<&'static str> {
    let cells = || table.rows.iter().filter_map(|row| row.get(column));
    let has_numbers = cells().any(|it| matches!(it, Cell::Number(_)));
    let has_others = cells().any(|it| !matches!(it, Cell::Number(_) | Cell::None));
    (has_numbers && !has_others).then_some("n")
}

fn cell(cell: &Cell) -> Markup {
    match cell {
        Cell::None => html! { "–" },
        Cell::Number(text) | Cell::Text(text) => html! { (text) },
        Cell::Message(id) => html! {
            a.id href={ "/operator/messages/" (id) } { (id) }
        },
        Cell::Actions(actions) => html! {
            div.actions {
                @for action in actions {
                    a.plain href=(action.path()) aria-label={ (action.verb()) " " (action.target()) } {
                        (action.verb()) "…"
                    }
                }
            }
        },
    }
}

fn layout(here: Here, title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " – messager" }
                link rel="icon" href=(ICON);
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href="/operator" { "messager" }
                    nav aria-label="Pages" {
                        @for it in Here::ALL {
                            a href=(it.path()) aria-current=[(it == here).then_some("page")] {
                                (it.name())
                            }
                        }
                    }
                }
                main #main {
                    h1 { (title) }
                    (body)
                }
                @if here == Here::Status { script { (PreEscaped(SCRIPT)) } }
            }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb().to_lowercase(), self.target())
    }
}

impl Action {
    fn verb(&self) -> &'static str {
        match self {
            Self::Retry(_) => "Retry",
            Self::Discard(_) => "Discard",
            Self::Drain(_) => "Drain",
            Self::Undrain(_) => "Undrain",
        }
    }

    fn target(&self) -> String {
        match self {
            Self::Retry(id) | Self::Discard(id) => format!("dead letter {id}"),
            Self::Drain(name) | Self::Undrain(name) => format!("gateway {name}"),
        }
    }

    /// Whether the action is destructive.
    fn is_grave(&self) -> bool {
        matches!(self, Self::Discard(_) | Self::Drain(_))
    }
}
