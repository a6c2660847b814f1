//! QEMU's command line. Pure: from the description of a VM to the arguments.

use hearth_api::ids::VmId;
use hearth_guest::PORT_NAME;

use super::folder::disk_file;
use crate::VmShape;
use crate::network::INSIDE;

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// What QEMU may never do again once it runs: start programs, gain rights, change its priorities, use outdated calls.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Takes the last rights from a process that is "root" in the VM network's user namespace, before QEMU starts: a QEMU that
/// was taken over must not be able to change the packet rules around it.
pub(super) const WITHOUT_RIGHTS: [&str; 5] = [
    "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
    "--",
];

/// What the machine's memory is called.
const MEMORY: &str = "mem";

/// Most the translated code of one VM may take, MiB: without it QEMU takes up to an eighth of the host's memory.
const TCG_CACHE_MIB: u32 = 256;

/// All that can be emulated, but for two promises that byte-wise string instructions are fast. They are where hardware runs them;
/// emulated, the kernel clears and copies every page a byte at a time because of them (writing 200 MiB to memory takes 3.0 s with
/// them, 1.3 s without; touching 200 MiB 3.0 s and 0.7 s).
const TCG_PROCESSOR: &str = "max,-erms,-fsrm";

/// How the guest's processor is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// Hardware, with a processor model that booted when it was tried.
    Kvm { cpu: String },
    /// Software.
    Tcg,
}

impl Accelerator {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Kvm { .. } => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// `-accel … -cpu …`.
    pub(super) fn arguments(&self) -> [String; 4] {
        let (accelerator, cpu) = match self {
            Self::Kvm { cpu } => ("kvm".to_owned(), cpu.clone()),
            Self::Tcg => (
                format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}"),
                TCG_PROCESSOR.to_owned(),
            ),
        };
        ["-accel".into(), accelerator, "-cpu".into(), cpu]
    }
}

/// The value after `-name`: tells this VM's process, and this installation's processes, from all others.
pub(super) fn process_name(installation: &str, id: &VmId) -> String {
    format!("{}{id}", name_prefix(installation))
}

/// What all of this installation's process names start with.
pub(super) fn name_prefix(installation: &str) -> String {
    format!("hearth/{installation}/")
}

/// The words every QEMU of ours starts with, whatever it is for.
pub(super) fn base(accelerator: &Accelerator) -> Vec<String> {
    let fixed = [
        PROGRAM,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-sandbox",
        SANDBOX,
        "-machine",
        // q35 because microvm hangs in early boot on a busy host (it cannot calibrate its clock). Nothing a server in the
        // cloud has no use for: each device less is a device less to break out of.
        "q35,usb=off,vmport=off,smm=off,hpet=off,graphics=off,i8042=off,sata=off,smbus=off",
    ];
    fixed
        .iter()
        .map(|&word| word.to_owned())
        .chain(accelerator.arguments())
        .collect()
}

/// What a VM is made of, with paths as QEMU sees them.
#[derive(Debug)]
pub(super) struct Spec<'a> {
    pub(super) installation: &'a str,
    pub(super) id: &'a VmId,
    pub(super) shape: VmShape,
    pub(super) accelerator: &'a Accelerator,
    /// Full digest of the image.
    pub(super) image: &'a str,
    /// The VM's folder inside.
    pub(super) folder: &'a str,
    /// File name of the kernel in the image.
    pub(super) kernel: &'a str,
    /// Kernel command line.
    pub(super) kernel_arguments: &'a str,
    /// Where the memory lies.
    pub(super) memory: Memory,
    /// The frozen layers between the image and the VM's own, the lowest first.
    pub(super) layers: Vec<String>,
    /// Its own layers above those, by number; the last is written to.
    pub(super) disks: &'a [usize],
    pub(super) start: Start,
}

/// Where a VM's memory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nowhere but in memory.
    Anonymous,
    /// In a file of its own, which always holds what the guest sees: can be frozen.
    Own(String),
    /// In a template's file, of which it copies every page that it writes to.
    Shared {
        path: String,
        /// Where in the file it begins.
        at: u64,
    },
}

/// How a VM comes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    /// It boots.
    Boot,
    /// It waits for a file of saved devices, and is then paused, as the VM was when they were saved.
    Restore,
}

/// What QEMU calls the VM's own disk layer after so many times of putting another one above it.
pub(super) fn disk_node(generation: usize) -> String {
    format!("disk-{generation}")
}

/// The whole command.
pub(super) fn arguments(wanted: &Spec<'_>) -> Vec<String> {
    let Spec {
        installation,
        id,
        shape,
        accelerator,
        image,
        folder,
        kernel,
        kernel_arguments,
        memory,
        layers,
        disks,
        start,
    } = wanted;
    let image = image_inside(image);
    let mut arguments: Vec<String> = WITHOUT_RIGHTS.iter().map(|&word| word.to_owned()).collect();
    arguments.extend(base(accelerator));
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    add("-name", process_name(installation, id));
    add("-smp", shape.vcpus.to_string());
    add("-m", format!("{}M", shape.memory_mib));
    let backend = |path: &str, how: &str| {
        let size = shape.memory_mib;
        format!("memory-backend-file,id={MEMORY},size={size}M,mem-path={path},{how}")
    };
    match memory {
        Memory::Anonymous => {}
        Memory::Own(path) => add("-object", backend(path, "share=on")),
        // The file is opened for reading only: not even a QEMU that was taken over can change a template.
        Memory::Shared { path, at: 0 } => add("-object", backend(path, "share=off,readonly=on,rom=off")),
        Memory::Shared { path, at } => {
            let how = format!("offset={at},share=off,readonly=on,rom=off");
            add("-object", backend(path, &how));
        }
    }
    if *memory != Memory::Anonymous {
        add("-machine", format!("memory-backend={MEMORY}"));
    }
    add("-kernel", format!("{image}/{kernel}"));
    add("-initrd", format!("{image}/initrd"));
    add("-append", (*kernel_arguments).to_owned());
    // The image is shared by all VMs and only read.
    add(
        "-blockdev",
        format!("driver=file,node-name=image-file,filename={image}/rootfs.ext4,read-only=on"),
    );
    add(
        "-blockdev",
        "driver=raw,node-name=image,file=image-file,read-only=on".into(),
    );
    let mut below = "image".to_owned();
    for (index, path) in layers.iter().enumerate() {
        let file = format!("driver=file,node-name=layer-{index}-file,filename={path},read-only=on");
        add("-blockdev", file);
        let layer =
            format!("driver=qcow2,node-name=layer-{index},file=layer-{index}-file,backing={below},read-only=on");
        add("-blockdev", layer);
        below = format!("layer-{index}");
    }
    let (&top, lower) = disks.split_last().unwrap_or((&0, &[]));
    // Left by a checkpoint that failed.
    for &number in lower {
        let node = disk_node(number);
        let path = format!("{folder}/{}", disk_file(number));
        add(
            "-blockdev",
            format!("driver=file,node-name={node}-file,filename={path},read-only=on"),
        );
        add(
            "-blockdev",
            format!("driver=qcow2,node-name={node},file={node}-file,backing={below},read-only=on"),
        );
        below = node;
    }
    let (file, top) = (disk_file(top), disk_node(top));
    // `no-flush`: a VM's disk is deleted with the VM and never survives the host, so waiting until the host's disk has
    // it buys nothing and makes every package installation slow. `unmap`: what the guest deletes is given back.
    add(
        "-blockdev",
        format!("driver=file,node-name={top}-file,filename={folder}/{file},cache.no-flush=on,discard=unmap"),
    );
    add(
        "-blockdev",
        format!(
            "driver=qcow2,node-name={top},file={top}-file,backing={below},cache.no-flush=on,discard=unmap,detect-zeroes=unmap"
        ),
    );
    // A full host disk stops the VM, which loses nothing: the probe resumes it when there is room again. Every other
    // error is the guest's to see.
    add(
        "-device",
        format!("virtio-blk-pci,id=root,drive={top},serial=hearth-root,werror=enospc,rerror=report"),
    );
    // The VM network around this process decides what the guest may reach. No IPv6: the uplink carries none, and a guest
    // that has an address would try it first.
    add("-netdev", "user,id=net,ipv6=off".into());
    // No `guest_announce`: QEMU's own network needs no word that a fork is there, and under emulation each fork would translate a
    // seventh more of its kernel for it.
    add(
        "-device",
        "virtio-net-pci,netdev=net,romfile=,guest_announce=off".into(),
    );
    add("-device", "virtio-rng-pci".into());
    add("-device", "virtio-serial-pci".into());
    add(
        "-chardev",
        format!("socket,id=agent,path={folder}/run/agent.sock,server=on,wait=off"),
    );
    add("-device", format!("virtserialport,chardev=agent,name={PORT_NAME}"));
    add(
        "-chardev",
        format!("file,id=console,path={folder}/console.log,append=on"),
    );
    add("-serial", "chardev:console".into());
    add(
        "-chardev",
        format!("socket,id=monitor,path={folder}/run/qmp.sock,server=on,wait=off"),
    );
    add("-mon", "chardev=monitor,mode=control".into());
    if *start == Start::Restore {
        // Not at once: that the memory is there already can only be said through the monitor.
        add("-incoming", "defer".into());
        arguments.push("-S".into());
    }
    arguments
}

/// An image's folder as QEMU sees it.
pub(super) fn image_inside(digest: &str) -> String {
    format!("{INSIDE}/images/{digest}")
}
