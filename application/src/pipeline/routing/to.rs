use std::{cell::OnceCell, fmt};

use domain::{PhoneNumber, Region};

use super::RegionOf;

/// A number, with its region once that was looked up.
pub(super) struct To<'a> {
    pub(super) phone: &'a PhoneNumber,
    look_up: &'a RegionOf,
    region: OnceCell<Option<Region>>,
}

impl<'a> To<'a> {
    pub(super) const fn new(phone: &'a PhoneNumber, look_up: &'a RegionOf) -> Self {
        Self { phone, look_up, region: OnceCell::new() }
    }

    pub(super) fn region(&self) -> Option<Region> {
        *self.region.get_or_init(|| (self.look_up)(self.phone))
    }
}

impl fmt::Debug for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("To").field("region", &self.region).finish_non_exhaustive()
    }
}
