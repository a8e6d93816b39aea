#!/usr/bin/env bash
# Ends the quickstart's cluster and removes its directory. Nothing else on the machine is touched.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/cluster.sh
. "$here/cluster.sh"

if [ ! -e "$STATE" ]; then
    printf 'no quickstart cluster is running\n'
    exit 0
fi
dir=$(state_of dir)
stop_cluster
printf 'stopped and removed %s\n' "$dir"
