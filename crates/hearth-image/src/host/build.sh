#!/bin/bash
# Makes the base of an image: Debian's packages, switched to run in a VM, as one ext4 file, with the kernel and the modules
# that the initrd needs beside it. Runs as root of namespaces of its own (mount and process, and user when the caller is not
# root), so that nothing it mounts or starts can outlive it.
#
# Its standard input is a lifeline: when the builder is gone, even by SIGKILL, this script ends, and with it (it is process 1
# of its namespace) everything below it.
set -euo pipefail
umask 022

root=$HEARTH_WORK/root
out=$HEARTH_WORK/out

say() {
    echo "hearth: $*"
}

make_tree() {
    say stage lists
    # The archive's Recommends are left out and manuals excluded: a VM that is thrown away is read by nobody.
    # --skip=update: the setup hook does it, so that it can go on with older lists when there is no network.
    # --skip=essential/unlink and cleanup/apt: the downloaded packages are our cache.
    # INITRD: the initrd comes from outside; making one here would take as long as everything else.
    INITRD=No DEBIAN_FRONTEND=noninteractive mmdebstrap \
        --verbose --mode=root --variant=minbase --format=directory \
        --skip=update,essential/unlink,cleanup/apt \
        --aptopt='Acquire::Languages "none"' \
        --dpkgopt=force-unsafe-io --dpkgopt=force-confold \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-include=/usr/share/locale/locale.alias' \
        --include="$HEARTH_PACKAGES" \
        --setup-hook='exec sh "$HEARTH_WORK/setup.sh" "$1"' \
        --customize-hook='exec sh "$HEARTH_WORK/customize.sh" "$1"' \
        "$HEARTH_SUITE" "$root" - <"$HEARTH_WORK/sources.list"
}

export_kernel() {
    say stage kernel
    local versions version module path
    versions=("$root"/lib/modules/*/)
    version=$(basename "${versions[0]}")
    if [[ ${#versions[@]} -ne 1 || ! -f $root/boot/vmlinuz-$version ]]; then
        say "the packages brought no kernel, or more than one: ${versions[*]##*/modules/}"
        return 1
    fi
    mkdir -p "$out/modules"
    # Asked of the guest's own modprobe: it knows what is built in and what must come first.
    for module in $HEARTH_MODULES; do
        chroot "$root" modprobe --set-version "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$HEARTH_WORK/modules"
    : >"$out/modules/order"
    while read -r path; do
        module=$(basename "$path")
        # Under emulation unpacking is slow, and not every kernel can do it by itself.
        case $path in
            *.xz) module=${module%.xz} && chroot "$root" xz -dc "$path" >"$out/modules/$module" ;;
            *.zst) module=${module%.zst} && chroot "$root" zstd -dcq "$path" >"$out/modules/$module" ;;
            *.gz) module=${module%.gz} && chroot "$root" gzip -dc "$path" >"$out/modules/$module" ;;
            *) cp "$root$path" "$out/modules/$module" ;;
        esac
        echo "$module" >>"$out/modules/order"
    done <"$HEARTH_WORK/modules"
    cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
    echo "$version" >"$out/kernel"
    # Nothing in the VM boots from these.
    rm -f "$root"/boot/vmlinuz-* "$root"/boot/initrd.img-* "$root"/boot/System.map-* \
        "$root"/vmlinuz "$root"/vmlinuz.old "$root"/initrd.img "$root"/initrd.img.old
    chroot "$root" dpkg-query --show --showformat='${binary:Package} ${Version}\n' >"$out/packages"
}

make_filesystem() {
    say stage filesystem
    local used
    used=$(du --summarize --one-file-system --block-size=1M "$root" | cut -f1)
    # No journal: a VM's disk is never used again after a crash of its host. The file is sparse, so room (which also brings
    # inodes) costs nothing; the root grows to the VM's disk at its first boot anyway.
    mke2fs -q -F -t ext4 -L hearth -m 0 -O ^has_journal -E lazy_itable_init=0,root_owner=0:0 \
        -d "$root" "$out/rootfs.ext4" "$((used * 3 / 2 + 256))M"
    rm -rf "$root"
}

work() {
    set -e
    make_tree
    export_kernel
    make_filesystem
}

exec 3<&0 </dev/null
cat <&3 >/dev/null &
lifeline=$!
exec 3<&-
work &
worker=$!
code=0
wait -n -p ended "$lifeline" "$worker" || code=$?
if [[ $ended != "$worker" ]]; then
    code=1
fi
exit "$code"
