//! One client's question and its answer, written as it is found: neither side ever holds all of it.

use std::{collections::BTreeSet, io, mem, sync::Arc, time::Duration};

use insight::state::{API_VERSION, Facts, Filter, Header, Mode, Served, Settings, Versions, Writer};
use proxy_core::{
    look::Look,
    model::{Family, ServiceName},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::oneshot,
    time::timeout,
};

use super::{
    Clocks, PROTOCOL, Refusal, Request, Sources,
    look::{self, Overview, Seen},
};
use crate::{
    engine::mailbox::{Ask, NotAsked},
    settings::{effective, environment, feature_gates::Feature, version},
};

/// A question is one short line.
const LONGEST_REQUEST: u64 = 4096;
/// How long a client may take to say what it wants, and to take each piece of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the engine may be busy writing. A first sync of a large cluster takes that long on a slow machine.
const ENGINE: Duration = Duration::from_secs(20);
/// So much is collected before it is sent.
const PIECE: usize = 64 << 10;
/// So many names are looked at between two pieces.
const NAMES: usize = 256;
/// So often other claimants of addresses are joined by theirs.
const MOST_ROUNDS: usize = 4;

/// Reads the question and answers it.
pub(super) async fn answer(mut stream: UnixStream, sources: Arc<Sources>) -> io::Result<()> {
    let (reader, writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    timeout(PATIENCE, reader.read_line(&mut line)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let mut sink = Sink { to: writer };
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(request) if request.protocol == PROTOCOL => request,
        Ok(request) => {
            return sink
                .refuse(&format!("protocol {} is not spoken here, only {PROTOCOL}", request.protocol))
                .await;
        }
        Err(error) => return sink.refuse(&format!("the question is not understood: {error}")).await,
    };
    let reading = Reading { sources: &sources, filter: Arc::new(request.state) };
    match reading.begin().await {
        Ok(begun) => reading.state(begun, &mut sink).await,
        Err(refusal) => sink.refuse(&refusal.0).await,
    }
}

/// Where the answer goes.
struct Sink<W> {
    to: W,
}

impl<W: tokio::io::AsyncWrite + Unpin> Sink<W> {
    async fn send(&mut self, piece: &mut Vec<u8>, least: usize) -> io::Result<()> {
        if piece.len() > least {
            timeout(PATIENCE, self.to.write_all(piece)).await.map_err(|_| io::ErrorKind::TimedOut)??;
            piece.clear();
        }
        Ok(())
    }

    async fn refuse(&mut self, why: &str) -> io::Result<()> {
        let line = serde_json::json!({ "kind": "Failed", "error": why });
        self.send(&mut format!("{line}\n").into_bytes(), 0).await
    }
}

struct Reading<'a> {
    sources: &'a Sources,
    filter: Arc<Filter>,
}

/// What the first looks said.
struct Begun {
    header: Header,
    /// Sorted.
    names: Vec<ServiceName>,
}

impl Reading<'_> {
    /// One look at one family's engine.
    async fn look<T: Send + 'static>(
        &self,
        family: Family,
        see: impl FnOnce(&dyn Look) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let ask = Ask::new(move |engine| {
            // Whoever asked may have gone.
            if !sender.is_closed() {
                drop(sender.send(see(engine)));
            }
        });
        self.sources.engines.look(family, ask).map_err(|error| match error {
            NotAsked::Busy => Refusal(format!("the {family} engine: {error}; ask again in a moment")),
            NotAsked::Nobody => Refusal(format!("the {family} engine has ended")),
        })?;
        match timeout(ENGINE, receiver).await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(_)) => Err(Refusal(format!("the {family} engine has ended"))),
            Err(_) => Err(Refusal(format!(
                "the {family} engine has been writing to the kernel for {} s and has not come to the question; ask again",
                ENGINE.as_secs()
            ))),
        }
    }

    async fn begin(&self) -> Result<Begun, Refusal> {
        let mut served = Vec::new();
        let mut names = BTreeSet::new();
        let mut first: Option<Overview> = None;
        let clocks = Clocks::read();
        for family in &self.sources.families {
            let (family, filter) = (*family, self.filter.clone());
            let mut overview =
                self.look(family, move |engine| look::overview(engine, family, &filter)).await?;
            names.extend(mem::take(&mut overview.names));
            let standing = overview.standing;
            served.push(Served {
                family,
                waiting: standing.map_or(0, |standing| standing.waiting),
                queued_since: standing.and_then(|standing| standing.queued_since).map(|at| clocks.time(at)),
                full_sync_owed: standing.and_then(|standing| standing.full).map(str::to_owned),
                failures: standing.map_or(0, |standing| standing.failures),
            });
            first.get_or_insert(overview);
        }
        let overview = first.ok_or_else(|| Refusal("no family is served".to_owned()))?;
        let header = self.header(&overview, served, clocks);
        Ok(Begun { header, names: names.into_iter().collect() })
    }

    fn header(&self, overview: &Overview, families: Vec<Served>, clocks: Clocks) -> Header {
        let settings = self.sources.settings.borrow().clone();
        Header {
            api_version: API_VERSION.to_owned(),
            node: self.sources.node.clone(),
            taken: clocks.today,
            mode: match settings.mode {
                effective::Mode::Nftables => Mode::Nftables,
                effective::Mode::Iptables => Mode::Iptables,
                effective::Mode::Ipvs => Mode::Ipvs,
            },
            versions: Versions {
                switchyard: version::OWN.to_owned(),
                kubernetes: version::COMPATIBLE.to_owned(),
            },
            facts: Facts {
                service_cidrs: overview.facts.service_cidrs.to_vec(),
                node_ips: overview.facts.node_ips.to_vec(),
                interface_addresses: overview.facts.interface_addresses.to_vec(),
                zone: overview.node.zone.as_deref().map(str::to_owned),
            },
            allow_service_external_ips: settings.feature_gates.enabled(Feature::AllowServiceExternalIPs),
            environment: Settings::of(&overview.settings),
            localhost_v6_node_ports: environment::listens_on_localhost(&settings),
            ipvs: self.sources.ipvs.clone(),
            configuration: settings.document.clone(),
            families,
            filter: (*self.filter).clone(),
            anonymised: false,
        }
    }

    /// Everything, piece by piece.
    async fn state<W: tokio::io::AsyncWrite + Unpin>(
        &self,
        Begun { header, mut names }: Begun,
        sink: &mut Sink<W>,
    ) -> io::Result<()> {
        let mut writer = Writer::begin(Vec::new(), &header)?;
        let mut known: BTreeSet<ServiceName> = BTreeSet::new();
        for _ in 0..MOST_ROUNDS {
            let mut others = BTreeSet::new();
            for some in names.chunks(NAMES) {
                let some: Arc<[ServiceName]> = some.into();
                let all = match self.of_all_families(&some).await {
                    Ok(all) => all,
                    Err(refusal) => {
                        let mut rest = writer.fail(&refusal.0)?;
                        return sink.send(&mut rest, 0).await;
                    }
                };
                self.write(&some, all, &mut writer, &mut others)?;
                sink.send(writer.get_mut(), PIECE).await?;
            }
            known.extend(names);
            // Of one Service alone it could not be told who has its addresses.
            names = others.difference(&known).cloned().collect();
            if self.filter.service.is_none() || names.is_empty() {
                break;
            }
        }
        self.sources.recent.all().into_iter().try_for_each(|sync| writer.sync(sync))?;
        let mut rest = writer.end()?;
        sink.send(&mut rest, 0).await
    }

    async fn of_all_families(&self, names: &Arc<[ServiceName]>) -> Result<Vec<(Family, Vec<Seen>)>, Refusal> {
        let mut all = Vec::new();
        for family in &self.sources.families {
            let (family, mut seen, mut from) = (*family, Vec::new(), 0);
            while from < names.len() {
                let names = names.clone();
                let (more, looked_at) =
                    self.look(family, move |engine| look::some(engine, family, &names[from..])).await?;
                seen.extend(more);
                from += looked_at;
            }
            all.push((family, seen));
        }
        Ok(all)
    }

    fn write(
        &self,
        names: &[ServiceName],
        all: Vec<(Family, Vec<Seen>)>,
        writer: &mut Writer<Vec<u8>>,
        others: &mut BTreeSet<ServiceName>,
    ) -> io::Result<()> {
        let clocks = Clocks::read();
        let mut all: Vec<_> =
            all.into_iter().map(|(family, seen)| (family, seen.into_iter().peekable())).collect();
        for name in names {
            let mut of_families = Vec::new();
            for (family, seen) in &mut all {
                of_families.extend(seen.next_if(|seen| seen.name == *name).map(|seen| (*family, seen)));
            }
            let service = of_families.iter().find_map(|(_, seen)| seen.service.as_deref());
            let slices = || of_families.iter().flat_map(|(_, seen)| &seen.slices);
            if !self.filter.wants(service, slices()) {
                continue;
            }
            if let Some(service) = service {
                writer.service(service)?;
            }
            slices().try_for_each(|slice| writer.slice(slice))?;
            for (family, seen) in &of_families {
                seen.installed(*family).map_or(Ok(()), |installed| writer.installed(installed))?;
                seen.aside(*family, clocks).map_or(Ok(()), |aside| writer.aside(aside))?;
                seen.conflicts(*family).try_for_each(|conflict| writer.conflict(conflict))?;
                others.extend(seen.lost.iter().map(|lost| lost.winner.clone()));
            }
        }
        Ok(())
    }
}
