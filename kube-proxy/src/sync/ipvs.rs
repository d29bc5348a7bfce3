//! The ipvs section of the configuration as the backend takes it.

use std::time::Duration;

use anyhow::Context;
use backend_ipvs::{Binding, MarkSpace, Settings};
use ipvs_netlink::{Scheduler, Timeouts};

use crate::settings::{
    effective::{self, IpvsSettings},
    go_text::GoDuration,
};

/// How virtual IPs become the node's own where no flag says so: `routes` or `addresses`. A DaemonSet whose command stays as
/// it is can be given a variable.
const VIP_BINDING: &str = "SWITCHYARD_IPVS_VIP_BINDING";

/// The longest that connections may go on through an endpoint that is gone, and after the ipvs mode was left through its
/// virtual servers: a duration as in the configuration; 0: as long as they last.
const DRAIN_LIMIT: &str = "SWITCHYARD_IPVS_DRAIN_LIMIT";

/// Which packet marks select virtual servers of ours, `VALUE/MASK`. Other programs of the node may have virtual servers by
/// mark, too.
const MARKS: &str = "SWITCHYARD_IPVS_MARKS";

/// After the mode was left, unless the variable says otherwise: by then what is not restarted daily was meant to stay.
const LEAVING_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What kube-proxy's configuration has no field for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variables {
    vip_binding: Option<Binding>,
    /// `Some(None)`: without a limit.
    drain_limit: Option<Option<Duration>>,
    marks: MarkSpace,
}

impl Variables {
    pub(crate) fn read() -> anyhow::Result<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(read: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let given = |name| read(name).filter(|text| !text.is_empty());
        let vip_binding = given(VIP_BINDING).map(|text| text.parse()).transpose().context(VIP_BINDING)?;
        let drain_limit = match given(DRAIN_LIMIT) {
            Some(text) => {
                let limit = GoDuration::parse(&text)
                    .ok()
                    .and_then(GoDuration::to_std)
                    .with_context(|| format!("{DRAIN_LIMIT}: {text:?} is no duration such as 24h"))?;
                Some((!limit.is_zero()).then_some(limit))
            }
            None => None,
        };
        let marks = given(MARKS).map(|text| text.parse()).transpose().context(MARKS)?.unwrap_or_default();
        Ok(Self { vip_binding, drain_limit, marks })
    }

    /// How long connections may go on through an ipvs mode that was left.
    pub(crate) fn leaving_limit(&self) -> Option<Duration> {
        self.drain_limit.unwrap_or(Some(LEAVING_LIMIT))
    }
}

pub(crate) fn settings(from: &IpvsSettings) -> anyhow::Result<Settings> {
    with(from, Variables::read()?)
}

/// The same for those who ask; `None` in other modes.
pub(crate) fn insight(settings: &effective::Settings) -> anyhow::Result<Option<insight::state::Ipvs>> {
    if settings.mode != effective::Mode::Ipvs {
        return Ok(None);
    }
    let chosen = self::settings(&settings.ipvs)?;
    Ok(Some(insight::state::Ipvs {
        scheduler: chosen.scheduler.to_string(),
        strict_arp: chosen.strict_arp,
        exclude_cidrs: chosen.exclude_cidrs.to_vec(),
        vip_binding: chosen.binding.as_str().to_owned(),
        drain_limit_seconds: chosen.drain_limit.map(|limit| limit.as_secs()),
        marks: (chosen.marks != MarkSpace::default()).then(|| chosen.marks.to_string()),
    }))
}

/// And back: the backend's settings of the node that was asked. Timeouts are the kernel's, and not asked for.
pub(crate) fn of_insight(from: &insight::state::Ipvs) -> anyhow::Result<Settings> {
    Ok(Settings {
        scheduler: from.scheduler.parse().context("the state's scheduler")?,
        strict_arp: from.strict_arp,
        exclude_cidrs: from.exclude_cidrs.clone().into(),
        timeouts: Timeouts::default(),
        binding: from.vip_binding.parse().context("the state's vipBinding")?,
        drain_limit: from.drain_limit_seconds.map(Duration::from_secs),
        marks: from
            .marks
            .as_deref()
            .map_or_else(|| Ok(MarkSpace::default()), str::parse)
            .context("the state's marks")?,
    })
}

fn with(from: &IpvsSettings, variables: Variables) -> anyhow::Result<Settings> {
    let scheduler = match &from.scheduler {
        Some(name) => name.parse().context("ipvs.scheduler")?,
        None => Scheduler::RR,
    };
    // The kernel counts whole seconds, and takes 0 for "as it is": less than one becomes one.
    let seconds = |timeout: Option<Duration>| {
        timeout
            .filter(|timeout| !timeout.is_zero())
            .map(|timeout| timeout.as_secs().clamp(1, i32::MAX as u64) as u32)
    };
    let timeouts = Timeouts {
        tcp: seconds(from.tcp_timeout),
        tcp_fin: seconds(from.tcp_fin_timeout),
        udp: seconds(from.udp_timeout),
    };
    Ok(Settings {
        scheduler,
        strict_arp: from.strict_arp,
        exclude_cidrs: from.exclude_cidrs.clone().into(),
        timeouts,
        // The flag goes before the variable, where it does not say the same as without it.
        binding: Some(from.vip_binding)
            .filter(|binding| *binding != Binding::default())
            .or(variables.vip_binding)
            .unwrap_or_default(),
        drain_limit: variables.drain_limit.flatten(),
        marks: variables.marks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(given: &'static [(&str, &str)]) -> anyhow::Result<Variables> {
        Variables::of(|name| {
            given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_say_what_no_field_can() {
        let none = variables(&[]).expect("good");
        assert_eq!(none.leaving_limit(), Some(LEAVING_LIMIT));
        let some = variables(&[(DRAIN_LIMIT, "90m"), (VIP_BINDING, "addresses")]).expect("good");
        assert_eq!(some.leaving_limit(), Some(Duration::from_secs(5400)));
        assert_eq!(some.vip_binding, Some(Binding::Addresses));
        let marks = variables(&[(MARKS, "0x2a000000/0xff000000")]).expect("good").marks;
        assert_eq!((marks.tag(), marks.mask()), (0x2a00_0000, 0xff00_0000));
        assert_eq!(variables(&[(DRAIN_LIMIT, "0s")]).expect("good").leaving_limit(), None);
        for (name, value) in
            [(DRAIN_LIMIT, "soon"), (DRAIN_LIMIT, "-1h"), (VIP_BINDING, "route"), (MARKS, "0x1/0x0")]
        {
            let error = Variables::of(|known| (known == name).then(|| value.to_owned())).expect_err("bad");
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }

    #[test]
    fn what_is_not_configured_stays_as_the_kernel_has_it() {
        let from = IpvsSettings {
            scheduler: None,
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: Some(Duration::ZERO),
            tcp_fin_timeout: Some(Duration::from_millis(1500)),
            udp_timeout: None,
            vip_binding: Binding::Routes,
        };
        let settings = with(&from, variables(&[]).expect("good")).expect("usable");
        assert_eq!(settings.drain_limit, None);
        assert_eq!(settings.scheduler, Scheduler::RR);
        assert_eq!(settings.timeouts, Timeouts { tcp: None, tcp_fin: Some(1), udp: None });
        let odd = IpvsSettings { scheduler: Some("a-name-much-too-long".to_owned()), ..from };
        assert!(with(&odd, variables(&[]).expect("good")).is_err());
    }
}
