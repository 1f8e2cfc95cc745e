//! A cluster to replay a trace on: the extender's own [`Index`], and beside it what only the trace knows.
//!
//! ```text
//!   job ──► scheduler's own filters      CPU, memory, number of pods, sums over the GPUs; a sample of the nodes
//!       ──► Index: filter, fit           ONE GPU with room; for a job of several GPUs: that many idle ones
//!       ──► policy                       which node, which GPU
//!       ──► Index: apply_pod, then the GpuNode shows it
//! ```

use std::collections::HashMap;

use penstock_core::gpu_node::{Allocation, Capacity, Gpu, GpuNodeSpec, Health, Measured};
use penstock_core::ids::{BadId, GpuUuid, NodeName, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::ContainerKind;

use crate::index::{Amounts, Index, Pod, Room, Settings, Verdict};

/// What a machine has beside its GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    /// Thousandths of a CPU.
    pub(crate) cpu_milli: u64,
    /// MiB.
    pub(crate) memory_mib: u64,
    /// Pods that its kubelet takes.
    pub(crate) pods: u32,
}

/// What one job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Job {
    /// Thousandths of a CPU.
    pub(crate) cpu_milli: u64,
    /// MiB.
    pub(crate) memory_mib: u64,
    /// How many GPUs; several mean whole ones.
    pub(crate) gpus: u32,
    /// Of each of them: encoder units, SM percent, blocks of memory. A trace without encoders counts thousandths of a GPU
    /// as encoder units.
    pub(crate) of_each: [u32; 3],
}

/// A node of the cluster.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: NodeName,
    /// What is free of it.
    pub(crate) host: Host,
    spec: GpuNodeSpec,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) index: Index,
    pub(crate) machines: Vec<Machine>,
    running: HashMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    job: Job,
    machine: usize,
    pods: Vec<(usize, PodUid)>,
}

impl Cluster {
    /// A cluster of idle machines, each with GPUs of one capacity.
    ///
    /// # Errors
    /// [`BadId`] for a name that no node can have.
    pub(crate) fn new(
        machines: impl IntoIterator<Item = (String, Host, usize, Capacity)>,
    ) -> Result<Self, BadId> {
        let mut cluster = Self {
            index: Index::new(Settings::default()),
            machines: Vec::new(),
            running: HashMap::new(),
        };
        for (number, (name, host, gpus, capacity)) in machines.into_iter().enumerate() {
            let gpus = (0..gpus)
                .map(|gpu| idle_gpu(number, gpu, capacity))
                .collect::<Result<_, _>>()?;
            let name = NodeName::new(name)?;
            let spec = GpuNodeSpec {
                gpus,
                ..GpuNodeSpec::default()
            };
            cluster.index.apply_gpu_node(&name, &spec);
            cluster.machines.push(Machine { name, host, spec });
        }
        Ok(cluster)
    }

    /// What is free of each GPU of a machine.
    pub(crate) fn rooms(&self, machine: usize) -> &[Room] {
        self.index.rooms(&self.machines[machine].name)
    }

    /// Whether a machine passes the scheduler's own filters, which add up what is free on its GPUs.
    pub(crate) fn passes(&self, machine: usize, job: &Job) -> bool {
        let host = &self.machines[machine].host;
        let fits = host.cpu_milli >= job.cpu_milli && host.memory_mib >= job.memory_mib && host.pods > 0;
        let free = || {
            self.rooms(machine)
                .iter()
                .fold(Amounts::NONE, |sum, room| sum.plus(room.free))
        };
        fits && (job.gpus == 0 || free().holds(job.sum()))
    }

    /// Whether a machine has room for a job: on ONE GPU, or on as many idle GPUs as the job asks for.
    pub(crate) fn fits(&self, machine: usize, job: &Job, pod: &Pod) -> bool {
        match job.gpus {
            0 => true,
            1 => {
                let name = std::slice::from_ref(&self.machines[machine].name);
                self.index.filter(pod, name) == [Verdict::Fits]
            }
            several => self.idle(machine).count() >= several as usize,
        }
    }

    /// The idle GPUs of a machine.
    pub(crate) fn idle(&self, machine: usize) -> impl Iterator<Item = usize> {
        let rooms = self.rooms(machine).iter().enumerate();
        rooms
            .filter(|(_, room)| room.free == room.capacity)
            .map(|(gpu, _)| gpu)
    }

    /// The pod that stands for a job in the index.
    ///
    /// # Errors
    /// [`BadId`] never: numbers are good names.
    pub(crate) fn pod(job: &Job, number: u64) -> Result<Pod, BadId> {
        let resources = job.resources();
        Ok(Pod {
            uid: PodUid::new(format!("job-{number}"))?,
            namespace: "trace".to_owned(),
            name: format!("job-{number}"),
            node: None,
            gpu: None,
            containers: vec![(ContainerKind::App, resources)],
            priority: 0,
            deletion_cost: 0,
            labels: std::collections::BTreeMap::new(),
            terminal: false,
            deleting: false,
        })
    }

    /// Puts a job there: its pod is bound, and the GpuNode shows it.
    pub(crate) fn start(
        &mut self,
        number: u64,
        job: &Job,
        pod: &Pod,
        machine: usize,
        gpus: &[usize],
    ) -> Result<(), BadId> {
        let mut pods = Vec::new();
        for (part, gpu) in gpus.iter().enumerate() {
            // A job of several GPUs is as many pods to the index, which knows of one GPU per pod only.
            let uid = PodUid::new(if part == 0 {
                pod.uid.to_string()
            } else {
                format!("{}-{part}", pod.uid)
            })?;
            let mut pod = Pod {
                uid: uid.clone(),
                ..pod.clone()
            };
            pod.gpu = Some(self.machines[machine].spec.gpus[*gpu].uuid.clone());
            pod.node = Some(self.machines[machine].name.clone());
            self.machines[machine].spec.gpus[*gpu]
                .allocated
                .push(allocation(&pod, job));
            self.index.apply_pod(pod);
            pods.push((*gpu, uid));
        }
        self.machines[machine].host.take(job);
        self.show(machine);
        self.running.insert(
            number,
            Running {
                job: *job,
                machine,
                pods,
            },
        );
        Ok(())
    }

    /// A job has ended. Nothing happens to one that never started.
    pub(crate) fn end(&mut self, number: u64) {
        let Some(Running { job, machine, pods }) = self.running.remove(&number) else {
            return;
        };
        for (gpu, uid) in pods {
            self.machines[machine].spec.gpus[gpu]
                .allocated
                .retain(|held| held.pod_uid != uid);
            self.index.delete_pod(&uid);
        }
        self.machines[machine].host.give_back(&job);
        self.show(machine);
    }

    /// A job that found no place is given up.
    ///
    /// # Errors
    /// [`BadId`] never: numbers are good names.
    pub(crate) fn drop_pending(&mut self, number: u64) -> Result<(), BadId> {
        self.index.delete_pod(&PodUid::new(format!("job-{number}"))?);
        Ok(())
    }

    fn show(&mut self, machine: usize) {
        let machine = &self.machines[machine];
        self.index.apply_gpu_node(&machine.name, &machine.spec);
    }

    /// Encoder units that are taken, and all there are.
    pub(crate) fn units(&self) -> (u64, u64) {
        let rooms = (0..self.machines.len()).flat_map(|machine| self.rooms(machine));
        rooms.fold((0, 0), |(taken, all), room| {
            let capacity = u64::from(room.capacity.encoder());
            (taken + capacity - u64::from(room.free.encoder()), all + capacity)
        })
    }
}

impl Job {
    /// What it takes of each of its GPUs.
    pub(crate) fn resources(&self) -> Resources {
        let [nvenc, mps, vram] = self.of_each;
        Resources {
            nvenc: penstock_core::units::EncoderUnits(nvenc),
            mps: penstock_core::units::SmPercent(mps),
            vram: penstock_core::units::VramBlocks(vram),
        }
    }

    /// What it takes of each of its GPUs, as the index counts.
    pub(crate) fn amounts(&self) -> Amounts {
        let [nvenc, mps, vram] = self.of_each;
        Amounts([nvenc, mps, vram, u32::from(mps > 0)])
    }

    fn sum(&self) -> Amounts {
        (0..self.gpus).fold(Amounts::NONE, |sum, _| sum.plus(self.amounts()))
    }

    /// Its encoder units on all GPUs.
    pub(crate) fn units(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.of_each[0])
    }
}

impl Host {
    fn take(&mut self, job: &Job) {
        self.cpu_milli -= job.cpu_milli;
        self.memory_mib -= job.memory_mib;
        self.pods -= 1;
    }

    fn give_back(&mut self, job: &Job) {
        self.cpu_milli += job.cpu_milli;
        self.memory_mib += job.memory_mib;
        self.pods += 1;
    }
}

fn idle_gpu(machine: usize, gpu: usize, capacity: Capacity) -> Result<Gpu, BadId> {
    Ok(Gpu {
        // Their order is that of their names.
        uuid: GpuUuid::new(format!("GPU-{machine:05}-{gpu:02}"))?,
        model: String::new(),
        capacity,
        encoder_engine_units: None,
        allocated: Vec::new(),
        measured: Measured::default(),
        encoder_session_limit: None,
        health: Health::default(),
    })
}

fn allocation(pod: &Pod, job: &Job) -> Allocation {
    let resources = job.resources();
    Allocation {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        nvenc: resources.nvenc,
        mps: resources.mps,
        vram: resources.vram,
        mps_clients: u32::from(resources.mps.0 > 0),
    }
}
