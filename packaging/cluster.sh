# shellcheck shell=bash
# The quickstart's throw-away cluster: make, start, stop. Sourced after lib.sh.
#
# Its state is one file in the checkout, written before anything is started, so that whatever was begun can be ended.
# The trap it avoids: stopping or deleting something else. A directory is touched only if it carries our marker, and a
# server is stopped by its own data directory, never by name.

STATE=$WORK/quickstart.env
MARKER=.hyperion_vault_quickstart

state_of() { sed -nE "s/^$1=(.*)\$/\\1/p" "$STATE" 2>/dev/null | head -n 1; }

# new_cluster BINDIR MAJOR: initdb into a fresh directory; sets CLUSTER, SERVER_USER, PORT. Not started.
new_cluster() {
    local bindir=$1 parent=${TMPDIR:-/tmp}
    SERVER_USER=$(server_user)
    # A TMPDIR of root's own is closed to the server user, and a long one does not fit into a socket address.
    as_server test -x "$parent" -a ${#parent} -lt 60 || parent=/tmp
    CLUSTER=$(mktemp -d "$parent/hyperion_vault.XXXXXX")
    mkdir -p "$WORK"
    printf 'dir=%s\nbindir=%s\nuser=%s\n' "$CLUSTER" "$bindir" "$SERVER_USER" >"$STATE"
    : >"$CLUSTER/$MARKER"
    # 32 random bytes, beside the data directory and not in it: a copy of the data alone opens nothing.
    mkdir -m 700 "$CLUSTER/key"
    (umask 077 && head -c 32 /dev/urandom >"$CLUSTER/key/master.key")
    # Closed to everybody else on the machine, socket included: that is why the socket may trust (see pg_hba.conf).
    chmod 700 "$CLUSTER"
    [ -z "$SERVER_USER" ] || chown -R "$SERVER_USER" "$CLUSTER"
    as_server "$bindir/initdb" --pgdata="$CLUSTER/data" --username=postgres --auth-local=trust --auth-host=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 --data-checksums >"$WORK/initdb.log" 2>&1 ||
        die "initdb failed" "see $WORK/initdb.log"
    as_server tee -a "$CLUSTER/data/postgresql.conf" >/dev/null <<CONF

# made by the quickstart of hyperion_vault
unix_socket_directories = '$CLUSTER'
listen_addresses = '127.0.0.1'
shared_preload_libraries = 'hyperion_vault'
hyperion_vault.allowed_ips = 'local, 127.0.0.1, ::1'
hyperion_vault.kms_mode = 'local'
hyperion_vault.local_master_key_file = '$CLUSTER/key/master.key'
CONF
}

# start_server BINDIR: on the first free port from 54320 on; sets PORT.
start_server() {
    local bindir=$1 try
    for try in $(seq 54320 54399); do
        # Somebody listens: next. Between this look and the start somebody else may come: then the start fails, next.
        if (exec 3<>"/dev/tcp/127.0.0.1/$try") 2>/dev/null; then continue; fi
        : >"$WORK/quickstart-start.log"
        if as_server "$bindir/pg_ctl" --pgdata="$CLUSTER/data" --log="$CLUSTER/server.log" --wait --timeout=60 --silent \
            --options="-p $try" start >"$WORK/quickstart-start.log" 2>&1 9>&-; then
            PORT=$try
            printf 'port=%s\n' "$PORT" >>"$STATE"
            return 0
        fi
        server_log "$CLUSTER" | grep -q 'could not create any TCP/IP sockets\|could not bind' || break
        as_server rm -f "$CLUSTER/server.log"
    done
    cat "$WORK/quickstart-start.log" >&2
    server_log "$CLUSTER" | tail -n 30 >&2
    return 1
}

# Read as the server's user: the directory is his, and root does not follow what he may have put there.
server_log() { as_server cat "$1/server.log" 2>/dev/null || true; }

# stop_cluster: ends and removes the cluster in the state file, if there is one.
stop_cluster() {
    local dir bindir
    [ -e "$STATE" ] || return 1
    dir=$(state_of dir) bindir=$(state_of bindir) SERVER_USER=$(state_of user)
    is_root || SERVER_USER=
    if [ -n "$dir" ] && [ -e "$dir/$MARKER" ]; then
        if [ -e "$dir/data/postmaster.pid" ]; then
            as_server "$bindir/pg_ctl" --pgdata="$dir/data" --mode=fast --wait --silent stop >/dev/null 2>&1 ||
                as_server "$bindir/pg_ctl" --pgdata="$dir/data" --mode=immediate --wait --silent stop >/dev/null 2>&1 ||
                [ ! -e "$dir/data/postmaster.pid" ] ||
                ! kill -0 "$(head -n 1 "$dir/data/postmaster.pid")" 2>/dev/null ||
                die "the server in $dir/data does not stop" "its process id is $(head -n 1 "$dir/data/postmaster.pid")"
        fi
        # The last log is worth keeping; the cluster is not.
        server_log "$dir" >"$WORK/quickstart-server.log"
        rm -rf "$dir"
    fi
    rm -f "$STATE" "$WORK/quickstart.pgpass"
}
