//! `messager keys`: API keys.

use std::io::{Write, stdout};

use anyhow::bail;
use application::ports::{ApiKey, ApiKeys, NewApiKey};
use domain::{ApiKeyId, ApiKeyText, InvalidApiKey, Scopes};
use rand_core::CryptoRng;

use super::{
    Output, rfc3339,
    table::{Form, Table, text},
};
use crate::random::seeded;

#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Create a key and print it. It is shown only now, because only its hash is stored.
    Create {
        /// A name by which you recognise the key.
        #[arg(long, value_parser = name)]
        name: String,
        /// What its callers may do, by comma: send (start, resend, cancel, /api), check, read, or
        /// admin for everything.
        #[arg(long, value_parser = scopes)]
        scopes: Scopes,
    },
    /// List all keys, the oldest first, revoked ones too.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key. Running processes refuse it within five seconds.
    Revoke {
        /// The id that `list` shows, or the whole key.
        #[arg(value_parser = id)]
        id: ApiKeyId,
    },
}

/// Carries out `messager keys …`.
pub async fn execute(keys: &impl ApiKeys, command: Command) -> anyhow::Result<()> {
    let mut rng = seeded()?;
    let form = Form::of(matches!(command, Command::List { json: true }));
    if matches!(command, Command::Create { .. }) {
        // The key is shown only once, so a closed output is an error.
        carry_out(keys, command, form, &mut rng, &mut stdout()).await
    } else {
        carry_out(keys, command, form, &mut rng, &mut Output).await
    }
}

async fn carry_out(
    keys: &impl ApiKeys,
    command: Command,
    form: Form,
    rng: &mut (impl CryptoRng + Send),
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match command {
        Command::Create { name, scopes } => {
            let key = ApiKeyText::generate(rng);
            keys.create(NewApiKey { id: key.id(), name, hash: key.hash(), scopes }).await?;
            // Alone on its line, so that a script can read it.
            writeln!(out, "{}", key.reveal())?;
        }
        Command::List { .. } => write!(out, "{}", listed(&keys.all().await?).text(form))?,
        Command::Revoke { id } => {
            if !keys.revoke(id).await? {
                bail!("there is no key {id}");
            }
            writeln!(out, "{id}: revoked")?;
        }
    }
    Ok(())
}

fn listed(keys: &[ApiKey]) -> Table<6> {
    let mut table = Table::new(["id", "name", "scopes", "created", "last used", "revoked"]);
    for key in keys {
        let ApiKey { id, name, scopes, created_at, last_used_at, revoked_at, .. } = key;
        table.row([
            text(id),
            name.as_str().into(),
            text(scopes),
            rfc3339(*created_at).into(),
            last_used_at.map(rfc3339).into(),
            revoked_at.map(rfc3339).into(),
        ]);
    }
    table
}

/// Of a whole key, too: clap would show it with the error.
fn id(text: &str) -> Result<ApiKeyId, InvalidApiKey> {
    text.parse::<ApiKeyText>().map(|key| key.id()).or_else(|_| text.parse())
}

fn name(text: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("1 to 64 characters, none of them a control one") }
}

fn scopes(text: &str) -> Result<Scopes, &'static str> {
    text.parse().map_err(|_| "some by comma of send, check, read, admin")
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::{Duration, SystemTime},
    };

    use application::ports::MockApiKeys;
    use clap::Parser;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Line::try_parse_from(format!("keys {line}").split(' ')).map(|line| line.command)
    }

    async fn said(keys: MockApiKeys, line: &str) -> anyhow::Result<String> {
        let mut out = Vec::new();
        let mut rng = StdRng::seed_from_u64(1);
        carry_out(&keys, parse(line)?, Form::Tabs, &mut rng, &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn key_is_revoked_by_its_id_or_by_its_whole_text() {
        let key = ApiKeyText::generate(&mut StdRng::seed_from_u64(1));

        for text in [key.id().to_string().as_str(), key.reveal().as_str()] {
            let revoke = parse(&format!("revoke {text}")).unwrap();
            assert_eq!(revoke, Command::Revoke { id: key.id() });
        }
        assert!(parse("revoke shop").is_err());
    }

    #[tokio::test]
    async fn create_prints_the_key_whose_hash_it_stores() {
        let stored = Arc::new(Mutex::new(None));
        let mut keys = MockApiKeys::new();
        let store = stored.clone();
        keys.expect_create().once().returning(move |key| {
            *store.lock().unwrap() = Some(key);
            Ok(())
        });

        let said = said(keys, "create --name shop --scopes send,check").await.unwrap();

        let shown: ApiKeyText = said.trim().parse().unwrap();
        let NewApiKey { id, name, hash, scopes } = stored.lock().unwrap().take().unwrap();
        assert!(shown.matches(&hash));
        assert_eq!((id, &*name, &*scopes.to_string()), (shown.id(), "shop", "send,check"));
    }

    #[tokio::test]
    async fn list_shows_everything_but_the_hash() {
        let key = ApiKeyText::generate(&mut StdRng::seed_from_u64(1));
        let (id, hash) = (key.id(), key.hash());
        let mut keys = MockApiKeys::new();
        keys.expect_all().returning(move || {
            Ok(vec![ApiKey {
                id,
                name: "shop".to_owned(),
                hash: hash.clone(),
                scopes: "admin".parse().unwrap(),
                created_at: SystemTime::UNIX_EPOCH,
                last_used_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)),
                revoked_at: None,
            }])
        });

        let said = said(keys, "list").await.unwrap();

        let row = format!("{id}\tshop\tadmin\t1970-01-01T00:00:00Z\t1970-01-01T00:01:00Z\t-");
        assert_eq!(said.lines().collect::<Vec<_>>()[1..], [row]);
    }

    #[tokio::test]
    async fn unknown_key_cannot_be_revoked() {
        let keys = |known| {
            let mut keys = MockApiKeys::new();
            keys.expect_revoke().once().returning(move |_| Ok(known));
            keys
        };
        let line = "revoke 6f2c1a529d3f4f0e8a550d2f6f3b9c11";

        let revoked = said(keys(true), line).await.unwrap();
        assert_eq!(revoked, "6f2c1a529d3f4f0e8a550d2f6f3b9c11: revoked\n");
        assert!(said(keys(false), line).await.is_err());
    }

    #[test]
    fn invalid_command_line_is_refused() {
        let long = "n".repeat(65);
        for bad in [
            "create --name shop".to_owned(),
            "create --scopes send".to_owned(),
            "create --name shop --scopes everything".to_owned(),
            format!("create --name {long} --scopes send"),
            "create --name a\tb --scopes send".to_owned(),
            "revoke msk_1".to_owned(),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
