#!/bin/sh
# Runs on the host, in the builder's namespaces, after every package is installed. $1 is the root of the new system.
# Everything that only slows the boot of a VM that is thrown away, or wakes it while it waits, is switched off here.
set -eu
root=$1
sysd="$root/etc/systemd/system"

echo "hearth: stage customize"
# What no longer exists in the archive need not stay in the cache; a failure here only leaves more in it.
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq autoclean || true
umount "$root/var/cache/apt/archives" "$root/var/lib/apt/lists"
rm -f "$root"/var/cache/apt/*.bin
# A VM that has the lists already only asks whether they are still the newest: seconds instead of half a minute under emulation.
cp --preserve=timestamps "$HEARTH_CACHE"/lists/*_InRelease "$HEARTH_CACHE"/lists/*_Packages "$root/var/lib/apt/lists/"

mkdir -p "$sysd" "$root/home" "$root/var/log/hearth"
while read -r mode path; do
    install -D -m "$mode" "$HEARTH_WORK/overlay/$path" "$root/$path"
done <"$HEARTH_WORK/overlay.list"

for unit in \
    apt-daily.service apt-daily.timer apt-daily-upgrade.service apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer logrotate.timer \
    systemd-tmpfiles-clean.timer \
    getty.target getty@.service getty-static.service serial-getty@.service console-getty.service \
    container-getty@.service autovt@.service \
    systemd-ask-password-console.path systemd-ask-password-wall.path \
    systemd-firstboot.service systemd-pstore.service systemd-random-seed.service systemd-repart.service \
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrmachine.service \
    systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-journal-flush.service \
    systemd-journal-catalog-update.service systemd-hwdb-update.service systemd-boot-update.service \
    systemd-initctl.socket systemd-rfkill.socket systemd-rfkill.service \
    systemd-timesyncd.service \
    systemd-networkd-wait-online.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
    systemd-sysusers.service modprobe@.service \
    dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount
do
    ln -sf /dev/null "$sysd/$unit"
done
# There is no message bus, so the login manager could only fail; a bus that is installed later starts it when it is asked for.
mkdir -p "$sysd/multi-user.target.wants"
ln -sf /dev/null "$sysd/multi-user.target.wants/systemd-logind.service"
# Each of these is one more program that starts at every boot and every `daemon-reload`, for disks and consoles a VM does not have.
mkdir -p "$root/etc/systemd/system-generators"
for generator in \
    systemd-bless-boot-generator systemd-cryptsetup-generator systemd-debug-generator systemd-getty-generator \
    systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-integritysetup-generator \
    systemd-rc-local-generator systemd-run-generator systemd-ssh-generator systemd-system-update-generator \
    systemd-tpm2-generator systemd-veritysetup-generator
do
    ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"
done
# An empty list of modules still starts a program that reads it.
rm -f "$root/etc/modules-load.d/modules.conf"
ln -sf /lib/systemd/system/multi-user.target "$sysd/default.target"
# Names of interfaces stay what the kernel calls them, whatever the kernel command line says.
mkdir -p "$root/etc/systemd/network"
ln -sf /dev/null "$root/etc/systemd/network/99-default.link"

for unit in hearth-agent hearth-network; do
    mkdir -p "$sysd/sysinit.target.wants"
    ln -sf "/etc/systemd/system/$unit.service" "$sysd/sysinit.target.wants/$unit.service"
done

# The names that fingers type: Debian calls these programs otherwise.
ln -sf /usr/bin/vim.tiny "$root/usr/local/bin/vim"
ln -sf /usr/bin/fdfind "$root/usr/local/bin/fd"
# The package enables a server; the program is what is wanted. It can be enabled again like any unit.
rm -f "$sysd/multi-user.target.wants/rsync.service"
# The same of the SSH server: the agent starts it for one connection at a time.
rm -f "$sysd/multi-user.target.wants/ssh.service" "$sysd/sshd.service" "$sysd/sockets.target.wants/ssh.socket"

# Root has no password that could be typed, and nothing asks for one.
chroot "$root" passwd --quiet --lock root
chroot "$root" update-ca-certificates >/dev/null
# A kernel from the archive would never be booted: the VM's kernel comes from outside.
chroot "$root" apt-mark hold "$HEARTH_KERNEL_PACKAGE" >/dev/null

for modules in "$root"/lib/modules/*; do
    chroot "$root" depmod -a "${modules##*/}"
done

# Every VM has its own, made at its first boot.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_*
rm -f "$root"/var/log/*.log "$root"/var/log/apt/*
