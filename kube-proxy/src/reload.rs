//! Follows the configuration file: applies what can be applied, and ends the process for the rest.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    settings::{
        self, Command,
        differences::{Differences, differences},
        effective::Settings,
        file_watch::ConfigWatch,
    },
    telemetry::metrics,
};

/// How often the file is looked at.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// The file says something that only a new process can follow.
#[derive(Debug)]
pub(crate) struct NeedsRestart {
    fields: Vec<String>,
}

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "content of the proxy server's configuration file was updated: {} cannot be applied without a restart",
            self.fields.join(", ")
        )
    }
}

impl std::error::Error for NeedsRestart {}

/// Why a change that could be applied by its kind is not.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Only a new process can follow these fields, as things are.
    Restart(Vec<String>),
    /// It does not fit this node.
    Unfit(String),
}

/// What a change of the configuration acts on.
pub(crate) trait Target {
    /// Whether it can be applied now. What is in force does not change.
    fn check(&self, settings: &Settings) -> Result<(), Refusal>;
    /// It was checked, and is what others see by now.
    fn apply(&self, settings: &Settings);
}

/// Looks at the file for ever, and has every change that can be applied applied; the new settings are in `current` by
/// then. `arguments` are the command line, which some fields of the file yield to.
pub(crate) async fn follow(
    arguments: &[String],
    current: &watch::Sender<Arc<Settings>>,
    interval: Duration,
    target: &impl Target,
) -> NeedsRestart {
    let Some(path) = current.borrow().config_file.clone() else {
        return std::future::pending().await;
    };
    let mut file = ConfigWatch::new(&path);
    loop {
        tokio::time::sleep(interval).await;
        if !file.poll() {
            continue;
        }
        // Not borrowed while it is replaced.
        let before = Arc::clone(&current.borrow());
        let outcome = reread(arguments, &before.document);
        let outcome = outcome.and_then(|(settings, found)| {
            if !found.restart.is_empty() {
                return Ok(Found::Restart(found.restart));
            }
            if found.live.is_empty() {
                return Ok(Found::Nothing);
            }
            match target.check(&settings) {
                Ok(()) => Ok(Found::Live(Arc::new(settings), found.live)),
                Err(Refusal::Restart(fields)) => Ok(Found::Restart(fields)),
                Err(Refusal::Unfit(reason)) => Err(reason),
            }
        });
        match outcome {
            Ok(Found::Restart(fields)) => {
                metrics::config_changed("restart");
                metrics::config_waits_for_restart(fields.len());
                return NeedsRestart { fields };
            }
            Ok(Found::Nothing) => metrics::config_in_force(true),
            Ok(Found::Live(settings, fields)) => {
                metrics::config_changed("applied");
                metrics::config_in_force(true);
                tracing::info!(?fields, "The configuration file changed; applied");
                current.send_replace(Arc::clone(&settings));
                target.apply(&settings);
            }
            // Half a file, or a mistake: what is in force stays, and the next change is looked at again.
            Err(error) => {
                metrics::config_changed("invalid");
                metrics::config_in_force(false);
                tracing::error!(path = %path.display(), %error, "The configuration file changed and is not valid; it is not applied");
            }
        }
    }
}

/// What a change of the file comes to.
enum Found {
    /// Nothing that means something here.
    Nothing,
    Live(Arc<Settings>, Vec<String>),
    Restart(Vec<String>),
}

fn reread(arguments: &[String], before: &serde_json::Value) -> Result<(Settings, Differences), String> {
    let loaded = settings::load(arguments).map_err(|error| error.to_string())?;
    for notice in loaded.notices {
        tracing::info!("{notice}");
    }
    match loaded.command {
        Command::Run(settings) => {
            let found = differences(before, &settings.document);
            Ok((*settings, found))
        }
        _ => Err("the command line does not ask to run".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        sync::{Mutex, PoisonError},
    };

    use super::*;

    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n";
    const STEP: Duration = Duration::from_millis(5);

    struct Rig {
        path: PathBuf,
        arguments: Vec<String>,
        current: watch::Sender<Arc<Settings>>,
        applied: Mutex<Vec<u32>>,
    }

    impl Target for Rig {
        fn check(&self, settings: &Settings) -> Result<(), Refusal> {
            match settings.oom_score_adj {
                666 => Err(Refusal::Unfit("not on this node".to_owned())),
                667 => Err(Refusal::Restart(vec!["oomScoreAdj".to_owned()])),
                _ => Ok(()),
            }
        }

        fn apply(&self, settings: &Settings) {
            self.applied().push(settings.logging.verbosity);
        }
    }

    impl Rig {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("switchyard-reload-{name}-{}", std::process::id()));
            fs::write(&path, HEAD).expect("a file");
            let arguments = vec![format!("--config={}", path.display()), "--hostname-override=n".to_owned()];
            let Command::Run(settings) = settings::load(&arguments).expect("good arguments").command else {
                panic!("not to be run");
            };
            let (current, _) = watch::channel(Arc::new(*settings));
            Self { path, arguments, current, applied: Mutex::default() }
        }

        /// As a ConfigMap volume does it: another file takes the name.
        fn replace(&self, body: &str) {
            let new = self.path.with_extension("new");
            fs::write(&new, format!("{HEAD}{body}")).expect("a file");
            fs::rename(&new, &self.path).expect("a replacement");
        }

        async fn follow(&self) -> NeedsRestart {
            follow(&self.arguments, &self.current, STEP, self).await
        }

        fn applied(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
            self.applied.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Runs the follower until so many changes were applied.
        async fn until_applied(&self, count: usize) {
            let enough = async {
                while self.applied().len() < count {
                    tokio::time::sleep(STEP).await;
                }
            };
            tokio::select! {
                end = self.follow() => panic!("{end}"),
                () = enough => {}
                () = tokio::time::sleep(Duration::from_secs(60)) => panic!("nothing was applied"),
            }
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.path);
        }
    }

    #[tokio::test]
    async fn what_can_be_applied_is_applied_and_shown() {
        let rig = Rig::new("live");
        let change = async {
            tokio::time::sleep(STEP * 4).await;
            rig.replace("logging: { verbosity: 4 }\noomScoreAdj: 5\n");
        };
        tokio::join!(rig.until_applied(1), change);
        assert_eq!(*rig.applied(), [4]);
        assert_eq!(rig.current.borrow().oom_score_adj, 5);
        assert_eq!(rig.current.borrow().document["oomScoreAdj"], 5);
    }

    #[tokio::test]
    async fn what_cannot_be_applied_ends_the_process_with_the_reason() {
        let rig = Rig::new("restart");
        let change = async {
            tokio::time::sleep(STEP * 4).await;
            rig.replace("metricsBindAddress: 127.0.0.1:1\nlogging: { verbosity: 4 }\n");
        };
        let (end, ()) = tokio::join!(rig.follow(), change);
        assert_eq!(
            end.to_string(),
            "content of the proxy server's configuration file was updated: metricsBindAddress cannot be applied without a restart"
        );
        assert!(rig.applied().is_empty(), "not half of it");
    }

    #[tokio::test]
    async fn a_mistake_changes_nothing_and_the_next_change_counts() {
        let rig = Rig::new("mistake");
        let change = async {
            tokio::time::sleep(STEP * 4).await;
            rig.replace("oomScoreAdj: 5000\n");
            tokio::time::sleep(STEP * 20).await;
            assert_eq!(rig.current.borrow().oom_score_adj, -999);
            rig.replace("oomScoreAdj: 500\nlogging: { verbosity: 1 }\n");
        };
        tokio::join!(rig.until_applied(1), change);
        assert_eq!(*rig.applied(), [1]);
        assert_eq!(rig.current.borrow().oom_score_adj, 500);
    }

    #[tokio::test]
    async fn what_does_not_fit_this_node_is_not_applied_and_the_next_change_counts() {
        let rig = Rig::new("unfit");
        let change = async {
            tokio::time::sleep(STEP * 4).await;
            rig.replace("oomScoreAdj: 666\n");
            tokio::time::sleep(STEP * 20).await;
            assert_eq!(rig.current.borrow().oom_score_adj, -999, "what others see is what is in force");
            rig.replace("oomScoreAdj: 500\n");
        };
        tokio::join!(rig.until_applied(1), change);
        assert_eq!(rig.current.borrow().oom_score_adj, 500);
    }

    #[tokio::test]
    async fn what_cannot_be_applied_as_things_are_ends_the_process() {
        let rig = Rig::new("not-now");
        let change = async {
            tokio::time::sleep(STEP * 4).await;
            rig.replace("oomScoreAdj: 667\n");
        };
        let (end, ()) = tokio::join!(rig.follow(), change);
        assert!(end.to_string().contains("oomScoreAdj cannot be applied without a restart"), "{end}");
    }

    #[tokio::test]
    async fn without_a_file_there_is_nothing_to_follow() {
        let rig = Rig::new("none");
        let Command::Run(settings) = settings::load(&["--mode=nftables"]).expect("good arguments").command
        else {
            panic!("not to be run");
        };
        rig.current.send_replace(Arc::new(*settings));
        assert!(tokio::time::timeout(STEP * 10, rig.follow()).await.is_err());
        assert!(rig.applied().is_empty());
    }
}
