#!/usr/bin/env bash
# Installs the data that a test trains on: Debian's dataset-fashion-mnist, 31 MB. Root on Debian; safe to run again.
set -euo pipefail
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dataset-fashion-mnist >/dev/null
