#!/usr/bin/env bash
# Builds the extension as users get it and installs it into one PostgreSQL:
#   packaging/install.sh PG_CONFIG
# Runs as whoever may write to that PostgreSQL's directories; says so when the caller may not. Restarts nothing.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"
# shellcheck source=packaging/postgres.sh
. "$here/postgres.sh"

STAGES=2
given=${1:-pg_config}
has "$given" || die "$given cannot be run" "name the PostgreSQL to install into: make install PG_CONFIG=/path/to/pg_config"
# Debian's /usr/bin/pg_config is a front for the newest major's.
pg_config=$("$given" --bindir)/pg_config
major=$(pg_major "$pg_config")
usable_pg_config "$pg_config" "$major" ||
    die "the server headers of PostgreSQL $major are missing" "on Debian: apt-get install postgresql-server-dev-$major"
may_install "$pg_config"

stage "Tools"
export "PG_CONFIG_$major=$pg_config"
"$here/setup.sh" "$major"
ensure_rust >/dev/null
stage "Building and installing for PostgreSQL $major"
install_extension "$pg_config" "pg$major"
cat <<DONE

Installed. To use it, set in postgresql.conf and restart:
    shared_preload_libraries = 'hyperion_vault'
then, in the database that hyperion_vault.database names (default: postgres): CREATE EXTENSION hyperion_vault;
DONE
