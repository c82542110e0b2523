#!/usr/bin/env bash
# A virtual phone: Debian's arm64 adbd with mksh and toybox, in namespaces of its own. Root.
#   unshare --net --mount --pid --fork --kill-child tests/devices/phone.sh ROOT PORT
# adbd listens everywhere, as root, and asks nobody: that is why it has a network of its own.
set -euo pipefail
root=$1 port=$2
ip link set lo up
mount --make-rprivate /
mount -t proc proc "$root/proc"
# XNNPACK reads the processors from sysfs and refuses to start without it.
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0771 tmpfs "$root/data/local/tmp"
for node in null zero full random urandom tty; do mount --bind "/dev/$node" "$root/dev/$node"; done
# adbd opens a terminal of its own even for a plain shell.
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
cd /
exec env -i PATH=/system/bin:/vendor/bin HOME=/ ANDROID_ROOT=/system TMPDIR=/data/local/tmp ADBD_PORT="$port" \
  LD_LIBRARY_PATH=/usr/lib/android ${QEMU_CPU:+QEMU_CPU=$QEMU_CPU} \
  /usr/sbin/chroot "$root" /usr/lib/android-sdk/platform-tools/adbd
