//! Templates on the disk, without VMs.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn facts() -> Facts {
    Facts {
        parent: None,
        labels: BTreeMap::from([("step".into(), "base".into())]),
        image: "image".into(),
        environment: "environment".into(),
        shape: VmShape {
            vcpus: 1,
            memory_mib: 1,
            disk_gib: 1,
        },
        qemu: "0".into(),
        agent_version: "0".into(),
        paused_ms: 7,
        below: Vec::new(),
        memory_at: None,
        kept: true,
    }
}

fn begin(templates: &Templates, folder: &Path, key: &CheckpointKey) -> Making {
    let mut making = templates.begin(key).unwrap();
    fs::write(making.path(RAM), [1; 10_000]).unwrap();
    fs::write(making.path(STATE), "state").unwrap();
    let disk = folder.join("disk.qcow2");
    // The last one may be there, and can be read only.
    drop(fs::remove_file(&disk));
    fs::write(&disk, "disk").unwrap();
    making.add_disk(&disk).unwrap();
    making
}

fn fault(result: Result<(), DriverError>) -> String {
    let error = result.unwrap_err();
    match error.checkpoint_fault() {
        Some(CheckpointFault::Damaged { what, .. }) => what.clone(),
        other => panic!("{error:?}: {other:?}"),
    }
}

#[test]
fn a_template_is_whole_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key: CheckpointKey = "00112233445566778899".parse().unwrap();
    let store = folder.path().join("templates");
    let templates = Templates::open(store.clone(), VmUser::Same).unwrap();
    drop(begin(&templates, folder.path(), &key));
    assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "given up");
    let making = begin(&templates, folder.path(), &key);
    // Another driver opens the folder meanwhile.
    Templates::open(store.clone(), VmUser::Same).unwrap();
    assert_eq!(templates.keys().unwrap(), [], "not before it is whole");
    let manifest = templates.finish(making, facts()).unwrap();
    assert_eq!(templates.keys().unwrap(), std::slice::from_ref(&key));
    assert_eq!(templates.read(&key).unwrap(), manifest);
    assert_eq!(templates.info(&manifest).labels["step"], "base");
    templates.check(&manifest, CheckDepth::Full).unwrap();
    assert!(
        folder.path().join("disk.qcow2").exists(),
        "the VM's own name for it stays"
    );
    // What a crash leaves.
    for name in [format!("{MAKING_PREFIX}{key}"), format!("{REMOVING_PREFIX}{key}")] {
        fs::create_dir(store.join(&name)).unwrap();
        fs::write(store.join(&name).join(RAM), "half").unwrap();
    }
    Templates::open(store.clone(), VmUser::Same).unwrap();
    assert_eq!(fs::read_dir(&store).unwrap().count(), 1);
    templates.remove(&key).unwrap();
    templates.remove(&key).unwrap();
    assert_eq!(fs::read_dir(&store).unwrap().count(), 0);
    let error = templates.read(&key).unwrap_err();
    assert_eq!(error.checkpoint_fault(), Some(&CheckpointFault::Missing { key }));
}

#[test]
fn what_an_older_version_has_left_open_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let key: CheckpointKey = "00112233445566778899".parse().unwrap();
    let store = folder.path().join("templates");
    let user = VmUser::detect(None);
    let group = user.owner().unwrap_or_else(|| nix::unistd::getegid().as_raw());
    let (folder_mode, file_mode) = match user.owner() {
        Some(_) => (0o710, 0o440),
        None => (0o700, 0o400),
    };
    let wanted = |name: &str| match name {
        "" => folder_mode,
        RAM | STATE | "disk-0.qcow2" => file_mode,
        _ => 0o600,
    };
    let names = ["", RAM, STATE, "disk-0.qcow2", MANIFEST, USED];
    let look = || {
        for name in names {
            let found = fs::metadata(store.join(key.as_str()).join(name)).unwrap();
            assert_eq!(
                format!("{:o}", found.mode() & 0o7777),
                format!("{:o}", wanted(name)),
                "{name}"
            );
            if wanted(name) != 0o600 {
                assert_eq!(found.gid(), group, "{name}");
            }
        }
        assert_eq!(fs::metadata(&store).unwrap().mode() & 0o7777, folder_mode);
    };
    let templates = Templates::open(store.clone(), user.clone()).unwrap();
    let manifest = templates
        .finish(begin(&templates, folder.path(), &key), facts())
        .unwrap();
    look();
    // As they were before.
    let us = nix::unistd::getegid().as_raw();
    for name in names {
        let path = store.join(key.as_str()).join(name);
        let mode = if name.is_empty() { 0o755 } else { 0o444 };
        std::os::unix::fs::chown(&path, None, Some(us)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(&store, Permissions::from_mode(0o711)).unwrap();
    let templates = Templates::open(store.clone(), user).unwrap();
    look();
    templates.check(&manifest, CheckDepth::Full).unwrap();
    templates.touch(&key).unwrap();
}

#[test]
fn every_kind_of_damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let key: CheckpointKey = "00112233445566778899".parse().unwrap();
    let templates = Templates::open(folder.path().join("templates"), VmUser::Same).unwrap();
    let path = |name: &str| templates.path(&key).join(name);
    let make = || {
        templates
            .finish(begin(&templates, folder.path(), &key), facts())
            .unwrap()
    };
    for name in [RAM, STATE, "disk-0.qcow2"] {
        let manifest = make();
        let before = fs::metadata(path(name)).unwrap().modified().unwrap();
        fs::set_permissions(path(name), Permissions::from_mode(0o600)).unwrap();
        let mut bytes = fs::read(path(name)).unwrap();
        bytes[2] ^= 1;
        fs::write(path(name), &bytes).unwrap();
        assert!(fault(templates.check(&manifest, CheckDepth::Quick)).contains("written to"));
        // Rotten without a trace: only the checksum knows.
        File::options()
            .append(true)
            .open(path(name))
            .unwrap()
            .set_modified(before)
            .unwrap();
        templates.check(&manifest, CheckDepth::Quick).unwrap();
        assert!(fault(templates.check(&manifest, CheckDepth::Full)).contains(&format!("{name}: its checksum")));
        let manifest = make();
        fs::set_permissions(path(name), Permissions::from_mode(0o600)).unwrap();
        File::options()
            .write(true)
            .open(path(name))
            .unwrap()
            .set_len(1)
            .unwrap();
        assert!(fault(templates.check(&manifest, CheckDepth::Quick)).contains("1 bytes instead of"));
        let manifest = make();
        fs::remove_file(path(name)).unwrap();
        assert!(fault(templates.check(&manifest, CheckDepth::Quick)).starts_with(name));
    }
    make();
    fs::remove_file(path(MANIFEST)).unwrap();
    assert!(fault(templates.read(&key).map(drop)).contains("manifest.json: it is gone"));
    fs::write(path(MANIFEST), "{").unwrap();
    assert!(fault(templates.read(&key).map(drop)).contains("manifest.json"));
}

#[test]
fn damage_below_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (below, above): (CheckpointKey, CheckpointKey) = (
        "00112233445566778899".parse().unwrap(),
        "ff112233445566778899".parse().unwrap(),
    );
    let templates = Templates::open(folder.path().join("templates"), VmUser::Same).unwrap();
    let first = templates
        .finish(begin(&templates, folder.path(), &below), facts())
        .unwrap();
    let facts = Facts {
        parent: Some(below.clone()),
        below: first.chain.clone(),
        ..facts()
    };
    fs::remove_file(folder.path().join("disk.qcow2")).unwrap();
    let second = templates
        .finish(begin(&templates, folder.path(), &above), facts)
        .unwrap();
    assert!(second.lies_on().all(|key| *key == below));
    templates.check(&second, CheckDepth::Full).unwrap();
    templates.remove(&below).unwrap();
    assert!(fault(templates.check(&second, CheckDepth::Quick)).contains(&format!("{below}/disk-0.qcow2")));
}
