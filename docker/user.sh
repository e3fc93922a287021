#!/bin/sh
# Runs inside the image build: the non-root user that the platform demands, and the folders it may write to.
set -eu
groupadd --gid 10001 user
useradd --uid 10001 --gid user --no-create-home --home-dir /tmp --shell /usr/sbin/nologin user
mkdir -p /input /output /opt/ml/model /opt/algorithm
chown user:user /output
