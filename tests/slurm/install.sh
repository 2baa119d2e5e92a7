#!/usr/bin/env bash
# Installs SLURM from Debian's or Ubuntu's packages, for tests/slurm, which are skipped without it.
set -euo pipefail
if ! command -v slurmctld >/dev/null; then
    packages="slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $packages
fi
slurmctld -V
