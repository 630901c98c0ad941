#!/bin/sh
# Installs the Debian packages that some tests use; without them those tests skip and say so. Needs root.
#   qemu-user: plays an x86-64 CPU without VNNI, where full-range INT8 saturates
#   mosquitto: the broker of larger fleets; the link's tests run on it too
#   iproute2:  network namespaces, where packets can be lost and late
#   chromium:  looks at the hub's status page
set -eu
missing=""
for need in qemu-x86_64:qemu-user mosquitto:mosquitto ip:iproute2 chromium:chromium; do
	command -v "${need%%:*}" >/dev/null || missing="$missing ${need##*:}"
done
[ -z "$missing" ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # several words
apt-get install -y -q --no-install-recommends $missing
