#!/bin/sh
# Installs the Debian packages that some tests use; without them those tests skip and say so. Needs root.
#   qemu-user: plays an x86-64 CPU without VNNI, where full-range INT8 saturates
#   mosquitto: the broker of larger fleets; the link's tests run on it too
#   iproute2:  network namespaces, where packets can be lost and late
#   chromium:  looks at the hub's status page
#   gstreamer: its own RTSP server is the tests' camera, and the agent reads through it too
set -eu
missing=""
for need in qemu-x86_64:qemu-user mosquitto:mosquitto ip:iproute2 chromium:chromium; do
	command -v "${need%%:*}" >/dev/null || missing="$missing ${need##*:}"
done
/usr/bin/python3 -c 'import gi, numpy; gi.require_version("GstRtspServer", "1.0")' 2>/dev/null && command -v gst-launch-1.0 >/dev/null ||
	missing="$missing python3-gi python3-numpy gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-tools
		gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav"
[ -z "$missing" ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # several words
apt-get install -y -q --no-install-recommends $missing
