# shellcheck shell=bash
# Shared by every script here: messages, stages, where things live, who runs the server. Sourced, never executed.
#
# Runs as root or as a normal user. The trap it avoids: postgres and initdb refuse to run as root, and an unprivileged
# server user cannot look into /root, so whatever the server must read lives outside the checkout (see cache_dir).

# The checkout, and the directory for what a run leaves behind in it (logs, the state of the quickstart cluster).
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck disable=SC2034 # used by the scripts that source this
WORK=$ROOT/.work

# What runs here must be readable by the server user, whatever umask the caller has.
umask 022

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' PLAIN=''
fi

info() { printf '      %s\n' "$*"; }
warn() { printf '%swarning:%s %s\n' "$RED" "$PLAIN" "$*" >&2; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
    shift
    local line
    for line in "$@"; do [ -z "$line" ] || printf '       %s\n' "$line" >&2; done
    exit 1
}

# stage TEXT: announces the next of STAGES steps.
STAGE=0 STAGES=0
stage() {
    STAGE=$((STAGE + 1))
    printf '\n%s[%d/%d] %s%s\n' "$BOLD" "$STAGE" "$STAGES" "$*" "$PLAIN"
}

is_root() { [ "$(id -u)" = 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }

# PostgreSQL trees and build tools that belong to nobody's system: shared by all checkouts of one user.
cache_dir() {
    if [ -n "${HYPERION_VAULT_CACHE:-}" ]; then
        printf '%s\n' "$HYPERION_VAULT_CACHE"
    elif is_root; then
        printf '/var/cache/hyperion_vault\n'
    else
        printf '%s/hyperion_vault\n' "${XDG_CACHE_HOME:-$HOME/.cache}"
    fi
}
CACHE=$(cache_dir)
# A relative path would mean another directory after the first cd.
case $CACHE in /*) ;; *) die "HYPERION_VAULT_CACHE must be an absolute path, not \"$CACHE\"" ;; esac
export HYPERION_VAULT_CACHE=$CACHE

# lock NAME: one run at a time may install into the trees below $CACHE; a second one waits. Held until the script ends.
# The descriptor is closed for the server (see start_server), which would otherwise hold the lock for its lifetime.
lock() {
    mkdir -p "$CACHE"
    has flock || return 0
    exec 9>"$CACHE/$1.lock"
    flock -n 9 || {
        info "waiting: another run is using $CACHE"
        flock 9
    }
}

# The user the server runs as. Empty for a normal user, who is that user himself.
server_user() {
    is_root || return 0
    if [ -n "${HYPERION_VAULT_TEST_USER:-}" ]; then
        id -u "$HYPERION_VAULT_TEST_USER" >/dev/null 2>&1 ||
            die "HYPERION_VAULT_TEST_USER names \"$HYPERION_VAULT_TEST_USER\", which is no user of this machine"
        [ "$(id -u "$HYPERION_VAULT_TEST_USER")" != 0 ] || die "HYPERION_VAULT_TEST_USER must not be root"
        printf '%s\n' "$HYPERION_VAULT_TEST_USER"
    elif id -u postgres >/dev/null 2>&1; then
        printf 'postgres\n'
    else
        id -u hyperion >/dev/null 2>&1 ||
            useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin hyperion ||
            die "cannot create the system user \"hyperion\" that the server is to run as" \
                "create an unprivileged user and name it in HYPERION_VAULT_TEST_USER"
        printf 'hyperion\n'
    fi
}

# as_server COMMAND...: runs it as $SERVER_USER (set by the caller from server_user), from a directory it may enter.
as_server() {
    if [ -z "${SERVER_USER:-}" ]; then
        (cd / && "$@")
    elif has runuser; then
        (cd / && runuser -u "$SERVER_USER" -- "$@")
    elif has setpriv; then
        (cd / && setpriv --reuid="$SERVER_USER" --regid="$(id -g "$SERVER_USER")" --init-groups -- "$@")
    else
        die "neither runuser nor setpriv is here to run the server as \"$SERVER_USER\"" "both are in the package util-linux"
    fi
}

# elapsed SECONDS -> 1m23s
elapsed() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }
