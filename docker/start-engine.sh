#!/usr/bin/env bash
# Makes sure that a Docker engine answers; installs Debian's docker.io and starts it when run as root. Exit 1 when it cannot.
set -euo pipefail

answers() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

if answers; then exit 0; fi
if [ "$(id -u)" -ne 0 ]; then
    echo "start-engine: no Docker engine answers, and only root can start one" >&2
    exit 1
fi
if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
    if ! command -v apt-get >/dev/null; then
        echo "start-engine: no dockerd and no apt-get here; install Docker by hand" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io debootstrap >/dev/null
fi
answers || setsid dockerd >/tmp/autopet-dockerd.log 2>&1 </dev/null &
for _ in $(seq 60); do
    if answers; then exit 0; fi
    sleep 1
done
echo "start-engine: dockerd did not come up:" >&2
tail -n 3 /tmp/autopet-dockerd.log >&2
exit 1
