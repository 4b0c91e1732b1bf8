use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use crate::ApiKeyId;

/// A quota for a period. The window begins with the first event and is empty again after `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// At least 1.
    pub quota: u32,
    pub period: Duration,
}

/// Up to three windows that apply at the same time. An empty list is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<Window>);

/// The reason why a text is not a list of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWindows {
    #[error("off, or 1 to 3 comma-separated limits of the form n/period, such as 5/1h,10/1d")]
    Form,
    #[error("a limit is a number from 1 to 1,000,000 in a period of at most 30d")]
    Range,
    #[error("two limits of a list have the same period")]
    SamePeriod,
}

/// The name of a window, which answers to clients contain: `phone-1h`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName(String);

/// A window with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub name: PolicyName,
    pub window: Window,
}

/// One event to count under `key`. The key may be personal, so `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Counter {
    pub policy: Policy,
    pub key: String,
}

/// The limits on messages and on guesses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendLimits {
    pub phone: Windows,
    pub ip: Windows,
    pub prefix: Windows,
    pub region: Windows,
    pub key: Windows,
    pub custom: BTreeMap<CustomLimit, Windows>,
    /// Guesses at the codes of one phone, over all its verifications.
    pub check: Windows,
}

/// The name of a limit whose key the caller sends: a lower-case letter, then up to 31 lower-case
/// letters, digits and hyphens. Names of built-in limits are reserved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomLimit(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a limit has 1 to 32 of a-z, 0-9 and -, begins with a letter, and is not a built-in name"
)]
pub struct InvalidCustomLimit;

/// The properties of a message that limits count it under, besides its phone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendOf<'a> {
    /// The address of the end user.
    pub ip: Option<IpAddr>,
    /// [`crate::Recipient::prefix_key`].
    pub prefix: &'a str,
    /// [`crate::Recipient::region_key`].
    pub region: Option<&'a str>,
    pub api_key: Option<ApiKeyId>,
    pub custom: &'a [(CustomLimit, String)],
}

const LONGEST: Duration = Duration::from_secs(30 * 86_400);
const UNITS: [(u32, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
/// Names of built-in limits.
const RESERVED: [&str; 9] =
    ["phone", "ip", "prefix", "region", "key", "check", "resend", "sends", "attempts"];

impl Windows {
    pub const OFF: Self = Self(Vec::new());

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Window> + '_ {
        self.0.iter().copied()
    }

    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many events fit into every window if they come at once, or `None` without a limit.
    pub fn smallest_quota(&self) -> Option<u32> {
        self.iter().map(|window| window.quota).min()
    }

    /// Names the windows, in the order of the list.
    pub fn policies(&self, name: &str) -> Vec<Policy> {
        self.iter().map(|window| Policy::new(name, window)).collect()
    }
}

impl FromStr for Windows {
    type Err = InvalidWindows;

    /// Parses `5/1h,10/1d` or `off`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let windows: Vec<Window> =
            text.split(',').map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
        if windows.len() > 3 {
            return Err(InvalidWindows::Form);
        }
        let is_first = |(place, it): (usize, &Window)| {
            windows[..place].iter().all(|before| before.period != it.period)
        };
        if windows.iter().enumerate().all(is_first) {
            Ok(Self(windows))
        } else {
            Err(InvalidWindows::SamePeriod)
        }
    }
}

/// Writes the form that `FromStr` parses.
impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("off");
        }
        for (place, window) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{}/{}", window.quota, period(*window))?;
        }
        Ok(())
    }
}

/// Writes the period in its largest whole unit.
fn period(window: Window) -> String {
    let seconds = window.period.as_secs();
    let (unit, sign) = UNITS
        .into_iter()
        .find(|(unit, _)| seconds.is_multiple_of(u64::from(*unit)))
        .unwrap_or((1, 's'));
    format!("{}{sign}", seconds / u64::from(unit))
}

impl FromStr for Window {
    type Err = InvalidWindows;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (quota, period) = text.split_once('/').ok_or(InvalidWindows::Form)?;
        let unit = period.chars().last().ok_or(InvalidWindows::Form)?;
        let (seconds, _) =
            UNITS.into_iter().find(|(_, it)| *it == unit).ok_or(InvalidWindows::Form)?;
        let number = &period[..period.len() - 1];
        let (quota, number) = (whole(quota)?, whole(number)?);
        let period = Duration::from_secs(u64::from(number) * u64::from(seconds));
        if (1..=1_000_000).contains(&quota) && !period.is_zero() && period <= LONGEST {
            Ok(Self { quota, period })
        } else {
            Err(InvalidWindows::Range)
        }
    }
}

impl Policy {
    /// Names a window by `name` and its period, in the largest whole unit.
    pub fn new(name: &str, window: Window) -> Self {
        let name = format!("{name}-{}", period(window));
        Self { name: PolicyName(name), window }
    }

    /// Names a window that is not a setting. The name has no period.
    pub fn named(name: &'static str, window: Window) -> Self {
        Self { name: PolicyName(name.to_owned()), window }
    }
}

impl PolicyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the limit, without the period of the window.
    pub fn limit(&self) -> &str {
        self.0.rsplit_once('-').map_or(&self.0, |(limit, _)| limit)
    }
}

impl SendLimits {
    /// Counts nothing.
    pub const OFF: Self = Self {
        phone: Windows::OFF,
        ip: Windows::OFF,
        prefix: Windows::OFF,
        region: Windows::OFF,
        key: Windows::OFF,
        custom: BTreeMap::new(),
        check: Windows::OFF,
    };

    /// Returns the counters of a message besides its phone. A limit that is off, or whose key the
    /// message lacks, has no counter.
    pub fn counters(&self, send: SendOf<'_>) -> Vec<Counter> {
        let ours = [
            ("ip", &self.ip, send.ip.map(ip_key)),
            ("prefix", &self.prefix, Some(send.prefix.to_owned())),
            ("region", &self.region, send.region.map(str::to_owned)),
            ("key", &self.key, send.api_key.map(|it| it.to_string())),
        ];
        let ours = ours.into_iter().filter_map(|(name, windows, key)| Some((name, windows, key?)));
        let custom = send
            .custom
            .iter()
            .filter_map(|(name, key)| Some((name.as_str(), self.custom.get(name)?, key.clone())));
        ours.chain(custom)
            .flat_map(|(name, windows, key)| {
                let policies = windows.policies(name).into_iter();
                policies.map(move |policy| Counter { policy, key: key.clone() })
            })
            .collect()
    }
}

/// The limits of `/v1` without any setting.
impl Default for SendLimits {
    fn default() -> Self {
        let windows = |text: &str| text.parse().expect("the defaults are windows");
        Self {
            phone: windows("5/1h,10/1d"),
            ip: windows("10/1h,50/1d"),
            // A tenth of the 10,000 numbers of a prefix.
            prefix: windows("1000/1h"),
            // The guard limits a region by its approvals. A fixed number would be too small for one
            // service and too large for another.
            region: Windows::OFF,
            key: Windows::OFF,
            custom: BTreeMap::new(),
            check: windows("10/1h,50/1d"),
        }
    }
}

impl CustomLimit {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CustomLimit {
    type Err = InvalidCustomLimit;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let fits = text.len() <= 32
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(plain)
            && !RESERVED.contains(&text);
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidCustomLimit) }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counter({} …)", self.policy.name.as_str())
    }
}

/// Returns the key of limits by address. An IPv6 user usually controls a whole /64 network, so IPv6
/// addresses are counted by /64.
fn ip_key(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let network = ip.to_bits() >> 64 << 64;
            format!("{}/64", Ipv6Addr::from_bits(network))
        }
    }
}

/// Parses digits only; `parse` would also accept a sign.
fn whole(text: &str) -> Result<u32, InvalidWindows> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidWindows::Form);
    }
    text.parse().map_err(|_| InvalidWindows::Range)
}

#[cfg(test)]
mod tests;
