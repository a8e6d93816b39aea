#!/usr/bin/env bash
# From a bare machine to a PostgreSQL with a vault in it: tools, build, throw-away cluster, and the main job shown.
#
# Runs as root or as a normal user; a second run replaces the first one's cluster. Nothing of the system's PostgreSQL is
# changed: the extension goes into a private copy of it (see postgres.sh). PG_MAJOR=18 asks for a major, PG_CONFIG for
# one particular PostgreSQL; otherwise it is the newest here, else Debian's 15, else 18 from PyPI.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"
# shellcheck source=packaging/postgres.sh
. "$here/postgres.sh"
# shellcheck source=packaging/cluster.sh
. "$here/cluster.sh"

# The newest PostgreSQL this machine has, or can get.
choose_major() {
    local major
    for major in 18 17 16 15; do
        system_pg_config "$major" >/dev/null && printf '%s\n' "$major" && return 0
    done
    if may_apt; then
        apt_lists >&2
        for major in 18 17 16 15; do
            apt-cache show "postgresql-$major" >/dev/null 2>&1 && printf '%s\n' "$major" && return 0
        done
    fi
    printf '18\n'
}

main() {
    local began=$SECONDS major source bindir tree
    STAGES=5

    stage "Tools and PostgreSQL"
    ensure_rust >/dev/null
    if [ -n "${PG_CONFIG:-}" ]; then
        has "$PG_CONFIG" || die "PG_CONFIG=$PG_CONFIG cannot be run"
        major=$(pg_major "$PG_CONFIG")
        export "PG_CONFIG_$major=$("$PG_CONFIG" --bindir)/pg_config"
    else
        major=${PG_MAJOR:-$(choose_major)}
    fi
    "$here/setup.sh" "$major"
    source=$(pg_config_of "$major")

    stage "Building the extension for PostgreSQL $major (the first time takes minutes)"
    lock quickstart
    stop_cluster || true
    tree=$CACHE/quickstart/pg$major
    mkdir -p "${tree%/*}"
    copy_tree "$source" "$tree"
    bindir=$("$tree/bin/pg_config" --bindir)
    install_extension "$bindir/pg_config" "pg$major"

    stage "Making a throw-away cluster"
    trap failed EXIT
    new_cluster "$bindir"
    info "data:       $CLUSTER/data"
    info "master key: $CLUSTER/key/master.key (32 random bytes, readable by the server only)"

    stage "Starting PostgreSQL with hyperion_vault preloaded"
    start_server "$bindir" || die "the server does not start"
    info "listening on port $PORT${SERVER_USER:+, running as user $SERVER_USER}"

    stage "The vault at work"
    passwords
    demonstrate "$bindir/psql"
    trap - EXIT

    cat <<DONE

${BOLD}A vault is running.${PLAIN} (ready after $(elapsed $((SECONDS - began))))

  connect as administrator of secrets:  ${BOLD}PGPASSFILE=$WORK/quickstart.pgpass $tree/bin/psql -h 127.0.0.1 -p $PORT -U ops postgres${PLAIN}
  connect as the application:           ${BOLD}PGPASSFILE=$WORK/quickstart.pgpass $tree/bin/psql -h 127.0.0.1 -p $PORT -U app postgres${PLAIN}
  connect as superuser:                 ${BOLD}$(superuser_command "$tree/bin/psql")${PLAIN}
  server log:                           $CLUSTER/server.log
  stop it and remove it:                ${BOLD}make stop${PLAIN}
DONE
}

# Over the socket, which only the server's own user (and root) can reach.
superuser_command() { printf '%s -h %s -p %s -U postgres postgres' "$1" "$CLUSTER" "$PORT"; }

# Passwords for TCP, in a file of the caller's: nothing secret on a command line, where ps would show it.
passwords() {
    local role password
    : >"$WORK/quickstart.pgpass"
    chmod 600 "$WORK/quickstart.pgpass"
    for role in app ops; do
        password=$(head -c 18 /dev/urandom | od -An -vtx1 | tr -d ' \n')
        printf '127.0.0.1:%s:postgres:%s:%s\n' "$PORT" "$role" "$password" >>"$WORK/quickstart.pgpass"
    done
}

# The main job, in SQL that checks its own results. psql runs as the caller: root and the server's user may both
# pass through the socket's directory.
demonstrate() {
    PGOPTIONS='' PGPASSFILE=$WORK/quickstart.pgpass "$1" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
        --set=passfile="$WORK/quickstart.pgpass" \
        --host="$CLUSTER" --port="$PORT" --username=postgres --dbname=postgres \
        --file="$here/quickstart.sql" 2>&1 || die "the demonstration failed, see above"
}

# A cluster whose demonstration failed is of no use to anybody.
failed() {
    local status=$?
    trap - EXIT
    [ -z "${CLUSTER:-}" ] || server_log "$CLUSTER" | tail -n 15 | sed 's/^/      server.log: /' >&2
    stop_cluster || true
    warn "the quickstart failed; its cluster has been removed, its server log is $WORK/quickstart-server.log"
    exit "$status"
}

main "$@"
