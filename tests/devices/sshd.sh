#!/usr/bin/env bash
# A real sshd on this machine's loopback as whoever calls: logins to the same user only.
#   tests/devices/sshd.sh KEYS PORT [SETTING]
set -euo pipefail
keys=$1 port=$2 setting=${3:-}
config=$keys/sshd-$port.config
cat >"$config" <<CONF
Port $port
ListenAddress 127.0.0.1
HostKey $keys/hostkey
PidFile none
AuthorizedKeysFile $keys/authorized_keys
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
$setting
CONF
exec /usr/sbin/sshd -D -e -f "$config"
