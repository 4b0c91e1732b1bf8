//! The functions whose instructions are counted.

use std::{
    collections::BTreeMap,
    hint::black_box,
    time::{Duration, SystemTime},
};

use adapters_wire::{DecodeSettings, Place, decode, encode};
use anyhow::Context;
use application::ports::Outgoing;
use domain::{
    CodeLength, Message, PayloadKeys, Peppers, PhoneNumber, Seed, Templates, Validity,
    VerificationId,
};

/// The cases by name. Each does the same work in every round.
pub(crate) struct Cases(BTreeMap<&'static str, Box<dyn Fn()>>);

const TTL: Duration = Duration::from_secs(600);
const ID: &str = "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c00";
const PHONE: &str = "79991234567";
const PEPPER: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TEXT: &str = "Your code is {code}. Do not share it with anyone.";

impl Cases {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut cases = Self(BTreeMap::new());
        cases.numbers();
        cases.codes()?;
        cases.texts()?;
        cases.records()?;
        Ok(cases)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    pub(crate) fn run(&self, name: &str, rounds: u32) -> anyhow::Result<()> {
        let case = self.0.get(name).with_context(|| format!("no case {name}"))?;
        for _ in 0..rounds {
            case();
        }
        Ok(())
    }

    fn add<T>(&mut self, name: &'static str, work: impl Fn() -> T + 'static) {
        let case = move || {
            black_box(work());
        };
        self.0.insert(name, Box::new(case));
    }

    fn numbers(&mut self) {
        self.add("phone number, parsed", || black_box(PHONE).parse::<PhoneNumber>());
    }

    /// The work of a start and of a check on a code.
    fn codes(&mut self) -> anyhow::Result<()> {
        let peppers: Peppers = PEPPER.parse()?;
        let pepper = peppers.first().clone();
        let id = VerificationId::from_uuid(ID.parse::<domain::MessageId>()?.as_uuid());
        let (seed, length) = (Seed::from_bytes([7; 16]), CodeLength::try_from(6)?);
        let code = pepper.derive(id, &seed, length);
        self.add("code, derived and hashed", move || {
            let code = pepper.derive(black_box(id), &seed, length);
            pepper.hash(id, &code)
        });
        self.add("code, hashed to be compared", move || peppers.hashes(black_box(id), &code));
        Ok(())
    }

    fn texts(&mut self) -> anyhow::Result<()> {
        let mut templates = Templates::new(TEXT.parse()?);
        templates.add("login", "de", "Ihr Code lautet {code}.")?;
        let (key, code) = ("login/de".parse()?, "048291".parse()?);
        self.add("text, rendered", move || templates.render(Some(black_box(&key)), &code));
        Ok(())
    }

    /// The record on the topic, in clear and sealed.
    fn records(&mut self) -> anyhow::Result<()> {
        let clear = outgoing()?;
        let keys: PayloadKeys = PEPPER.parse()?;
        let Message { id, phone, .. } = clear.message.clone();
        let code = "048291".parse()?;
        let sealed = keys.seal(id, &phone, &code, None, [9; 24]);
        let sealed = Outgoing { message: Message { id, phone, code: sealed }, ..outgoing()? };

        let place = Place { topic: "message", partition: 1, offset: 42, written_at: 1 };
        for (name, outgoing, keys) in
            [("record, read", &clear, None), ("sealed record, read", &sealed, Some(keys.clone()))]
        {
            let record = encode(outgoing);
            self.add(name, move || {
                let keys = keys.as_ref();
                let settings = DecodeSettings { default_ttl: TTL, keys, require_sealed: false };
                decode(place, Some(&record.value), black_box(&record.headers), settings)
            });
        }
        self.add("record, written", move || encode(black_box(&clear)));
        Ok(())
    }
}

fn outgoing() -> anyhow::Result<Outgoing> {
    let accepted_at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_005);
    Ok(Outgoing {
        sequence: 7,
        message: Message { id: ID.parse()?, phone: PHONE.parse()?, code: "048291".parse()? },
        validity: Validity::starting_at(accepted_at, TTL),
        trace: TRACE.parse()?,
        age: Duration::ZERO,
    })
}
