//! Child processes that never outlive us.
//!
//! ```text
//!  agent ──┬─ streamer ──┬─ Xvfb
//!          │             └─ application ── whatever that starts, detached or not
//!          └─ streamer …
//! ```
//!
//! Three kernel features together: every child is told when its parent dies ([`guard`], `PR_SET_PDEATHSIG`); agent
//! and streamer are the "init" of what they started ([`adopt_orphans`], `PR_SET_CHILD_SUBREAPER`), so that a
//! process whose parent died becomes their child instead of getting away; and [`sweep`] kills such foundlings.
//! See prctl(2).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, waitpid};
use tokio::process::{Child, Command};

/// From now on, a descendant whose parent dies becomes a child of this process.
///
/// # Errors
/// Where the kernel has no `PR_SET_CHILD_SUBREAPER` (before 3.4).
pub fn adopt_orphans() -> io::Result<()> {
    // Any pid means "yes" here; the kernel looks only at whether there is one.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Makes `command`'s process the leader of a group of its own, and sends it `signal` when this process's calling
/// thread ends. Spawn from a thread that lives as long as the process: the main one of a single-threaded runtime.
pub fn guard(command: &mut Command, signal: Signal) -> &mut Command {
    let parent = rustix::process::getpid();
    command.process_group(0).kill_on_drop(true);
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the line above; then no signal ever comes.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::other("the parent process is gone"));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made; nothing is allocated unless it fails, and
    // then the child ends without running another program.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(tie)
    }
}

/// Ends a guarded child: SIGTERM to its group, SIGKILL after `grace`. It is gone, and reaped, on return.
///
/// # Errors
/// Where the child can't be waited for.
pub async fn end(child: &mut Child, grace: Duration) -> io::Result<()> {
    signal_group(child, Signal::TERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        signal_group(child, Signal::KILL);
    }
    child.wait().await?;
    Ok(())
}

/// Sends `signal` to a guarded child's process group; nothing happens where the child was reaped already.
pub fn signal_group(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(pid) {
        // The group may have ended by itself in between.
        let _ = kill_process_group(pid, signal);
    }
}

/// Kills and reaps every child of this process that is not in `ours`: processes that were adopted. Their own
/// children become ours as they die, so this goes on until none is left, for two seconds at most. Gives how many
/// were killed.
pub async fn sweep(ours: &BTreeSet<u32>) -> usize {
    let mut killed = BTreeSet::new();
    for _ in 0..100 {
        let foundlings = sweep_once(ours);
        if foundlings.is_empty() {
            break;
        }
        killed.extend(foundlings);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    killed.len()
}

/// One pass of [`sweep`], and whom it killed: for a program that starts children while it sweeps, and so must
/// name anew for each pass which ones are its own. An empty answer means that none is left.
pub fn sweep_once(ours: &BTreeSet<u32>) -> Vec<u32> {
    let mut foundlings = children_of_self();
    foundlings.retain(|pid| !ours.contains(pid));
    for foundling in foundlings.iter().filter_map(|raw| pid(*raw)) {
        let _ = kill_process(foundling, Signal::KILL);
        let _ = waitpid(Some(foundling), WaitOptions::NOHANG);
    }
    foundlings
}

/// The living processes that have this variable in the environment that they were started with, but for this one: a
/// mark that a process's own children bear too, whatever session they moved to. Those of other users can't be seen.
pub fn with_variable(name: &str, value: &OsStr) -> Vec<u32> {
    let mut wanted = format!("{name}=").into_bytes();
    wanted.extend_from_slice(value.as_bytes());
    let has_it = |pid: &u32| {
        // A zombie's environment is empty.
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == wanted))
    };
    let others = processes().into_iter().filter(|pid| *pid != std::process::id());
    others.filter(has_it).collect()
}

/// Sends `signal` to each of these processes.
pub fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|raw| pid(*raw)) {
        // It may have ended by itself in between.
        let _ = kill_process(pid, signal);
    }
}

/// Reaps those of these processes that are children of this one and have ended, so that they don't stay as zombies.
pub fn reap(pids: &[u32]) {
    for pid in pids.iter().filter_map(|raw| pid(*raw)) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Reaps adopted processes that ended by themselves, so that they don't stay as zombies.
pub fn reap_adopted(ours: &BTreeSet<u32>) {
    for raw in children_of_self() {
        if let Some(pid) = pid(raw).filter(|_| !ours.contains(&raw)) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

/// The process IDs whose parent is this process, zombies included.
fn children_of_self() -> Vec<u32> {
    let own = std::process::id();
    let is_child = |pid: &u32| parent_of(*pid) == Some(own);
    processes().into_iter().filter(is_child).collect()
}

/// The IDs of all processes.
fn processes() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The parent from `/proc/<pid>/stat`: the second field after the command's closing bracket (proc(5)).
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guarded_child_and_what_it_left_behind_end() {
        adopt_orphans().unwrap();
        let mut command = Command::new("sh");
        // The inner shell detaches a sleeper into a session of its own, then ends.
        command.args([
            "-c",
            "setsid sleep 1000 & setsid sh -c 'sleep 1001 & sleep 0.1' & exec sleep 1002",
        ]);
        let mut child = guard(&mut command, Signal::KILL).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        end(&mut child, Duration::from_secs(5)).await.unwrap();
        assert!(sweep(&BTreeSet::new()).await >= 2);
        assert_eq!(children_of_self(), Vec::<u32>::new());
    }

    #[tokio::test]
    async fn processes_are_found_by_a_mark_that_their_children_bear_too() {
        let mark = format!("mark-{}", std::process::id());
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 1003 & sleep 1004"]);
        let mut child = guard(command.env("PENSTOCK_TEST", &mark), Signal::KILL)
            .spawn()
            .unwrap();
        let marked = |value: &str| with_variable("PENSTOCK_TEST", OsStr::new(value));
        while marked(&mark).len() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(marked("mark-"), Vec::<u32>::new());
        signal_all(&marked(&mark), Signal::KILL);
        child.wait().await.unwrap();
        while !marked(&mark).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_killed_after_the_grace() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; while :; do sleep 0.05; done"]);
        let mut child = guard(&mut command, Signal::KILL).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        end(&mut child, Duration::from_millis(200)).await.unwrap();
        assert_eq!(
            child
                .try_wait()
                .unwrap()
                .and_then(|s| std::os::unix::process::ExitStatusExt::signal(&s)),
            Some(9)
        );
    }
}
