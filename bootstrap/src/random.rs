use anyhow::Context;
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};

/// Returns an unpredictable generator, which ids, codes and keys are drawn from.
pub(crate) fn seeded() -> anyhow::Result<StdRng> {
    StdRng::try_from_rng(&mut SysRng).context("seed a generator from the operating system")
}
