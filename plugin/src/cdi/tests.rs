use proptest::prelude::*;

use super::*;

#[test]
fn a_gpu_is_found_by_its_uuid() {
    let node = Node::new(&[("etc/nvidia.yaml", BY_UUID)]);
    assert_eq!(node.find(&gpu(0)), Ok("nvidia.com/gpu=GPU-0".to_owned()));
    assert!(node.read().specs[0].encodes);
}

#[test]
fn where_names_are_indices_the_device_file_tells_which_it_is() {
    // Index 0 is /dev/nvidia1 here: the two count differently.
    let node = Node::new(&[("etc/nvidia.json", BY_INDEX)]);
    assert_eq!(node.find(&gpu(1)), Ok("nvidia.com/gpu=0".to_owned()));
    assert_eq!(node.find(&gpu(0)), Ok("nvidia.com/gpu=1".to_owned()));
}

#[test]
fn nothing_is_guessed() {
    let node = Node::new(&[("etc/nvidia.json", BY_INDEX)]);
    let error = node.find(&gpu(2)).unwrap_err();
    assert!(
        error.contains("names 0, 1, all,") && error.contains("GPU-2"),
        "{error}"
    );
    let unknown = Wanted {
        minor: None,
        ..gpu(0)
    };
    assert!(node.find(&unknown).is_err());
    let error = Node::new(&[]).find(&gpu(0)).unwrap_err();
    assert!(error.contains("nvidia-ctk cdi generate"), "{error}");
}

#[test]
fn a_mig_instance_is_found_by_its_indices_on_the_right_gpu_only() {
    let node = Node::new(&[("run/nvidia.yaml", MIG)]);
    let instance = |minor: u32, own: u32| Wanted {
        uuid: GpuUuid::new("MIG-x").unwrap(),
        minor: Some(minor),
        mig: Some((0, own)),
    };
    assert_eq!(node.find(&instance(0, 1)), Ok("nvidia.com/gpu=0:1".to_owned()));
    let by_type = MIG.replace("'0:", "'mig0:");
    let by_type = Node::new(&[("run/nvidia.yaml", &by_type)]);
    assert_eq!(
        by_type.find(&instance(0, 1)),
        Ok("nvidia.com/gpu=mig0:1".to_owned())
    );
    assert!(by_type.find(&instance(3, 1)).is_err());
    assert!(node.find(&instance(3, 1)).is_err());
    assert!(node.find(&instance(0, 2)).is_err());
    assert!(node.find(&gpu(0)).is_err(), "a GPU is not one of its instances");
}

#[test]
fn what_programs_generated_counts_more_than_what_people_wrote() {
    let node = Node::new(&[("etc/nvidia.json", BY_INDEX), ("run/nvidia.yaml", BY_UUID)]);
    assert_eq!(node.find(&gpu(0)), Ok("nvidia.com/gpu=GPU-0".to_owned()));
}

#[test]
fn a_name_given_twice_in_one_directory_is_no_name() {
    let node = Node::new(&[("etc/a.yaml", BY_UUID), ("etc/b.yaml", BY_UUID)]);
    let error = node.find(&gpu(0)).unwrap_err();
    assert!(error.contains("remove all but one"), "{error}");
}

#[test]
fn bad_files_are_skipped_with_a_reason_and_others_devices_are_none_of_ours() {
    let other = r#"{"cdiVersion":"0.5.0","kind":"vendor.com/net","devices":[{"name":"0"}]}"#;
    let node = Node::new(&[
        ("etc/broken.json", "{"),
        ("etc/broken.yaml", "kind: [\n"),
        ("etc/list.yaml", "- a\n"),
        ("etc/nvidia.yaml", BY_UUID),
        ("etc/other.json", other),
        ("etc/readme.txt", "{"),
    ]);
    std::fs::create_dir(node.0.path().join("etc/directory.json")).unwrap();
    let specs = node.read();
    let skipped: Vec<_> = specs
        .skipped
        .iter()
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        skipped,
        ["broken.json", "broken.yaml", "directory.json", "list.yaml"]
    );
    assert_eq!(specs.specs.len(), 1);
}

#[test]
fn the_mode_decides_and_automatic_takes_what_there_is() {
    let with = Node::new(&[("etc/nvidia.yaml", BY_UUID)]).read();
    let without = Specs::default();
    let cdi = Injection::Cdi(QualifiedName::gpu("GPU-0"));
    assert_eq!(choose(Inject::Auto, &with, &gpu(0)), Ok(cdi.clone()));
    assert_eq!(choose(Inject::Cdi, &with, &gpu(0)), Ok(cdi));
    assert_eq!(choose(Inject::Env, &with, &gpu(0)), Ok(Injection::Environment));
    assert_eq!(
        choose(Inject::Auto, &without, &gpu(0)),
        Ok(Injection::Environment)
    );
    assert_eq!(choose(Inject::Cdi, &without, &gpu(0)), Err(NotFound::NoSpec));
}

#[test]
fn files_are_read_again_only_when_one_has_come_changed_or_gone() {
    let node = Node::new(&[("etc/nvidia.yaml", BY_UUID)]);
    let path = |name: &str| node.0.path().join(name);
    let mut kept = Kept::new(&[path("etc"), path("run")]);
    let mut found = |gpu: &Wanted| kept.now().find(gpu).map(|name| name.to_string()).ok();
    assert_eq!(found(&gpu(0)).as_deref(), Some("nvidia.com/gpu=GPU-0"));
    std::fs::write(path("run/nvidia.json"), BY_INDEX).unwrap();
    assert_eq!(
        found(&gpu(1)).as_deref(),
        Some("nvidia.com/gpu=0"),
        "one has come"
    );
    // As generators do it: another file in its place. It is of the same size.
    std::fs::write(path("run/next"), BY_INDEX.replace("nvidia1", "nvidia7")).unwrap();
    std::fs::rename(path("run/next"), path("run/nvidia.json")).unwrap();
    assert_eq!(found(&gpu(1)), None, "one has changed");
    std::fs::write(path("run/nvidia.json"), format!("{BY_INDEX}\n")).unwrap();
    assert_eq!(
        found(&gpu(1)).as_deref(),
        Some("nvidia.com/gpu=0"),
        "one was written to"
    );
    std::fs::remove_file(path("run/nvidia.json")).unwrap();
    assert_eq!(found(&gpu(1)), None, "one has gone");
    // What is read anew is elsewhere in memory than what it replaces.
    let read = kept.now().specs.as_ptr();
    assert_eq!(kept.now().specs.as_ptr(), read);
    std::fs::write(path("etc/nvidia.yaml"), format!("{BY_UUID}\n")).unwrap();
    assert_ne!(kept.now().specs.as_ptr(), read);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}", json: bool) {
        let name = if json { "etc/x.json" } else { "etc/x.yaml" };
        let _ = Node::new(&[(name, &text)]).find(&gpu(0));
    }

    #[test]
    fn no_half_of_a_specification_makes_the_reader_panic(end in 0..BY_UUID.len()) {
        let half = BY_UUID.get(..end).unwrap_or_default();
        let _ = Node::new(&[("etc/x.yaml", half)]).find(&gpu(0));
    }
}

struct Node(tempfile::TempDir);

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etc", "run"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self(directory)
    }

    fn read(&self) -> Specs {
        read(&[self.0.path().join("etc"), self.0.path().join("run")])
    }

    fn find(&self, gpu: &Wanted) -> Result<String, String> {
        let found = self.read().find(gpu);
        found
            .map(|name| name.to_string())
            .map_err(|error| error.to_string())
    }
}

fn gpu(minor: u32) -> Wanted {
    Wanted {
        uuid: GpuUuid::new(format!("GPU-{minor}")).unwrap(),
        minor: Some(minor),
        mig: None,
    }
}

const BY_UUID: &str = "
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: GPU-0
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
          hostPath: /run/nvidia/driver/dev/nvidia0
        - path: /dev/dri/renderD128
  - name: all
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
containerEdits:
  env:
    - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
    - path: /dev/nvidiactl
    - path: /dev/nvidia-uvm
  mounts:
    - hostPath: /usr/lib/x86_64-linux-gnu/libnvidia-encode.so.580.65.06
      containerPath: /usr/lib/x86_64-linux-gnu/libnvidia-encode.so.580.65.06
      options: [ro, nosuid, nodev, rbind, rprivate]
";

const BY_INDEX: &str = r#"{
	"cdiVersion": "0.3.0",
	"kind": "nvidia.com/gpu",
	"devices": [
		{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1"}]}},
		{"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
		{"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}, {"path": "/dev/nvidia1"}]}}
	]
}"#;

const MIG: &str = "
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: '0:0'
    containerEdits:
      deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia-caps/nvidia-cap12}, {path: /dev/nvidia-caps/nvidia-cap13}]
  - name: '0:1'
    containerEdits:
      deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia-caps/nvidia-cap21}, {path: /dev/nvidia-caps/nvidia-cap22}]
";
