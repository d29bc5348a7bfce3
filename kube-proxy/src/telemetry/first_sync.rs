//! Where the time of the first sync goes: waiting for lists, decoding them, planning, encoding, waiting for the kernel.
//!
//! Services and EndpointSlices are listed at the same time, and the engine begins when both are there: what counts is
//! the list that took longer.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::telemetry::metrics;

/// An object with the time that parsing it took.
#[derive(Debug, Clone)]
pub(crate) struct Timed<K> {
    pub(crate) object: K,
    parsing: Duration,
}

/// How long the slowest of the first lists took.
#[derive(Debug, Clone, Default)]
pub(crate) struct FirstLists(Arc<Mutex<Duration>>);

/// One of the first lists.
#[derive(Debug)]
pub(crate) struct Listing {
    all: FirstLists,
    /// `None` once it is complete.
    begun: Option<Instant>,
    decoding: Duration,
}

impl FirstLists {
    /// A list is asked for now.
    pub(crate) fn begin(&self) -> Listing {
        Listing { all: self.clone(), begun: Some(now()), decoding: Duration::ZERO }
    }
}

impl Listing {
    /// Makes of a listed object what the engine takes, which is part of decoding it.
    pub(crate) fn decode<K, T>(&mut self, listed: Timed<K>, translate: impl FnOnce(K) -> T) -> T {
        let begun = now();
        let translated = translate(listed.object);
        self.decoding += listed.parsing + begun.elapsed();
        translated
    }

    /// The list is complete; those that follow later are not counted.
    pub(crate) fn complete(&mut self) {
        let Some(took) = self.begun.take().map(|begun| begun.elapsed()) else { return };
        let mut longest = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if took >= *longest {
            *longest = took;
            metrics::first_lists(took.saturating_sub(self.decoding), self.decoding);
        }
    }
}

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Timed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let begun = now();
        let object = K::deserialize(deserializer)?;
        Ok(Self { object, parsing: begun.elapsed() })
    }
}

impl<K: kube::Resource> kube::Resource for Timed<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &K::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &K::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &K::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &K::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        self.object.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.object.meta_mut()
    }
}

#[expect(clippy::disallowed_methods, reason = "measures where the time goes")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::{thread::sleep, time::Duration};

    use serde::{Deserialize, Deserializer};

    use super::{FirstLists, Timed};
    use crate::telemetry::metrics::tests::recorded;

    const PARSING: Duration = Duration::from_millis(30);
    const TRANSLATING: Duration = Duration::from_millis(50);
    const WAITING: Duration = Duration::from_millis(400);

    /// Takes a known time to parse.
    #[derive(Debug)]
    struct Slow;

    impl<'de> Deserialize<'de> for Slow {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            sleep(PARSING);
            <()>::deserialize(deserializer).map(|()| Self)
        }
    }

    fn figure(text: &str, phase: &str) -> f64 {
        let name = format!("switchyard_first_sync_seconds{{phase=\"{phase}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.expect("the phase is shown").parse().expect("a number")
    }

    #[test]
    fn the_slowest_list_counts_with_the_time_that_decoding_took_told_apart() {
        let text = recorded(|| {
            let lists = FirstLists::default();
            let (mut quick, mut slow) = (lists.begin(), lists.begin());
            quick.complete();
            let listed: Timed<Slow> = serde_json::from_str("null").expect("it parses");
            slow.decode(listed, |Slow| sleep(TRANSLATING));
            sleep(WAITING);
            slow.complete();
            sleep(Duration::from_millis(100));
            // A later list is of no first sync.
            slow.complete();
        });
        let (list, decode) = (figure(&text, "list"), figure(&text, "decode"));
        assert!((0.08..0.3).contains(&decode), "decoding took {decode} s, not 0.08");
        assert!((0.4..0.48 + 0.3).contains(&list), "waiting took {list} s, not 0.4");
    }
}
