//! Golden texts of reports, and what machines read of them.

use insight::table::Look;

use super::report::{Finding, Report, Status};

fn report() -> Report {
    Report::of(vec![
        Finding::ok("rights.capabilities", "CAP_NET_ADMIN and CAP_SYS_ADMIN"),
        Finding::ok(
            "kernel.nftables-IPv4",
            "a Service was written, and a connection through it reached its endpoint",
        ),
        Finding::fail(
            "node.settings",
            "net.ipv4.ip_forward is 0: packets to pods and from pods are not forwarded",
            "sysctl -w net.ipv4.ip_forward=1 (and in /etc/sysctl.d)",
        ),
        Finding::warn(
            "hooks.policies",
            "chain <way> of table inet \"fence\" drops & refuses",
            "let pods through",
        ),
    ])
}

fn look(width: usize) -> Look {
    Look { width: Some(width), wide: false, colour: false }
}

#[test]
fn a_report_is_as_bad_as_its_worst_finding() {
    assert_eq!(report().status, Status::Fail);
    assert_eq!(Report::of(vec![Finding::ok("a.b", "c")]).status, Status::Ok);
    assert_eq!(Report::of(vec![]).status, Status::Ok);
    assert_eq!([Status::Ok as u8, Status::Warn as u8, Status::Fail as u8], [0, 1, 2]);
}

#[test]
fn a_report_at_80_and_at_160_columns() {
    crate::verbs::test_state::golden("check-80.txt", &report().text(look(80)));
    crate::verbs::test_state::golden("check-160.txt", &report().text(look(160)));
}

#[test]
fn a_report_as_junit_names_failures_and_escapes_what_xml_knows() {
    let text = report().junit();
    assert!(text.contains("tests=\"4\" failures=\"1\""), "{text}");
    assert!(text.contains("<failure message=\"net.ipv4.ip_forward is 0"), "{text}");
    assert!(text.contains("chain &lt;way&gt; of table inet &quot;fence&quot; drops &amp; refuses"), "{text}");
    assert_eq!(text.matches("<testcase").count(), text.matches("</testcase>").count());
}
