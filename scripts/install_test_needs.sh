#!/bin/sh
# Installs the Debian packages that some tests use; without them those tests skip and say so. Needs root.
#   qemu-user: plays an x86-64 CPU without VNNI, where full-range INT8 saturates
set -eu
command -v qemu-x86_64 >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends qemu-user
