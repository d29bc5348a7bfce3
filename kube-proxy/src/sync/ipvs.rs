//! The ipvs section of the configuration as the backend takes it.

use std::time::Duration;

use anyhow::Context;
use backend_ipvs::Settings;
use ipvs_netlink::{Scheduler, Timeouts};

use crate::settings::effective::IpvsSettings;

pub(crate) fn settings(from: &IpvsSettings) -> anyhow::Result<Settings> {
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
        binding: from.vip_binding,
        ..Settings::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_configured_stays_as_the_kernel_has_it() {
        let from = IpvsSettings {
            scheduler: None,
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: Some(Duration::ZERO),
            tcp_fin_timeout: Some(Duration::from_millis(1500)),
            udp_timeout: None,
            vip_binding: backend_ipvs::Binding::Routes,
        };
        let settings = settings(&from).expect("usable");
        assert_eq!(settings.scheduler, Scheduler::RR);
        assert_eq!(settings.timeouts, Timeouts { tcp: None, tcp_fin: Some(1), udp: None });
        let odd = IpvsSettings { scheduler: Some("a-name-much-too-long".to_owned()), ..from };
        assert!(super::settings(&odd).is_err());
    }
}
