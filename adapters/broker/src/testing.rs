//! Where the tests find their servers.

use std::time::SystemTime;

use domain::MessageId;
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};

/// Returns the value of a variable that names a server.
///
/// If it is not set, prints that the test is skipped, or panics if `REQUIRE_SERVICES` is 1.
pub(crate) fn service(name: &str) -> Option<String> {
    let value = variable(name);
    if value.is_none() {
        assert_ne!(variable("REQUIRE_SERVICES").as_deref(), Some("1"), "{name} is not set");
        println!("skipped: {name} is not set");
    }
    value
}

#[expect(clippy::disallowed_methods, reason = "tests learn from the environment where servers are")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns a name that no other test has.
pub(crate) fn unique_name() -> String {
    let mut rng = StdRng::try_from_rng(&mut SysRng).unwrap();
    format!("test_{}", MessageId::generate(SystemTime::UNIX_EPOCH, &mut rng).as_uuid().simple())
}
