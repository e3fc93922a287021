#!/usr/bin/env bash
# A base image with Python 3.11 from Debian's packages alone, for places that reach no image registry.
# usage: docker/debian-base.sh [TAG]     needs root, debootstrap and a running Docker engine; safe to run twice
set -euo pipefail
tag=${1:-autopet-base:bookworm}

if docker image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is there already"
    exit 0
fi
if ! command -v debootstrap >/dev/null; then
    echo "debian-base: debootstrap is missing: apt-get install debootstrap" >&2
    exit 1
fi
rootfs=$(mktemp -d)
trap 'rm -rf "$rootfs"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$rootfs" >"$rootfs.log" 2>&1 ||
    { tail -n 5 "$rootfs.log" >&2; exit 1; }
rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs.log"
tar -C "$rootfs" -c . | docker import --change 'CMD ["python3"]' - "$tag" >/dev/null
echo "made $tag"
