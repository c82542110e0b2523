#!/usr/bin/env bash
# A virtual board: an aarch64 sshd with dash as the login shell, in namespaces of its own. Root.
#   unshare --mount --pid --fork --kill-child tests/devices/board.sh ROOT PORT KEYS
# KEYS: a folder with hostkey and authorized_keys.
set -euo pipefail
root=$1 port=$2 keys=$3
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=0755,uid=1000,gid=1000 tmpfs "$root/home/pi"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for node in null zero full random urandom tty; do mount --bind "/dev/$node" "$root/dev/$node"; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
mkdir -p -m 755 "$root/run/sshd" "$root/run/keys"
cp "$keys/hostkey" "$keys/authorized_keys" "$root/run/keys/"
chmod 600 "$root/run/keys/hostkey"
chmod 644 "$root/run/keys/authorized_keys"
cat >"$root/run/sshd.conf" <<CONF
Port $port
ListenAddress 127.0.0.1
HostKey /run/keys/hostkey
PidFile none
AuthorizedKeysFile /run/keys/authorized_keys
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
${QEMU_CPU:+SetEnv QEMU_CPU=$QEMU_CPU}
CONF
cd /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/chroot "$root" /usr/sbin/sshd -D -e -f /run/sshd.conf
