//! `messager message`: what became of a message, of a verification, or of the messages to a phone.

mod steps;

use std::{
    fmt,
    io::{self, Write},
    str::FromStr,
    time::Duration,
};

use adapters_persistence::{Database, LOOKED_AT, Looked, PhoneStories, SqlStories, Story};
use anyhow::{bail, ensure};
use application::ports::{StoreError, Verification};
use domain::{MessageId, PhoneNumber, Region, VerificationId};
use serde_json::{Value, json};

use self::steps::{Step, steps};
use super::{
    Output,
    phone::{Phone, phone},
    progress::Progress,
    rfc3339,
    table::{Fields, Form, Table, json_text, text},
};
use crate::config::Config;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// The id of a verification, such as `ver_0193…`, or the UUID of a message, as logs show it.
    #[arg(required_unless_present = "phone")]
    id: Option<Id>,
    /// Tell of the messages to this number instead, the newest first. In international form, such as
    /// +79991234567, or without the + as /api received it.
    #[arg(long, value_parser = phone, conflicts_with = "id")]
    phone: Option<Phone>,
    /// Of a number, tell of so many verifications at most.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Of a number, look through so many rows of each table at most, the newest first. No index finds
    /// the rows of a number.
    #[arg(long, value_name = "ROWS", default_value_t = 1_000_000)]
    look_through: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The id of a verification or of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    Verification(VerificationId),
    Message(MessageId),
}

impl FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Verification(id));
        }
        let id: MessageId =
            text.parse().map_err(|_| {
                "ver_ and 32 hexadecimal digits, of which the last two are 00, or the UUID of a message"
            })?;
        let verification = VerificationId::of(id);
        // As the database has it, without `ver_`.
        let is_verification = verification.as_uuid() == id.as_uuid();
        Ok(if is_verification { Self::Verification(verification) } else { Self::Message(id) })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verification(id) => id.fmt(f),
            Self::Message(id) => id.fmt(f),
        }
    }
}

/// Carries out `messager message …`. Fails if nothing is known.
pub async fn execute(config: &Config, database: &Database, args: Args) -> anyhow::Result<()> {
    let stories = SqlStories::new(database.clone());
    let form = Form::of(args.json);
    let retention = Retention::of(config);
    let (found, note) = match (args.id, &args.phone) {
        (Some(id), _) => {
            let story = find(&stories, id).await?;
            let Some(story) = story else { bail!("{}", unknown(id, retention)) };
            (vec![story], None)
        }
        (None, Some(phone)) => {
            let (mut told, mut notes) = (Vec::new(), Vec::new());
            for phone in phone.numbers(config.numbers.default_region) {
                let progress = Progress::of("rows read");
                let at = |rows| progress.at(rows);
                let found = stories.of_phone(&phone, args.limit, args.look_through, &at).await?;
                drop(progress);
                notes.push(More::COMMAND.note(&phone, &found, retention));
                told.extend(found.stories);
            }
            let note = notes.join("\n");
            ensure!(!told.is_empty(), "{note}");
            (told, Some(note))
        }
        (None, None) => bail!("name an id, or a number with --phone"),
    };
    write!(Output, "{}", shown(&found, form))?;
    if let Some(note) = note.filter(|_| form != Form::Json) {
        writeln!(io::stderr(), "{note}")?;
    }
    Ok(())
}

/// Returns the story of an id.
pub(crate) async fn find(stories: &SqlStories, id: Id) -> Result<Option<Story>, StoreError> {
    match id {
        Id::Verification(id) => stories.of_verification(id).await,
        Id::Message(id) => stories.of_message(id).await,
    }
}

/// How long the database keeps things.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    verifications: Duration,
    ledger: Duration,
}

impl Retention {
    pub(crate) fn of(config: &Config) -> Self {
        Self { verifications: config.verification.retention, ledger: config.consumer.retention }
    }
}

/// Says what removes rows.
impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = |of: Duration| of.as_secs() / 86_400;
        write!(
            f,
            "a verification is removed {} days after its start (VERIFICATION_RETENTION), a message \
             {} days after its acceptance (DELIVERY_RETENTION), and both by `messager forget`",
            days(self.verifications),
            days(self.ledger)
        )
    }
}

/// Says where an id was looked for, and why it may be gone.
pub(crate) fn unknown(id: Id, retention: Retention) -> String {
    format!(
        "nothing is known of {id}: it is not in the verifications, not in the ledger of any group, \
         and not among the first {LOOKED_AT} messages that wait in the outbox and in transit; \
         {retention}"
    )
}

/// The names of what shows more messages of a phone, and of what reads more rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct More {
    shows: &'static str,
    reads: &'static str,
}

impl More {
    const COMMAND: Self = Self { shows: "--limit", reads: "--look-through" };

    /// For a page, which has no options.
    pub(crate) const PAGE: Self =
        Self { shows: "`messager message --phone`", reads: "`messager message --phone`" };

    /// Describes the result for a phone, and how many rows were read.
    pub(crate) fn note(
        self,
        phone: &PhoneNumber,
        found: &PhoneStories,
        retention: Retention,
    ) -> String {
        let PhoneStories { stories, has_more, looked } = found;
        match (stories.len(), has_more) {
            (0, _) => {
                let none = "no verification and no entry of the ledger is of it";
                let how_far = self.how_far(*looked, none);
                format!("nothing is known of {}: {how_far}; {retention}", phone.masked())
            }
            (shown, true) => {
                let more = self.shows;
                let newest = format!("the newest {shown} are shown, and {more} shows more");
                self.how_far(*looked, &newest)
            }
            (shown, false) => self.how_far(*looked, &format!("{shown} found")),
        }
    }

    fn how_far(self, Looked { rows, everywhere }: Looked, found: &str) -> String {
        if everywhere {
            format!("{found}; all {rows} rows of the verifications and of the ledger were read")
        } else {
            let reads = self.reads;
            format!("{found}; only the newest {rows} rows were read, and {reads} reads more")
        }
    }
}

fn shown(stories: &[Story], form: Form) -> String {
    match form {
        Form::Json => json_text(&stories.iter().map(json_of).collect::<Vec<_>>().into()),
        Form::Tabs => {
            let mut table = Table::new(["verification", "time", "message", "step", "detail"]);
            for story in stories {
                let verification = story.verification.as_ref().map(|it| text(it.id));
                for step in steps(story) {
                    let [time, message, step, detail] = cells(step);
                    let verification = verification.clone().unwrap_or(Value::Null);
                    table.row([verification, time, message, step, detail]);
                }
            }
            table.text(form)
        }
        Form::Columns { .. } => {
            let told: Vec<String> = stories.iter().map(|story| told(story, form)).collect();
            told.join("\n")
        }
    }
}

/// Tells a story on a terminal: what it is, and a line for each step.
fn told(story: &Story, form: Form) -> String {
    let mut fields = Fields::default();
    for (name, value) in head(story) {
        fields.add(name, value);
    }
    format!("{}\n{}", fields.text(form), step_table(story).text(form))
}

/// Returns a row for each step.
pub(crate) fn step_table(story: &Story) -> Table<4> {
    let mut table = Table::new(["time", "message", "step", "detail"]);
    for step in steps(story) {
        table.row(cells(step));
    }
    table
}

fn cells(step: Step) -> [Value; 4] {
    let Step { at, message, what, detail } = step;
    let time = at.map_or(Value::Null, |at| text(rfc3339(at)));
    [time, message.map_or(Value::Null, Value::from), what.into(), detail.into()]
}

/// The properties of a verification, or of a message without one.
pub(crate) fn head(story: &Story) -> Vec<(&'static str, Value)> {
    let Some(verification) = &story.verification else {
        let phone = steps::phone(story).map_or(Value::Null, |phone| phone.masked().into());
        let ids: Vec<String> = story.messages.iter().map(|it| it.id.to_string()).collect();
        return vec![
            ("verification", "none, or removed".into()),
            ("messages", ids.join(", ").into()),
            ("phone", phone),
        ];
    };
    let Verification { id, origin, phone, region, status, attempts, sends, extra_sends, .. } =
        verification;
    vec![
        ("verification", text(id)),
        ("status", status.as_str().into()),
        ("phone", phone.masked().into()),
        ("region", region.as_ref().map_or(Value::Null, |region: &Region| region.as_str().into())),
        ("origin", origin.as_str().into()),
        ("guesses", (*attempts).into()),
        ("messages", (*sends).into()),
        ("extra messages", (*extra_sends).into()),
        ("started", text(rfc3339(verification.created_at))),
        ("expires", text(rfc3339(verification.expires_at))),
        ("ended", verification.ended_at.map_or(Value::Null, |at| text(rfc3339(at)))),
        ("api key", verification.api_key.map_or(Value::Null, text)),
    ]
}

fn json_of(story: &Story) -> Value {
    let mut fields = Fields::default();
    for (name, value) in head(story) {
        fields.add(name, value);
    }
    let mut object = fields.json();
    if story.verification.is_none() {
        object["verification"] = Value::Null;
    }
    let step = |it: Step| {
        let [time, message, step, detail] = cells(it);
        json!({ "time": time, "message": message, "step": step, "detail": detail })
    };
    object["messages"] = story.messages.iter().map(steps::message_json).collect();
    object["steps"] = steps(story).into_iter().map(step).collect();
    object
}

#[cfg(test)]
mod tests;
