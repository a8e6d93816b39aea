#!/usr/bin/env bash
# The benchmark on a release build without fault injection, in a private tree of its own. PG_MAJOR=18 by default.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"
# shellcheck source=packaging/postgres.sh
. "$here/postgres.sh"

major=${PG_MAJOR:-18}
"$here/setup.sh" "$major"
ensure_rust >/dev/null
lock bench
tree=$CACHE/bench/pg$major
mkdir -p "${tree%/*}"
copy_tree "$(pg_config_of "$major")" "$tree"
install_extension "$tree/bin/pg_config" "pg$major"
SERVER_USER=$(server_user)
cd "$ROOT"
PG_CONFIG=$tree/bin/pg_config HYPERION_VAULT_TEST_USER=$SERVER_USER \
    cargo run --release -p hyperion_vault_tests --bin bench -- "$@"
