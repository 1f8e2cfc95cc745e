//! Whose process is it? From a process ID of the host to a pod, by the cgroup that the kubelet put it into.
//!
//! Needs the host's PID namespace: in any other, NVML's numbers mean nothing.

use std::collections::HashMap;
use std::path::PathBuf;

use penstock_core::ids::PodUid;

/// The UID as it stands in a cgroup's name, where systemd's slices have `_` for `-`: a UUID, or 32 hexadecimal digits
/// for a static pod.
fn uid_in_cgroup(text: &str) -> Option<PodUid> {
    let uid = text.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
    let is_uid = digits == 32 && matches!(dashes, 0 | 4) && digits + dashes == uid.len();
    is_uid.then(|| PodUid::new(uid).ok()).flatten()
}

/// The pod in the contents of `/proc/<pid>/cgroup`, for both versions of cgroups and both of the kubelet's
/// drivers:
///
/// ```text
///  systemd    …/kubepods-burstable-pod0c2d…_….slice/cri-containerd-<id>.scope
///  cgroupfs   …/kubepods/burstable/pod0c2d…-…/<id>
/// ```
///
/// Where a cluster runs in a pod of another, the outer pod: it is the one that the node's kubelet knows.
pub(crate) fn pod_of_cgroup(contents: &str) -> Option<PodUid> {
    // A line is `number:controllers:path` (cgroups(7)); a path may have further colons.
    let paths = contents.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().find_map(pod_of_path)
}

fn pod_of_path(path: &str) -> Option<PodUid> {
    let mut below_kubepods = false;
    path.split('/').find_map(|segment| {
        below_kubepods |= segment.contains("kubepods");
        // An older containerd writes `<slice>:cri-containerd:<id>`.
        let slice = segment
            .split(':')
            .next()
            .and_then(|name| name.strip_suffix(".slice"));
        // A slice's name repeats those of the slices that it is in.
        let name = match slice {
            Some(slice) => slice.rsplit('-').next().unwrap_or(slice),
            None => segment,
        };
        let uid = name.strip_prefix("pod").filter(|_| below_kubepods)?;
        uid_in_cgroup(uid)
    })
}

/// Finds pods, and remembers them by process. A process ID that is used again is another process: its start
/// time tells.
#[derive(Debug)]
pub(crate) struct PodFinder {
    proc: PathBuf,
    known: HashMap<(u32, u64), Option<PodUid>>,
    most: usize,
}

impl Default for PodFinder {
    fn default() -> Self {
        Self::new(PathBuf::from("/proc"), MOST_KNOWN)
    }
}

impl PodFinder {
    /// A finder over `proc`, which remembers `most` processes and then begins anew.
    fn new(proc: PathBuf, most: usize) -> Self {
        Self {
            proc,
            known: HashMap::new(),
            most,
        }
    }

    /// The pod of a process; `None` where it is in none, or is gone.
    pub(crate) fn pod_of(&mut self, pid: u32) -> Option<PodUid> {
        let start = self.start_time(pid)?;
        if let Some(pod) = self.known.get(&(pid, start)) {
            return pod.clone();
        }
        let pod = pod_of_cgroup(&self.read(pid, "cgroup")?);
        // Between the two reads it may have become another process.
        if self.start_time(pid)? != start {
            return None;
        }
        if self.known.len() >= self.most {
            self.known.clear();
        }
        self.known.insert((pid, start), pod.clone());
        pod
    }

    /// The 22nd field of `/proc/<pid>/stat` (proc(5)), counted from behind the command's closing bracket.
    fn start_time(&self, pid: u32) -> Option<u64> {
        let stat = self.read(pid, "stat")?;
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.split_whitespace().nth(19)?.parse().ok()
    }

    fn read(&self, pid: u32, file: &str) -> Option<String> {
        std::fs::read_to_string(self.proc.join(pid.to_string()).join(file)).ok()
    }
}

const MOST_KNOWN: usize = 4_096;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const UID: &str = "0c2d3e4f-1a2b-4c3d-8e9f-0123456789ab";
    const UID_: &str = "0c2d3e4f_1a2b_4c3d_8e9f_0123456789ab";
    const STATIC: &str = "5f2d7b7e8a0c4f6e9b1d3c5a7e9f0b2d";

    #[test]
    fn pods_are_found_wherever_kubelets_put_them() {
        let table = [
            // cgroup v2, systemd: burstable, best effort, guaranteed; containerd, CRI-O, Docker
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-ab12.scope\n"
            ),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-ab12.scope/container\n"
            ),
            format!("0::/kubepods.slice/kubepods-pod{UID_}.slice/docker-ab12.scope\n"),
            // cgroup v2, cgroupfs
            format!("0::/kubepods/burstable/pod{UID}/ab12\n"),
            format!("0::/kubepods/pod{UID}/ab12\n"),
            // cgroup v1
            format!(
                "12:memory:/kubepods/besteffort/pod{UID}/ab12\n11:cpu,cpuacct:/kubepods/besteffort/pod{UID}/ab12\n"
            ),
            format!(
                "3:pids:/\n2:cpu:/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-ab12.scope\n1:name=systemd:/x\n"
            ),
            // containerd's older colon form
            format!(
                "0::/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:ab12\n"
            ),
            // kind, in Docker
            format!(
                "0::/docker/77aa/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-ab12.scope\n"
            ),
            format!("0::/docker/77aa/kubelet/kubepods/besteffort/pod{UID}/ab12\n"),
            // seen from another cgroup namespace
            format!("0::/../../kubepods-besteffort-pod{UID_}.slice/cri-containerd-ab12.scope\n"),
            format!("0::/../../../kubepods/burstable/pod{UID}/ab12\n"),
            // a cluster in a pod: the outer pod
            format!(
                "0::/kubepods/pod{UID}/ab12/kubelet/kubepods/pod{}/cd34\n",
                UID.replace('0', "f")
            ),
        ];
        for line in table {
            let found = pod_of_cgroup(&line);
            assert_eq!(found.as_ref().map(PodUid::as_str), Some(UID), "{line}");
        }
        let line = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/x.scope"
        );
        assert_eq!(pod_of_cgroup(&line).unwrap().to_string(), STATIC);
    }

    #[test]
    fn what_is_in_no_pod_has_none() {
        let table = [
            "",
            "0::/\n",
            "0::/init.scope\n",
            "0::/user.slice/user-1000.slice/session-2.scope\n",
            "0::/system.slice/docker-ab12.scope\n",
            "0::/kubepods.slice/kubepods-burstable.slice\n",
            "0::/kubepods/burstable/podman\n",
            "0::/kubepods/burstable/pod1234/ab12\n",
            &format!("0::/machine.slice/pod{UID}\n"), // nobody's kubelet
            &format!("0::/kubepods/pod{UID}0/ab12\n"),
            "no colons",
        ];
        for line in table {
            assert_eq!(pod_of_cgroup(line), None, "{line}");
        }
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let proc = Proc::new();
        let mut finder = proc.finder();
        proc.write(7, 100, &format!("0::/kubepods/pod{UID}/ab\n"));
        assert_eq!(finder.pod_of(7).unwrap().as_str(), UID);
        // Same process: what it was is remembered.
        proc.write(7, 100, "0::/\n");
        assert_eq!(finder.pod_of(7).unwrap().as_str(), UID);
        proc.write(7, 101, "0::/\n");
        assert_eq!(finder.pod_of(7), None);
        assert_eq!(finder.pod_of(8), None, "there is no such process");
        for pid in 10..20 {
            proc.write(pid, 1, "0::/\n");
            finder.pod_of(pid);
            assert!(finder.known.len() <= 2);
        }
    }

    #[test]
    fn the_test_itself_can_be_looked_up() {
        // Wherever it runs, its start time is a number; which pod it is in depends.
        let finder = PodFinder::default();
        assert!(finder.start_time(std::process::id()).is_some());
    }

    /// A `/proc` of our own.
    pub(crate) struct Proc(tempfile::TempDir);

    impl Proc {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(crate) fn finder(&self) -> PodFinder {
            PodFinder::new(self.0.path().to_owned(), 2)
        }

        pub(crate) fn write(&self, pid: u32, start: u64, cgroup: &str) {
            let directory = self.0.path().join(pid.to_string());
            std::fs::create_dir_all(&directory).unwrap();
            let stat = format!("{pid} (a ) b) S 1{} {start} 0 0", " 0".repeat(17));
            std::fs::write(directory.join("stat"), stat).unwrap();
            std::fs::write(directory.join("cgroup"), cgroup).unwrap();
        }
    }
}
