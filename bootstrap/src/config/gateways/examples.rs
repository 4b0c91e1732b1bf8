//! The examples of `docs/gateways.md` can be used as they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::GatewaysFile;
use crate::{config::Config, environment};

const PAGE: &str = include_str!("../../../../docs/gateways.md");

/// Returns the blocks of code of this language whose first line begins with `start`.
fn blocks(language: &str, start: &str) -> Vec<&'static str> {
    let blocks = PAGE.split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'));
    blocks.filter(|block| block.starts_with(start)).collect()
}

/// The words of all providers but `http`, whose examples are tested with it.
fn providers() -> BTreeSet<String> {
    let names = adapters_gateway::PROVIDERS.iter().map(|spec| spec.name.to_owned());
    names.filter(|name| !["http", "webhook"].contains(&name.as_str())).collect()
}

#[test]
fn every_provider_has_a_good_example_of_a_file() {
    let mut missing = providers();
    for example in blocks("toml", "[gateway.") {
        let lookup = |_: &str| Some("sesame".to_owned());
        let file = GatewaysFile::of(Path::new("example.toml"), example, &lookup);
        assert_eq!(file.problems, [""; 0], "{example}");
        for gateway in file.gateways.unwrap().gateways {
            missing.remove(gateway.provider);
        }
    }
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn every_provider_has_a_good_example_of_settings() {
    let mut missing = providers();
    for example in blocks("", "GATEWAY=") {
        let (settings, problems) = environment::parse(example);
        assert_eq!(problems, [""; 0], "{example}");
        let settings: BTreeMap<_, _> = settings.into_iter().collect();
        let config = Config::from_lookup(&|name| settings.get(name).cloned());
        let config = config.unwrap_or_else(|error| panic!("{error}\n{example}"));
        for gateway in config.gateways.gateways {
            missing.remove(gateway.provider);
        }
    }
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn settings_of_the_whole_example_are_good() {
    let [example] = blocks("", "APP_PORT=")[..] else { panic!("one example") };

    let (settings, problems) = environment::parse(example);

    assert_eq!(problems, [""; 0]);
    let settings: BTreeMap<_, _> = settings.into_iter().collect();
    let value = |name: &str| settings[name].as_str();
    assert_eq!((value("APP_PORT"), value("GATEWAYS_FILE")), ("8080", "gateways.toml"));
    let config = Config::from_lookup(&|name| match name {
        "GATEWAYS_FILE" => None,
        name => settings.get(name).cloned(),
    });
    assert_eq!(config.unwrap().gateways.public_url.as_deref(), Some("https://sms.example"));
}
