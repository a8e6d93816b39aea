#!/usr/bin/env bash
# Prepares a machine for building and testing: build tools, and a PostgreSQL tree for each major named.
#   packaging/setup.sh [MAJOR ...]     (default: 15 18)
#
# Runs as root or as a normal user; needs nothing prepared. A second run changes nothing.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"
# shellcheck source=packaging/postgres.sh
. "$here/postgres.sh"

[ $# -gt 0 ] || set -- 15 18
[ "$(uname -s)" = Linux ] || die "these scripts know Linux only; build by hand: cargo pgrx install --release --pg-config ..."
for major in "$@"; do
    case $major in 15 | 16 | 17 | 18) ;; *) die "PostgreSQL $major is not supported; the majors are 15, 16, 17 and 18" ;; esac
done

lock setup
ensure_rust
want_build_tools
for major in "$@"; do want_tree "$major"; done
install_wanted
ensure_cargo_pgrx
pairs=()
for major in "$@"; do
    ensure_tree "$major"
    pairs+=("$major" "$(pg_config_of "$major")")
done
ensure_pgrx_config "${pairs[@]}"
