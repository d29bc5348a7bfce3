//! The way to the engine: it keeps the latest of each object, however long the engine is busy with something else.
//!
//! Whoever sends never waits. What is waiting grows with the number of objects that changed, not with how often they
//! did. Each family's engine has a queue of its own, so that neither waits for the other, and gets what concerns it:
//! Services with a cluster IP of the family, slices of the family, and everything about the node.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt, mem,
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxy_core::{
    environment::EnvironmentSettings,
    look::Look,
    model::{Family, Input, Kind, Protocol, ServiceName, SliceName},
    reconciler::Pace,
};

/// What the rest of the process tells the engine.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Input(Input),
    /// The configuration changed in a way that can be applied live. The last one: how often to look for drift.
    Settings(EnvironmentSettings, Pace, Duration),
    /// Flows of this family to these destinations are neither translated nor answered: which should have been?
    Untranslated(Family, HashSet<(Protocol, IpAddr, u16)>),
}

impl From<Input> for Message {
    fn from(input: Input) -> Self {
        Self::Input(input)
    }
}

/// A look at the engine, taken between two syncs. What it does must be short: changes wait for it.
pub(crate) struct Ask(TakesLook);

type TakesLook = Box<dyn FnOnce(&dyn Look) + Send>;

impl Ask {
    /// Whoever wants to know is told by what the closure sends.
    pub(crate) fn new(look: impl FnOnce(&dyn Look) + Send + 'static) -> Self {
        Self(Box::new(look))
    }

    /// Takes the look.
    pub(crate) fn answer(self, engine: &dyn Look) {
        self.0(engine);
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}

/// So many looks wait at most; whoever comes then is turned away.
const MOST_ASKS: usize = 4;

/// Why a look is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAsked {
    /// Enough others wait.
    #[error("{MOST_ASKS} others wait for an answer of the engine already")]
    Busy,
    /// The family is not served here, or the engine has ended.
    #[error("there is no engine")]
    Nobody,
}

/// Of those nobody waits for an answer; a later sweep asks again.
const MOST_UNTRANSLATED: usize = 16_384;

/// Nobody takes messages out any more: the engine has ended.
#[derive(Debug, thiserror::Error)]
#[error("the engine has ended")]
pub(crate) struct Closed;

/// Where messages go in; cheap to clone. The engines end when the last one is gone.
#[derive(Debug)]
pub(crate) struct Mailbox {
    queues: Arc<[(Family, Arc<Shared>)]>,
}

/// Where one family's engine takes its messages out.
#[derive(Debug)]
pub(crate) struct Inbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that holds the lock can panic half way.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue for each family.
pub(crate) fn mailbox(families: &[Family]) -> (Mailbox, Vec<(Family, Inbox)>) {
    let queues: Vec<(Family, Arc<Shared>)> =
        families.iter().map(|family| (*family, Arc::new(Shared::default()))).collect();
    queues.iter().for_each(|(_, shared)| shared.lock().senders = 1);
    let inboxes = queues.iter().map(|(family, shared)| (*family, Inbox(shared.clone()))).collect();
    (Mailbox { queues: queues.into() }, inboxes)
}

impl Mailbox {
    /// Hands a message over, without ever waiting for an engine.
    pub(crate) fn send(&self, message: Message) -> Result<(), Closed> {
        let mut result = Err(Closed);
        for (family, shared) in &*self.queues {
            let mut queue = shared.lock();
            // A family that the machine does not have has no engine.
            if !queue.abandoned {
                result = Ok(());
                if queue.take(*family, &message) {
                    shared.arrived.notify_one();
                }
            }
        }
        result
    }

    /// For those who live as long as the engines do, and must not keep them.
    pub(crate) fn beside(&self) -> Beside {
        Beside(self.queues.clone())
    }
}

/// A way in that keeps nobody.
#[derive(Debug, Clone)]
pub(crate) struct Beside(Arc<[(Family, Arc<Shared>)]>);

impl Beside {
    /// Asks one family's engine which of these it should have translated.
    pub(crate) fn ask(&self, family: Family, destinations: HashSet<(Protocol, IpAddr, u16)>) {
        let message = Message::Untranslated(family, destinations);
        for (_, shared) in self.0.iter().filter(|(of, _)| *of == family) {
            let mut queue = shared.lock();
            if !queue.abandoned && queue.take(family, &message) {
                shared.arrived.notify_one();
            }
        }
    }

    /// Has one family's engine take a look, after what waits already and the sync that this leads to.
    pub(crate) fn look(&self, family: Family, ask: Ask) -> Result<(), NotAsked> {
        let (_, shared) = self.0.iter().find(|(of, _)| *of == family).ok_or(NotAsked::Nobody)?;
        let mut queue = shared.lock();
        if queue.abandoned {
            return Err(NotAsked::Nobody);
        }
        if queue.asks.len() >= MOST_ASKS {
            return Err(NotAsked::Busy);
        }
        queue.asks.push_back(ask);
        shared.arrived.notify_one();
        Ok(())
    }
}

impl Clone for Mailbox {
    fn clone(&self) -> Self {
        self.queues.iter().for_each(|(_, shared)| shared.lock().senders += 1);
        Self { queues: self.queues.clone() }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        for (_, shared) in &*self.queues {
            shared.lock().senders -= 1;
            shared.arrived.notify_one();
        }
    }
}

impl Inbox {
    /// Waits for messages or for somebody who wants to look, for so long at most, and takes out as many messages as this.
    /// Empty: the time is up, or somebody wants to look. `Err`: nobody can send any more, and nothing is left.
    pub(crate) fn receive(&self, wait: Duration, most: usize) -> Result<Vec<Message>, Closed> {
        let queue = self.0.lock();
        let idle = |queue: &mut Queue| queue.waiting.is_empty() && queue.asks.is_empty() && queue.senders > 0;
        let waited = self.0.arrived.wait_timeout_while(queue, wait, idle);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.is_empty() && queue.senders == 0 {
            return Err(Closed);
        }
        Ok(queue.give(most))
    }

    /// One look that is to be taken: the next one has to wait until messages and syncs had their turn.
    pub(crate) fn ask(&self) -> Option<Ask> {
        self.0.lock().asks.pop_front()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        *queue = Queue { abandoned: true, senders: queue.senders, ..Queue::default() };
    }
}

/// What a later message takes the place of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Service(ServiceName),
    Slice(SliceName),
    ServiceCidrs,
    Zone,
    NodeIps,
    InterfaceAddresses,
    Settings,
    Untranslated,
}

/// Messages in the order in which they are to be taken out.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<u64, (Option<Key>, Message)>,
    latest: HashMap<Key, u64>,
    next: u64,
    services: Markers,
    slices: Markers,
    /// Beside the messages: they take the place of nothing, and nothing waits for them.
    asks: VecDeque<Ask>,
    senders: usize,
    abandoned: bool,
}

/// Where the beginning and the end of lists stand.
#[derive(Debug, Default)]
struct Markers {
    /// The list that was begun last is still being read.
    listing: bool,
    /// Its beginning, if that was not taken out yet.
    begun: Option<u64>,
    /// The last complete list that was not taken out yet.
    complete: Option<(u64, u64)>,
}

impl Markers {
    /// The last beginning that still waits.
    fn last(&self) -> Option<u64> {
        self.begun.or_else(|| self.complete.map(|(begun, _)| begun))
    }
}

impl Queue {
    /// Whether there is anything new for this family.
    fn take(&mut self, family: Family, message: &Message) -> bool {
        let input = match message {
            Message::Settings(..) => return self.put(Key::Settings, None, message.clone()),
            Message::Untranslated(of, more) => return *of == family && self.ask(family, more),
            Message::Input(input) => input,
        };
        match input {
            Input::Service(service) => {
                let is_of = service.cluster_ips.iter().any(|addr| Family::of(*addr) == family);
                if is_of {
                    return self.put(
                        Key::Service(service.name.clone()),
                        Some(Kind::Service),
                        message.clone(),
                    );
                }
                // It may have been of this family before. At the end of a list, what was not named goes anyway.
                !self.services.listing && {
                    let gone = Input::ServiceGone(service.name.clone());
                    self.put(Key::Service(service.name.clone()), Some(Kind::Service), gone.into())
                }
            }
            Input::ServiceGone(name) => {
                self.put(Key::Service(name.clone()), Some(Kind::Service), message.clone())
            }
            // The family of a slice cannot change: it would be deleted first.
            Input::Slice(slice) => {
                slice.family == family
                    && self.put(Key::Slice(slice.name.clone()), Some(Kind::Slice), message.clone())
            }
            Input::SliceGone(name) => self.put(Key::Slice(name.clone()), Some(Kind::Slice), message.clone()),
            Input::Listing(kind) => self.begin(*kind, message.clone()),
            Input::Listed(kind) => self.complete(*kind, message.clone()),
            Input::ServiceCidrs(_) => self.put(Key::ServiceCidrs, None, message.clone()),
            Input::Zone(_) => self.put(Key::Zone, None, message.clone()),
            Input::NodeIps(_) => self.put(Key::NodeIps, None, message.clone()),
            Input::InterfaceAddresses(_) => self.put(Key::InterfaceAddresses, None, message.clone()),
        }
    }

    fn markers(&mut self, kind: Kind) -> &mut Markers {
        match kind {
            Kind::Service => &mut self.services,
            Kind::Slice => &mut self.slices,
        }
    }

    /// In the place of an earlier one, unless a list began after that: what is not named since counts as gone.
    fn put(&mut self, key: Key, kind: Option<Kind>, message: Message) -> bool {
        if let Some(at) = self.latest.get(&key).copied() {
            let begun = kind.and_then(|kind| self.markers(kind).last());
            if begun.is_none_or(|begun| begun < at) {
                self.waiting.insert(at, (Some(key), message));
                return true;
            }
            self.waiting.remove(&at);
        }
        self.latest.insert(key.clone(), self.next);
        self.push(Some(key), message);
        true
    }

    fn push(&mut self, key: Option<Key>, message: Message) -> u64 {
        let at = self.next;
        self.next += 1;
        self.waiting.insert(at, (key, message));
        at
    }

    fn begin(&mut self, kind: Kind, message: Message) -> bool {
        let at = self.push(None, message);
        let markers = self.markers(kind);
        markers.listing = true;
        // A list that was begun before and not ended says nothing.
        if let Some(before) = markers.begun.replace(at) {
            self.waiting.remove(&before);
        }
        true
    }

    fn complete(&mut self, kind: Kind, message: Message) -> bool {
        let at = self.push(None, message);
        let markers = self.markers(kind);
        markers.listing = false;
        // Where the beginning was taken out before, an end is all that is left.
        let Some(begun) = markers.begun.take() else { return true };
        // A complete list before this one is out of date.
        if let Some((begun, complete)) = markers.complete.replace((begun, at)) {
            self.waiting.remove(&begun);
            self.waiting.remove(&complete);
        }
        true
    }

    fn ask(&mut self, family: Family, more: &HashSet<(Protocol, IpAddr, u16)>) -> bool {
        let waiting = self.latest.get(&Key::Untranslated).and_then(|at| self.waiting.get_mut(at));
        if let Some((_, Message::Untranslated(_, known))) = waiting {
            let room = MOST_UNTRANSLATED.saturating_sub(known.len());
            known.extend(more.iter().take(room).copied());
            return true;
        }
        let more = more.iter().take(MOST_UNTRANSLATED).copied().collect();
        self.put(Key::Untranslated, None, Message::Untranslated(family, more))
    }

    fn give(&mut self, most: usize) -> Vec<Message> {
        let mut given = Vec::with_capacity(most.min(self.waiting.len()));
        while given.len() < most {
            let Some((at, (key, message))) = self.waiting.pop_first() else { break };
            if let Some(key) = key {
                self.latest.remove(&key);
            }
            for markers in [&mut self.services, &mut self.slices] {
                if markers.begun == Some(at) {
                    markers.begun = None;
                }
                if markers.complete.is_some_and(|(_, end)| end == at) {
                    markers.complete = None;
                }
            }
            given.push(message);
        }
        if self.waiting.is_empty() {
            // A burst leaves no memory behind.
            self.latest = mem::take(&mut self.latest).into_iter().collect();
        }
        given
    }
}

#[cfg(test)]
mod tests;
