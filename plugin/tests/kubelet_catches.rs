//! Whether the stand-in kubelet sees what a device plugin does wrong: each check passes on one that does right, and
//! fails on one with the mistake that it is for.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

mod kubelet;
mod naive;

use std::time::Duration;

use kubelet::{Kubelet, PodSpec, until};
use naive::{Mistake, Naive};
use tempfile::TempDir;

#[tokio::test]
async fn a_plugin_that_does_right_passes_every_check() {
    for check in [Check::OneGpu, Check::StreamsEnd, Check::NothingForgotten] {
        assert_eq!(run(check, None).await, Ok(()), "{check:?}");
    }
}

#[tokio::test]
async fn a_plugin_that_counts_on_one_order_of_resources_is_caught() {
    let wrong = run(Check::OneGpu, Some(Mistake::OneOrder)).await.unwrap_err();
    assert!(wrong.contains("is on several GPUs"), "{wrong}");
}

#[tokio::test]
async fn a_plugin_that_leaves_its_old_streams_open_is_caught() {
    let wrong = run(Check::StreamsEnd, Some(Mistake::OldStreamsGoOn))
        .await
        .unwrap_err();
    assert!(wrong.contains("while its old stream went on"), "{wrong}");
}

#[tokio::test]
async fn a_plugin_that_forgets_at_a_restart_is_caught() {
    let wrong = run(Check::NothingForgotten, Some(Mistake::Forgets))
        .await
        .unwrap_err();
    assert!(wrong.contains("is on several GPUs"), "{wrong}");
}

#[derive(Debug, Clone, Copy)]
enum Check {
    OneGpu,
    StreamsEnd,
    NothingForgotten,
}

/// What the kubelet has to complain of, at the end of the check's story.
async fn run(check: Check, mistake: Option<Mistake>) -> Result<(), String> {
    let node = Node::start(mistake).await;
    match check {
        Check::OneGpu => node.pods_come_and_go().await,
        Check::StreamsEnd => node.kubelet_comes_anew().await,
        Check::NothingForgotten => node.plugin_comes_anew(mistake).await,
    }
}

struct Node {
    directory: TempDir,
    kubelet: Kubelet,
    plugin: Naive,
}

impl Node {
    async fn start(mistake: Option<Mistake>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::start(directory.path(), 11);
        let plugin = Naive::start(directory.path(), mistake).await;
        let node = Self {
            directory,
            kubelet,
            plugin,
        };
        node.until_listed().await;
        node
    }

    async fn until_listed(&self) {
        for resource in naive::RESOURCES {
            self.kubelet
                .until_allocatable(resource, naive::UNITS * naive::GPUS.len())
                .await;
        }
    }

    /// Some of two GPUs' worth of pods, each of which asks for both resources.
    async fn pods_come_and_go(&self) -> Result<(), String> {
        for nth in 0..12 {
            let pod = format!("games/{nth}");
            let ask = naive::RESOURCES.map(|resource| (resource, 4));
            self.kubelet
                .admit(&PodSpec::new(&pod).container("app", &ask))
                .await?;
            self.kubelet.faults()?;
            if nth >= 2 {
                self.kubelet.remove(&format!("games/{}", nth - 2));
            }
        }
        Ok(())
    }

    /// A new `kubelet.sock`, while the old streams could go on.
    async fn kubelet_comes_anew(&self) -> Result<(), String> {
        self.kubelet.replace_socket();
        self.plugin.register_again().await;
        until("both are registered again", || self.kubelet.registrations() == 4).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.kubelet.faults()
    }

    /// A new process of the plugin's, while pods hold all that a GPU has of one resource.
    async fn plugin_comes_anew(self, mistake: Option<Mistake>) -> Result<(), String> {
        let Self {
            directory,
            kubelet,
            plugin,
        } = self;
        let ask = [(naive::RESOURCES[0], naive::UNITS)];
        kubelet
            .admit(&PodSpec::new("games/first").container("app", &ask))
            .await?;
        plugin.end().await;
        let plugin = Naive::start(directory.path(), mistake).await;
        let node = Self {
            directory,
            kubelet,
            plugin,
        };
        node.until_listed().await;
        for nth in 0..4 {
            let ask = naive::RESOURCES.map(|resource| (resource, 3));
            let pod = PodSpec::new(&format!("games/{nth}")).container("app", &ask);
            node.kubelet.admit(&pod).await?;
        }
        node.kubelet.faults()
    }
}
