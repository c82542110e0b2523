#!/usr/bin/env bash
# Makes a machine that boots: Debian's arm64 cloud kernel, and the arm64 root folder as its initial file system. Root.
#   tests/devices/machine_make.sh ROOT OUT
# OUT gets vmlinuz and root.cpio. The keys come in at the boot (machine_boot.sh).
set -euo pipefail
mkdir -p "$2"
root=$(realpath "$1") out=$(realpath "$2")
work=$(mktemp -d "$out/.make-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{parts,lists/partial,cache/archives/partial,kernel,root}
# The mirror that this machine uses already, asked for arm64.
awk 'BEGIN { RS = "" } NR == 1' /etc/apt/sources.list.d/debian.sources >"$work/parts/arm64.sources"
apt=(-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/parts" -o Dir::State::Lists="$work/lists"
  -o Dir::Cache="$work/cache" -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root)
cd "$work"
apt-get "${apt[@]}" update >/dev/null
kernel=$(apt-cache "${apt[@]}" depends linux-image-cloud-arm64 | awk '/Depends:/ { print $2; exit }')
apt-get "${apt[@]}" download "$kernel" busybox-static >/dev/null
dpkg -x "$kernel"_*.deb kernel
# What neither sshd nor a runner needs would only be unpacked into memory.
tar -C "$root" --exclude=./usr/share --exclude=./var --exclude=./usr/local/lib --exclude=./usr/lib/android \
  --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./tmp --exclude=./run --exclude=./home -cf - . | tar -C root -xf -
dpkg -x busybox-static_*.deb root
modules="virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net"
mkdir -p root/{modules,proc,sys,dev,tmp,run,root,etc/ssh}
for module in $modules; do find kernel/lib/modules -name "$module.ko" -exec cp {} root/modules/ \; ; done
printf '%s\n' root:x:0:0:root:/root:/bin/bash 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' >root/etc/passwd
printf '%s\n' root:x:0: nogroup:x:65534: >root/etc/group
printf '%s\n' 'root:*:1::::::' >root/etc/shadow
cat >root/etc/ssh/sshd.conf <<'CONF'
Port 22
HostKey /etc/ssh/hostkey
AuthorizedKeysFile /etc/ssh/authorized_keys
UsePAM no
PasswordAuthentication no
StrictModes no
CONF
cat >root/init <<INIT
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t proc proc /proc
\$b mount -t sysfs sysfs /sys
\$b mount -t devtmpfs dev /dev
\$b mkdir -p /dev/pts /dev/shm /run/sshd
\$b mount -t devpts devpts /dev/pts
\$b mount -t tmpfs tmpfs /dev/shm
for m in $modules; do [ -f /modules/\$m.ko ] && \$b insmod /modules/\$m.ko; done
\$b ifconfig lo up
\$b ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
\$b chown -R 0:0 /etc/ssh /run/sshd /root
\$b chmod 600 /etc/ssh/hostkey
\$b chmod 755 /run/sshd
exec /usr/sbin/sshd -D -e -f /etc/ssh/sshd.conf
INIT
chmod 755 root/init
(cd root && find . | cpio -o -H newc --quiet -R 0:0) >"$out/.root.cpio"
cp kernel/boot/vmlinuz-* "$out/vmlinuz"
mv "$out/.root.cpio" "$out/root.cpio"
