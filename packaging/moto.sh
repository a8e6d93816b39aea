# shellcheck shell=bash
# moto, a fake AWS by other hands, for the tests of the KMS wire format: a virtual environment of its own below $CACHE.
# Sourced after toolchain.sh.
#
# Versions and hashes are pinned in moto.txt beside this file; where the packages come from is pip's own configuration.
# Never installed into a Python that somebody uses. The trap it avoids: a virtual environment points at the Python that
# made it and breaks when that one is upgraded or removed, so it is looked into each time and made anew if need be.

MOTO_PINS=$ROOT/packaging/moto.txt
MOTO_TREE=$CACHE/moto

# HYPERION_VAULT_MOTO names a moto_server of the caller's own; it is used, not installed.
moto_server() { printf '%s\n' "${HYPERION_VAULT_MOTO:-$MOTO_TREE/bin/moto_server}"; }

# The first Python that moto.txt has packages for and that can make a virtual environment. The system's comes first: one
# in root's home directory would be of no use to anybody else.
moto_python() {
    local python
    for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10 python3.14 python3.9; do
        "$python" -I -c 'import ensurepip, sys, venv; sys.exit(not (3, 9) <= sys.version_info < (3, 15))' >/dev/null 2>&1 &&
            printf '%s\n' "$python" && return 0
    done
    return 1
}

# What a finished tree says of itself: the pins it was made from.
moto_stamp() { sha256sum <"$MOTO_PINS"; }

has_moto() {
    [ "$(cat "$MOTO_TREE/.complete" 2>/dev/null)" = "$(moto_stamp)" ] &&
        "$MOTO_TREE/bin/python" -I -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("moto", "flask_cors", "cryptography"))))' 2>/dev/null
}

# want_moto: adds to WANTED what ensure_moto will need and only apt can give.
want_moto() {
    [ -z "${HYPERION_VAULT_MOTO:-}" ] || return 0
    has_moto || moto_python >/dev/null || want python3 python3-venv
}

# ensure_moto: makes $CACHE/moto if need be. Run install_wanted before.
ensure_moto() {
    local python
    if [ -n "${HYPERION_VAULT_MOTO:-}" ]; then
        [ -x "$HYPERION_VAULT_MOTO" ] || die "HYPERION_VAULT_MOTO=$HYPERION_VAULT_MOTO is no program"
    elif ! has_moto; then
        python=$(moto_python) || die "no Python 3.9 to 3.14 here can make a virtual environment for moto" \
            "install one with its module venv (Debian: python3-venv)," \
            "or name a moto_server that you have: HYPERION_VAULT_MOTO=/path/to/moto_server"
        info "installing moto into $MOTO_TREE (about 25 MB to fetch, once)"
        rm -rf "$MOTO_TREE"
        # In place, not renamed into it: the programs in bin/ carry their path. The stamp comes last.
        "$python" -I -m venv "$MOTO_TREE" || die "$python could not make a virtual environment in $MOTO_TREE"
        PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$MOTO_TREE/bin/python" -I -m pip install --quiet --no-deps \
            --only-binary=:all: --require-hashes --requirement "$MOTO_PINS" || {
            rm -rf "$MOTO_TREE"
            die "moto could not be fetched from PyPI" \
                "either allow this machine to reach PyPI or a mirror (see pip config)," \
                "or name a moto_server that you have: HYPERION_VAULT_MOTO=/path/to/moto_server"
        }
        moto_stamp >"$MOTO_TREE/.complete"
    fi
    info "moto: $(moto_server)"
}
