#!/usr/bin/env bash
# Installs what the virtual phone and the virtual board need: Debian packages, qemu-user with its binfmt entry,
# one arm64 root folder that serves as both, a machine to boot, the cross compiler and the arm64 runtimes of our runners.
# Root on Debian bookworm, with acmix in .venv (or PYTHON=...); about three minutes; safe to run again.
#   tests/devices/install.sh            everything
# The root folder goes to $ACMIX_TEST_CACHE, or ~/.cache/acmix-tests.
set -euo pipefail

cache=${ACMIX_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/acmix-tests}
root=$cache/arm64-root
python=${PYTHON:-$(dirname "$0")/../../.venv/bin/python}
sources=/etc/apt/sources.list.d
stanza() { awk 'BEGIN { RS = "" } NR == 1' "$sources/debian.sources"; }
apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

echo "packages"
# The mirror that this machine uses already, with one more suite: qemu-user 7.2 of bookworm crashes in LiteRT.
stanza | sed 's/^Suites:.*/Suites: bookworm-backports/' >"$sources/acmix-backports.sources"
apt-get update -qq
apt_install binfmt-support mmdebstrap openssh-client openssh-server iproute2 util-linux g++-aarch64-linux-gnu \
  qemu-system-arm cpio
apt_install -t bookworm-backports qemu-user qemu-user-static qemu-user-binfmt

echo "binfmt"
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
# An entry with the F flag holds the interpreter that was there when it was made: renew it after an upgrade.
if [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64; fi
cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register

make_root() {
  echo "arm64 root: $root"
  mkdir -p "$cache"
  rm -rf "$root"
  stanza | sed 's/^Suites:.*/Suites: bookworm bookworm-backports/' >"$cache/arm64.sources"
  # `extract` runs no arm64 program while it builds: 20 seconds in place of 8 minutes.
  mmdebstrap --quiet --arch=arm64 --variant=extract \
    --setup-hook='printf "Package: adbd android-lib*\nPin: release n=bookworm-backports\nPin-Priority: 900\n" >"$1/etc/apt/preferences.d/adbd"' \
    --include=adbd,toybox,mksh,dash,bash,coreutils,grep,sed,procps,util-linux,libstdc++6,libgomp1 \
    --include=python3-minimal,libpython3-stdlib,openssh-server \
    '' "$root" "$cache/arm64.sources"

  # Android's place for things: mksh is its shell, toybox its userland.
  mkdir -p "$root"/system/bin "$root"/vendor/bin "$root"/data/local/tmp "$root"/run/sshd "$root"/home/pi
  ln -sf /bin/mksh "$root/system/bin/sh"
  tools=$(chroot "$root" /bin/toybox)
  for tool in $tools; do ln -sf /bin/toybox "$root/system/bin/$tool"; done
  ln -sf dash "$root/bin/sh"
  printf '%s\n' root:x:0:0:root:/root:/bin/bash shell:x:2000:2000::/:/system/bin/sh \
    'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' pi:x:1000:1000::/home/pi:/bin/sh >"$root/etc/passwd"
  printf '%s\n' root:x:0: shell:x:2000: pi:x:1000: nogroup:x:65534: >"$root/etc/group"
  printf '%s\n' 'root:*:1::::::' 'pi:*:1::::::' >"$root/etc/shadow"
  chown 1000:1000 "$root/home/pi"
  for node in null zero full random urandom tty ptmx; do rm -f "$root/dev/$node" && : >"$root/dev/$node"; done
  mkdir -p "$root/dev/pts" "$root/dev/shm"
  touch "$root/.finished"
  du -sh "$root"
}

if [ -e "$root/.finished" ]; then echo "arm64 root: $root (kept)"; else make_root; fi

if [ -e "$cache/machine/root.cpio" ]; then
  echo "machine: $cache/machine (kept)"
else
  echo "machine: $cache/machine"
  bash "$(dirname "$0")/machine_make.sh" "$root" "$cache/machine"
fi

echo "arm64 runtimes"
# Where acmix itself looks for them when XDG_CACHE_HOME is $cache/xdg, and by its own download.
XDG_CACHE_HOME=$cache/xdg "$python" - <<'PY'
from acmix.apps.board import wheels
from acmix.apps.board.build import BUILDS

for build in BUILDS.values():
    wheels.find_wheel(build.package, wheels.installed_version(build.package, build.extra))
PY
site=$root/usr/local/lib/python3.11/dist-packages
if [ ! -d "$site/onnxruntime" ]; then
  # numpy 1: the last one that old boards have too.
  "$python" -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --abi cp311 --abi abi3 --abi none --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 --target "$site" \
    "onnxruntime==$("$python" -c 'import importlib.metadata as m; print(m.version("onnxruntime"))')" 'numpy<2'
fi
