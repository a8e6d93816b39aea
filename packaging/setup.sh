#!/usr/bin/env bash
# Prepares a machine for building and testing: build tools, a PostgreSQL tree for each major named, and moto and valgrind if
# named.
#   packaging/setup.sh [MAJOR ...] [moto] [valgrind]     (default: 15 18 moto)
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
# shellcheck source=packaging/moto.sh
. "$here/moto.sh"

[ $# -gt 0 ] || set -- 15 18 moto
[ "$(uname -s)" = Linux ] || die "these scripts know Linux only; build by hand: cargo pgrx install --release --pg-config ..."
moto=no valgrind=no majors=()
for word in "$@"; do
    case $word in
    15 | 16 | 17 | 18) majors+=("$word") ;;
    moto) moto=yes ;;
    valgrind) valgrind=yes ;;
    *) die "PostgreSQL $word is not supported; the majors are 15, 16, 17 and 18" ;;
    esac
done

lock setup
if [ ${#majors[@]} -gt 0 ]; then
    ensure_rust
    want_build_tools
    for major in "${majors[@]}"; do want_tree "$major"; done
fi
[ $moto = no ] || want_moto
install_wanted
[ $moto = no ] || ensure_moto
# By itself: what needs it is left out where it is not to be had.
[ $valgrind = no ] || ensure_valgrind
[ ${#majors[@]} -gt 0 ] || exit 0
ensure_cargo_pgrx
pairs=()
for major in "${majors[@]}"; do
    ensure_tree "$major"
    pairs+=("$major" "$(pg_config_of "$major")")
done
ensure_pgrx_config "${pairs[@]}"
