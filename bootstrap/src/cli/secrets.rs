//! `messager secrets`: keys that were drawn because none was set.

use std::io::{Write, stdout};

use anyhow::{Context, bail};
use application::{CODE_PEPPER, KeySource, PAYLOAD_KEY, VaultSettings, ports::Secrets};
use domain::{CarriedCode, PayloadKeys, Peppers, VerificationId};

use super::Output;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Print the drawn keys as lines for your .env. Anyone who has them and the database can read the
    /// codes.
    Show,
    /// Delete the stored keys, if the settings have them now.
    Forget {
        /// Delete keys that are not set, too. Codes that were sent then cannot be checked.
        #[arg(long)]
        force: bool,
    },
}

const NAMES: [&str; 2] = [CODE_PEPPER, PAYLOAD_KEY];

/// Carries out `messager secrets …`. `settings` has the keys that are set.
pub async fn execute(
    secrets: &impl Secrets,
    settings: &VaultSettings,
    command: Command,
) -> anyhow::Result<()> {
    match command {
        // The keys are not shown if the output is closed, which is an error.
        Command::Show => carry_out(secrets, settings, command, &mut stdout()).await,
        Command::Forget { .. } => carry_out(secrets, settings, command, &mut Output).await,
    }
}

async fn carry_out(
    secrets: &impl Secrets,
    settings: &VaultSettings,
    command: Command,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let mut stored = Vec::new();
    for name in NAMES {
        stored.extend(secrets.find(name).await?.map(|key| (name, key)));
    }
    if stored.is_empty() {
        bail!("no key was drawn");
    }
    match command {
        Command::Show => {
            for (name, key) in stored {
                writeln!(out, "{name}={key}")?;
            }
        }
        Command::Forget { force } => {
            for (name, key) in &stored {
                if !force && !is_set(name, key, settings)? {
                    bail!(
                        "{name} does not contain the key that was drawn: put the line of `messager \
                         secrets show` into your .env first"
                    );
                }
            }
            for (name, _) in stored {
                secrets.forget(name).await?;
                writeln!(out, "{name}: removed")?;
            }
        }
    }
    Ok(())
}

/// Returns whether the settings have this very key.
fn is_set(name: &str, key: &str, settings: &VaultSettings) -> anyhow::Result<bool> {
    let damaged = || format!("the stored {name} is damaged");
    Ok(match (name, settings) {
        (CODE_PEPPER, VaultSettings { peppers: KeySource::Set(set), .. }) => {
            let drawn: Peppers = key.parse().with_context(damaged)?;
            let drawn = drawn.first();
            let same = |it: &domain::Pepper| it.body_hash(&[]) == drawn.body_hash(&[]);
            set.get(drawn.id()).is_some_and(same)
        }
        (PAYLOAD_KEY, VaultSettings { payload: KeySource::Set(set), .. }) => {
            let drawn: PayloadKeys = key.parse().with_context(damaged)?;
            opens(set, &drawn)
        }
        _ => false,
    })
}

/// Returns whether `set` opens what `drawn` seals.
fn opens(set: &PayloadKeys, drawn: &PayloadKeys) -> bool {
    let message = VerificationId::NIL.message(1);
    let phone = "0000000".parse().expect("seven digits are a phone");
    let code = "0000".parse().expect("four digits are a code");
    // It is never stored, so its nonce need not be random.
    let sealed = drawn.seal(message, &phone, &code, None, [0; 24]);
    matches!(sealed, CarriedCode::Sealed(sealed) if set.open(message, &sealed).is_ok())
}

#[cfg(test)]
mod tests {
    use application::ports::MockSecrets;

    use super::*;

    const DRAWN: &str = "d1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "d1:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

    fn store(names: &'static [&'static str], forgotten: usize) -> MockSecrets {
        let mut secrets = MockSecrets::new();
        secrets.expect_find().returning(|name| Ok(names.contains(&name).then(|| DRAWN.to_owned())));
        secrets.expect_forget().times(forgotten).returning(|_| Ok(true));
        secrets
    }

    fn settings(pepper: Option<&str>, payload: Option<&str>) -> VaultSettings {
        let set = |text: &str| format!("k2:{},{text}", &OTHER[3..]);
        VaultSettings {
            peppers: pepper.map_or(KeySource::Drawn, |it| KeySource::Set(set(it).parse().unwrap())),
            payload: payload
                .map_or(KeySource::Absent, |it| KeySource::Set(set(it).parse().unwrap())),
        }
    }

    async fn said(
        secrets: MockSecrets,
        settings: &VaultSettings,
        command: Command,
    ) -> anyhow::Result<String> {
        let mut out = Vec::new();
        carry_out(&secrets, settings, command, &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    #[tokio::test]
    async fn show_prints_lines_for_env() {
        let shown = said(store(&NAMES, 0), &settings(None, None), Command::Show).await.unwrap();

        assert_eq!(shown, format!("CODE_PEPPER={DRAWN}\nPAYLOAD_KEY={DRAWN}\n"));
        assert!(said(store(&[], 0), &settings(None, None), Command::Show).await.is_err());
    }

    #[tokio::test]
    async fn only_what_is_set_is_forgotten() {
        let forget = Command::Forget { force: false };
        for (stored, settings) in [
            (&NAMES[..1], settings(Some(DRAWN), None)),
            (&NAMES[1..], settings(None, Some(DRAWN))),
            (&NAMES[..], settings(Some(DRAWN), Some(DRAWN))),
        ] {
            let secrets = store(stored, stored.len());
            assert!(said(secrets, &settings, forget).await.unwrap().contains("removed"));
        }
        for (stored, settings) in [
            (&NAMES[..1], settings(None, None)),
            (&NAMES[..1], settings(Some(OTHER), None)),
            (&NAMES[1..], settings(None, Some(OTHER))),
            (&NAMES[..], settings(Some(DRAWN), None)),
        ] {
            assert!(said(store(stored, 0), &settings, forget).await.is_err());
        }
    }

    #[tokio::test]
    async fn by_force_everything_is_forgotten() {
        let secrets = store(&NAMES, 2);

        said(secrets, &settings(None, None), Command::Forget { force: true }).await.unwrap();
    }
}
