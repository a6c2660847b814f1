#!/bin/sh
# Runs in the builder's namespaces before any package is fetched. $1 is the root of the new system.
# Package lists and packages live in the cache on the host, which makes a later build work without a network.
set -eu
root=$1
mkdir -p "$root/var/cache/apt/archives" "$root/var/lib/apt/lists" "$root/etc/initramfs-tools"
mkdir -p "$HEARTH_CACHE/archives/partial" "$HEARTH_CACHE/lists/partial"
mount --bind "$HEARTH_CACHE/archives" "$root/var/cache/apt/archives"
mount --bind "$HEARTH_CACHE/lists" "$root/var/lib/apt/lists"

# Only for this run, not for apt in the VM. apt's own unprivileged user could not reach a cache in somebody's home; what is
# fetched is checked by signature either way.
cat >>"$MMDEBSTRAP_APT_CONFIG" <<'END'
APT::Sandbox::User "root";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
END
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
if apt-get update --error-on=any; then
    touch "$HEARTH_CACHE/complete"
elif [ -e "$HEARTH_CACHE/complete" ]; then
    echo "hearth: offline"
else
    echo "hearth: no lists"
    exit 1
fi
# Everything at once and first: a misspelt name or a package that cannot be had without a network is said in seconds, not
# after half of the installation.
echo "hearth: stage download"
apt-get --yes --download-only install $(echo "$HEARTH_PACKAGES" | tr , ' ')
echo "hearth: stage install"

# Before the package that would otherwise make an initrd nobody boots.
cp "$HEARTH_WORK/overlay/etc/initramfs-tools/update-initramfs.conf" "$root/etc/initramfs-tools/"
