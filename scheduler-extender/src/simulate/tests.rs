//! Small traces, replayed.

use std::path::Path;

use penstock_core::gpu_node::Capacity;
use penstock_core::units::EncoderUnits;

use super::cluster::{Cluster, Host, Job};
use super::policy::Policy;
use super::replay::{self, Trace};
use super::sampling::Sampling;
use super::scheduler::Outcome;
use super::{openb, plot, sessions};

#[test]
fn a_job_of_several_gpus_takes_idle_ones_of_one_machine() {
    let mut cluster = machines(2, 4);
    let part = job(1, 10, 300);
    start(&mut cluster, 0, &part, 0, &[1]);
    let three = job(3, 10, 1000);
    let four = job(4, 10, 1000);
    let pod = Cluster::pod(&three, 1).unwrap();
    assert!(cluster.fits(0, &three, &pod) && !cluster.fits(0, &four, &pod) && cluster.fits(1, &four, &pod));
    assert_eq!(cluster.idle(0).collect::<Vec<_>>(), [0, 2, 3]);
}

#[test]
fn a_machine_without_cpu_left_takes_nothing() {
    let mut cluster = machines(1, 2);
    start(&mut cluster, 0, &job(1, 60, 300), 0, &[0]);
    assert!(cluster.passes(0, &job(1, 40, 300)) && !cluster.passes(0, &job(1, 41, 300)));
}

#[test]
fn what_ends_gives_back_all_it_took() {
    let mut cluster = machines(1, 4);
    let host = cluster.machines[0].host;
    start(&mut cluster, 0, &job(2, 30, 1000), 0, &[0, 1]);
    start(&mut cluster, 1, &job(1, 30, 400), 0, &[2]);
    assert_eq!(cluster.units(), (2400, 4000));
    cluster.end(0);
    cluster.end(1);
    assert_eq!((cluster.units(), cluster.machines[0].host), ((0, 4000), host));
}

#[test]
fn the_same_seed_gives_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let trace = small_trace(folder.path());
    let run = |seed| replay::all(&trace, &Policy::ALL, &[seed], Sampling::All).unwrap();
    let packed =
        |outcomes: Vec<Vec<Outcome>>| outcomes.iter().map(|of| of[0].packed_percent).collect::<Vec<_>>();
    let (first, again, other) = (packed(run(1)), packed(run(1)), packed(run(2)));
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(
        first.iter().all(|packed| (50.0..=100.0).contains(packed)),
        "{first:?}"
    );
}

#[test]
fn a_trace_that_names_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.csv");
    std::fs::write(
        &file,
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\nx,1,1,1,500,T4|P100\n",
    )
    .unwrap();
    let error = openb::read_jobs(&file).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains("T4|P100"), "{error}");
}

#[test]
fn a_generated_trace_is_served_and_held_against_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    for out in ["one.csv", "two.csv"] {
        let args = format!("x --concurrent 40 --minutes 20 --out {}", file(out).display());
        sessions::generate(&parse(&args)).unwrap();
    }
    assert_eq!(
        std::fs::read(file("one.csv")).unwrap(),
        std::fs::read(file("two.csv")).unwrap()
    );
    let pools = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/session-cluster.csv");
    let trace = Trace::Sessions {
        pools: sessions::read_pools(&pools).unwrap(),
        sessions: sessions::read(&file("one.csv")).unwrap(),
    };
    let outcomes = replay::all(&trace, &[Policy::Ours], &[1], Sampling::Adaptive).unwrap();
    // So few are all served, which is the most that can be.
    let of_bound = outcomes[0][0].of_bound_percent.unwrap();
    assert!((99.0..100.5).contains(&of_bound), "{of_bound}");
    assert!(outcomes[0][0].failed_percent.abs() < 1e-9);
}

#[test]
fn a_plot_has_a_line_for_each_policy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plot.svg");
    let curve = vec![(0.0, 0.0), (50.0, 50.0), (100.0, 90.0)];
    plot::draw(&file, &[("ours", &curve), ("fgd", &curve)]).unwrap();
    let drawn = std::fs::read_to_string(file).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("ours") && drawn.contains("fgd"));
    assert_eq!(
        drawn.matches("stroke=\"#0072B2\"").count(),
        2,
        "the line and its label"
    );
}

#[derive(clap::Parser)]
struct Generate {
    #[command(flatten)]
    args: sessions::GenerateArgs,
}

fn parse(line: &str) -> sessions::GenerateArgs {
    <Generate as clap::Parser>::try_parse_from(line.split(' '))
        .unwrap()
        .args
}

fn small_trace(folder: &Path) -> Trace {
    let (nodes, pods) = (folder.join("nodes.csv"), folder.join("pods.csv"));
    let rows: String = (0..12).map(|i| format!("n-{i},64000,262144,4,G2\n")).collect();
    std::fs::write(&nodes, format!("sn,cpu_milli,memory_mib,gpu,model\n{rows}")).unwrap();
    let rows = "a,8000,1000,1,810,\nb,12000,1000,1,1000,\nc,4000,1000,1,320,\nd,32000,1000,2,1000,\ne,6000,1000,0,0,\n";
    std::fs::write(
        &pods,
        format!("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n{rows}"),
    )
    .unwrap();
    Trace::Openb {
        nodes: openb::read_nodes(&nodes).unwrap(),
        jobs: openb::read_jobs(&pods).unwrap(),
        demand_percent: 130,
    }
}

fn machines(count: usize, gpus: usize) -> Cluster {
    let host = Host {
        cpu_milli: 100,
        memory_mib: 100,
        pods: 110,
    };
    let capacity = Capacity {
        nvenc: EncoderUnits(1000),
        ..Capacity::default()
    };
    Cluster::new((0..count).map(|i| (format!("n-{i}"), host, gpus, capacity))).unwrap()
}

fn job(gpus: u32, cpu_milli: u64, units: u32) -> Job {
    Job {
        cpu_milli,
        memory_mib: 1,
        gpus,
        of_each: [units, 0, 0],
    }
}

fn start(cluster: &mut Cluster, number: u64, job: &Job, machine: usize, gpus: &[usize]) {
    let pod = Cluster::pod(job, number).unwrap();
    cluster.start(number, job, &pod, machine, gpus).unwrap();
}
