#!/usr/bin/env bash
# The soak on release builds without fault injection, in private trees of their own: SOAK_MINUTES (30) for each of
# PG_MAJORS (15 18). Everything at once on one vault, with maintenance commands and deaths of processes beside it; at the
# end amcheck looks at every table and index. Prints what happened; the exit status is 0 only if all is as it must be.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"
# shellcheck source=packaging/postgres.sh
. "$here/postgres.sh"

read -r -a MAJORS <<<"${PG_MAJORS:-15 18}"
[ ${#MAJORS[@]} -gt 0 ] || die "PG_MAJORS is empty"
STAGES=$((1 + ${#MAJORS[@]}))
stage "set-up: tools, PostgreSQL ${MAJORS[*]}"
"$here/setup.sh" "${MAJORS[@]}"
ensure_rust >/dev/null
lock soak
SERVER_USER=$(server_user)
cd "$ROOT"
for major in "${MAJORS[@]}"; do
    stage "soak on PostgreSQL $major"
    tree=$CACHE/soak/pg$major
    mkdir -p "${tree%/*}"
    copy_tree "$(pg_config_of "$major")" "$tree"
    [ -f "$("$tree/bin/pg_config" --sharedir)/extension/amcheck.control" ] ||
        die "this PostgreSQL $major has no amcheck" "install its contrib package, or set PG_CONFIG_$major to a tree that has it"
    install_extension "$tree/bin/pg_config" "pg$major"
    PG_CONFIG=$tree/bin/pg_config HYPERION_VAULT_TEST_USER=$SERVER_USER \
        cargo run --release -p hyperion_vault_tests --bin soak
done
