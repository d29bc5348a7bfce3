//! How many objects of each kind are in the kernel, counted in what the administrator's tools print.

/// Objects by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) tables: usize,
    pub(crate) chains: usize,
    pub(crate) rules: usize,
    pub(crate) sets: usize,
    pub(crate) maps: usize,
    pub(crate) elements: usize,
    pub(crate) virtual_servers: usize,
    pub(crate) destinations: usize,
    pub(crate) addresses: usize,
}

impl Census {
    /// Each kind by the measure that it is reported as.
    pub(crate) fn by_measure(&self) -> [(&'static str, usize); 9] {
        [
            ("objects-tables", self.tables),
            ("objects-chains", self.chains),
            ("objects-rules", self.rules),
            ("objects-sets", self.sets),
            ("objects-maps", self.maps),
            ("objects-elements", self.elements),
            ("objects-virtual-servers", self.virtual_servers),
            ("objects-destinations", self.destinations),
            ("objects-addresses", self.addresses),
        ]
    }

    pub(crate) fn total(&self) -> usize {
        self.by_measure().iter().map(|(_, count)| count).sum()
    }

    /// `nft list ruleset`
    pub(crate) fn count_nft(&mut self, text: &str) {
        let mut in_elements = false;
        for line in text.lines().map(str::trim) {
            in_elements |= line.starts_with("elements = {");
            if in_elements {
                // Every element but the last is followed by a comma.
                self.elements += line.matches(", ").count() + usize::from(line.ends_with(','));
                if line.ends_with('}') {
                    self.elements += 1;
                    in_elements = false;
                }
                continue;
            }
            let heads = [
                ("table ", &mut self.tables),
                ("chain ", &mut self.chains),
                ("set ", &mut self.sets),
                ("map ", &mut self.maps),
            ];
            if let Some((_, count)) = heads.into_iter().find(|(word, _)| line.starts_with(*word)) {
                *count += 1;
            } else if is_nft_rule(line) {
                self.rules += 1;
                // A map inside a rule is an object of its own, and holds elements.
                if line.contains(" map {") {
                    self.maps += 1;
                    self.elements += line.matches(" : ").count();
                }
            }
        }
    }

    /// `iptables-save`
    pub(crate) fn count_iptables(&mut self, text: &str) {
        for line in text.lines() {
            match line.as_bytes() {
                [b'*', ..] => self.tables += 1,
                [b':', ..] => self.chains += 1,
                [b'-', b'A', ..] => self.rules += 1,
                _ => {}
            }
        }
    }

    /// `ipvsadm -Ln`
    pub(crate) fn count_ipvs(&mut self, text: &str) {
        let is_server =
            |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind));
        self.virtual_servers += text.lines().filter(is_server).count();
        // The first of these is the heading.
        self.destinations += text.lines().filter(|line| line.starts_with("  -> ")).count().saturating_sub(1);
    }

    /// `ipset save`
    pub(crate) fn count_ipset(&mut self, text: &str) {
        self.sets += text.lines().filter(|line| line.starts_with("create ")).count();
        self.elements += text.lines().filter(|line| line.starts_with("add ")).count();
    }

    /// `ip route show table local dev …`, one a line.
    pub(crate) fn count_routes(&mut self, text: &str) {
        self.addresses += text.lines().filter(|line| !line.trim().is_empty()).count();
    }
}

fn is_nft_rule(line: &str) -> bool {
    let properties =
        ["type ", "typeof ", "flags ", "size ", "comment ", "gc-interval ", "timeout ", "counter "];
    !line.is_empty()
        && line != "}"
        && !line.starts_with('#')
        && !properties.iter().any(|word| line.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::Census;

    #[test]
    fn objects_of_an_nft_listing_are_counted() {
        let text = "table ip kube-proxy {\n\tcomment \"rules for kube-proxy\"\n\tmap m {\n\t\ttype ipv4_addr : verdict\n\t\tcomment \"x\"\n\
                    \t\telements = { 10.0.0.1 : goto a, 10.0.0.2 : goto b,\n\t\t\t     10.0.0.3 : goto c }\n\t}\n\n\
                    \tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n\n\
                    \tchain a {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
                    \t\tdnat ip addr . port to numgen random mod 2 map { 0 : 10.0.0.1 . 80, 1 : 10.0.0.2 . 80 }\n\t}\n}\n";
        let mut census = Census::default();
        census.count_nft(text);
        let wanted =
            Census { tables: 1, chains: 1, rules: 1, sets: 1, maps: 2, elements: 6, ..Census::default() };
        assert_eq!(census, wanted);
        assert_eq!(census.total(), 12);
    }

    #[test]
    fn objects_of_the_other_tools_are_counted() {
        let mut census = Census::default();
        census.count_iptables("*nat\n:KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -j RETURN\nCOMMIT\n");
        census.count_ipvs(
            "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
             TCP  10.0.0.1:80 rr\n  -> 10.0.0.2:80                  Masq    1      0          0\n  -> 10.0.0.3:80                  Masq    1      0          0\n",
        );
        census.count_ipset(
            "create KUBE-CLUSTER-IP hash:ip,port family inet\nadd KUBE-CLUSTER-IP 10.0.0.1,tcp:80\n",
        );
        census.count_routes("local 10.0.0.1 proto 200 scope host\n\n");
        let wanted = Census {
            tables: 1,
            chains: 1,
            rules: 1,
            virtual_servers: 1,
            destinations: 2,
            sets: 1,
            elements: 1,
            addresses: 1,
            ..Census::default()
        };
        assert_eq!(census, wanted);
    }
}
