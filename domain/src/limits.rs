use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use crate::ApiKeyId;

/// So many in so long: the window begins with the first and is empty again when it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// At least 1.
    pub quota: u32,
    pub period: Duration,
}

/// Up to three windows that hold at once; none: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<Window>);

/// Why a text is not a list of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWindows {
    #[error("off, or 1 to 3 of n/period by comma, such as 5/1h,10/1d")]
    Form,
    #[error("a limit is 1 to 1,000,000 in at most 30d")]
    Range,
    #[error("the periods of a list differ")]
    SamePeriod,
}

/// A window by its name, which a client is told: `phone-1h`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName(String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub name: PolicyName,
    pub window: Window,
}

/// One more to count under `key`, which may be personal and is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Counter {
    pub policy: Policy,
    pub key: String,
}

/// What holds for sends, and for guesses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendLimits {
    pub phone: Windows,
    pub ip: Windows,
    pub prefix: Windows,
    pub region: Windows,
    pub key: Windows,
    pub custom: BTreeMap<CustomLimit, Windows>,
    /// Guesses per phone, over its verifications.
    pub check: Windows,
}

/// The name of a limit whose key a caller says: a letter, then up to 31 letters, digits and
/// hyphens, in lower case, and none of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomLimit(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a limit is a-z, 0-9 and -, begins with a letter and is none of ours")]
pub struct InvalidCustomLimit;

/// What a send is counted under, beside its phone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendOf<'a> {
    /// The end user's.
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
/// Names of policies of ours.
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

    /// How many fit into each window when they come at once; none: no limit.
    pub fn smallest_quota(&self) -> Option<u32> {
        self.iter().map(|window| window.quota).min()
    }

    /// The windows by their names, in the order of the list.
    pub fn policies(&self, name: &str) -> Vec<Policy> {
        self.iter().map(|window| Policy::new(name, window)).collect()
    }
}

impl FromStr for Windows {
    type Err = InvalidWindows;

    /// Reads `5/1h,10/1d`, or `off`.
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

/// As it is read.
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

/// In its largest whole unit.
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
    /// `name`, and the period in its largest whole unit.
    pub fn new(name: &str, window: Window) -> Self {
        let name = format!("{name}-{}", period(window));
        Self { name: PolicyName(name), window }
    }

    /// One whose name says no period: it is not a setting.
    pub fn named(name: &'static str, window: Window) -> Self {
        Self { name: PolicyName(name.to_owned()), window }
    }
}

impl PolicyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SendLimits {
    /// Nothing is counted.
    pub const OFF: Self = Self {
        phone: Windows::OFF,
        ip: Windows::OFF,
        prefix: Windows::OFF,
        region: Windows::OFF,
        key: Windows::OFF,
        custom: BTreeMap::new(),
        check: Windows::OFF,
    };

    /// What a send is counted under beside its phone. What is off, or what the send says nothing
    /// of, is not counted.
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

/// What `/v1` has where nothing is set.
impl Default for SendLimits {
    fn default() -> Self {
        let windows = |text: &str| text.parse().expect("the defaults are windows");
        Self {
            phone: windows("5/1h,10/1d"),
            ip: windows("10/1h,50/1d"),
            // A tenth of the numbers of a prefix.
            prefix: windows("1000/1h"),
            // The guard limits a region by what comes back from it: one number would be too small
            // for one service and too large for another.
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

/// One who has an IPv6 address has at least the 2^64 of its network.
fn ip_key(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let network = ip.to_bits() >> 64 << 64;
            format!("{}/64", Ipv6Addr::from_bits(network))
        }
    }
}

/// Digits only: `parse` takes a sign.
fn whole(text: &str) -> Result<u32, InvalidWindows> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidWindows::Form);
    }
    text.parse().map_err(|_| InvalidWindows::Range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(quota: u32, seconds: u64) -> Window {
        Window { quota, period: Duration::from_secs(seconds) }
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&[Window], InvalidWindows>) {
        let windows = text.parse::<Windows>();
        assert_eq!(
            windows.as_ref().map(|it| &it.0[..]).map_err(|error| *error),
            expected,
            "{text}"
        );
    }

    #[test]
    fn reads_lists_of_windows() {
        check("off", Ok(&[]));
        check("5/1h,10/1d", Ok(&[window(5, 3_600), window(10, 86_400)]));
        check(
            "1/1s, 1000000/30d, 2/90m",
            Ok(&[window(1, 1), window(1_000_000, 2_592_000), window(2, 5_400)]),
        );
    }

    #[test]
    fn writes_lists_as_it_reads_them() {
        for text in ["off", "5/1h,10/1d", "1/1s,1000000/30d,2/90m"] {
            assert_eq!(text.parse::<Windows>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_list_of_windows() {
        for text in [
            "",
            "5",
            "5/h",
            "5/1",
            "5/1w",
            "/1h",
            "+5/1h",
            "5/-1h",
            "5/1ы",
            "5/1h,",
            "Off",
            "1/1s,1/2s,1/3s,1/4s",
        ] {
            check(text, Err(InvalidWindows::Form));
        }
        for text in ["0/1h", "1000001/1h", "5/0s", "5/31d", "99999999999/1h", "5/99999999999d"] {
            check(text, Err(InvalidWindows::Range));
        }
        check("5/1h,6/60m", Err(InvalidWindows::SamePeriod));
    }

    #[test]
    fn a_policy_is_named_by_its_period() {
        for (text, name) in [
            ("5/1h", "phone-1h"),
            ("5/24h", "phone-1d"),
            ("5/90m", "phone-90m"),
            ("5/3600s", "phone-1h"),
            ("5/61s", "phone-61s"),
        ] {
            let windows: Windows = text.parse().unwrap();
            assert_eq!(windows.policies("phone")[0].name.as_str(), name, "{text}");
        }
    }

    #[test]
    fn ipv6_counts_by_64() {
        for (ip, key) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
        ] {
            assert_eq!(ip_key(ip.parse().unwrap()), key);
        }
    }

    #[test]
    fn a_send_is_counted_under_what_it_says_and_what_is_on() {
        let device: CustomLimit = "device".parse().unwrap();
        let limits = SendLimits {
            prefix: "100/1h".parse().unwrap(),
            custom: BTreeMap::from([(device.clone(), "2/1m".parse().unwrap())]),
            ..SendLimits::default()
        };
        let other: CustomLimit = "other".parse().unwrap();
        let send = SendOf {
            ip: Some("203.0.113.7".parse().unwrap()),
            prefix: "7999123",
            region: Some("RU"),
            custom: &[(device, "a1".to_owned()), (other, "x".to_owned())],
            ..SendOf::default()
        };

        let counters = limits.counters(send);

        let named: Vec<(&str, &str)> =
            counters.iter().map(|it| (it.policy.name.as_str(), it.key.as_str())).collect();
        assert_eq!(
            named,
            [
                ("ip-1h", "203.0.113.7"),
                ("ip-1d", "203.0.113.7"),
                ("prefix-1h", "7999123"),
                ("device-1m", "a1"),
            ]
        );
        assert_eq!(format!("{:?}", counters[0]), "Counter(ip-1h …)");
    }

    #[test]
    fn a_custom_limit_has_a_name_of_its_own() {
        for good in ["device", "a", "x-1", "resends"] {
            assert!(good.parse::<CustomLimit>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "1a",
            "-a",
            "Device",
            "a b",
            "phone",
            "attempts",
            "a123456789012345678901234567890123",
        ] {
            assert_eq!(bad.parse::<CustomLimit>(), Err(InvalidCustomLimit), "{bad}");
        }
    }
}
