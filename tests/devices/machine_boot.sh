#!/usr/bin/env bash
# Boots the machine of machine_make.sh; its sshd answers on this machine's loopback.
#   tests/devices/machine_boot.sh MACHINE PORT KEYS FOLDER
# KEYS: a folder with hostkey and authorized_keys.  FOLDER: for the boot's own files.
set -euo pipefail
machine=$1 port=$2 keys=$3 folder=$4
mkdir -p "$folder/keys/etc/ssh"
cp "$keys/hostkey" "$keys/authorized_keys" "$folder/keys/etc/ssh/"
(cd "$folder/keys" && find . | cpio -o -H newc --quiet -R 0:0) >"$folder/keys.cpio"
# The kernel unpacks one archive after another.
cat "$machine/root.cpio" "$folder/keys.cpio" >"$folder/initrd.cpio"
# restrict: it reaches nothing but what reaches it.
exec qemu-system-aarch64 -M virt -cpu cortex-a72 -icount shift=1 -smp 1 -m 1024 -display none -monitor none -serial stdio \
  -kernel "$machine/vmlinuz" -initrd "$folder/initrd.cpio" -append "console=ttyAMA0 rdinit=/init panic=-1" \
  -netdev "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:$port-10.0.2.15:22" -device virtio-net-pci,netdev=net,romfile=
