#!/usr/bin/env bash
# Installs Chromium from Debian's packages, for the tests that open the report's page, which are skipped without one.
set -euo pipefail
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium
fi
