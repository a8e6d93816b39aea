# shellcheck shell=bash
# Build tools: Rust, a C compiler, libclang, cargo-pgrx. Sourced after lib.sh.
#
# Root installs what is missing with apt, in one transaction; anybody else is told the one line that would. Nothing of
# the user's is replaced: another version of cargo-pgrx stays where it is, ours goes below $CACHE.

RUST_NEEDED=1.95
PGRX_VERSION=0.18.1

# Tools built here come first, also for cargo's own subcommand lookup.
TOOLS=$CACHE/tools
export PATH="$TOOLS/bin:$PATH"
[ -n "${CARGO_HOME:-}" ] || [ ! -d "$HOME/.cargo/bin" ] || export PATH="$PATH:$HOME/.cargo/bin"

# Debian packages still missing, filled by the want_* functions, installed by install_wanted.
WANTED=()
want() {
    local package
    for package in "$@"; do
        case " ${WANTED[*]-} " in *" $package "*) ;; *) WANTED+=("$package") ;; esac
    done
}

may_apt() { is_root && has apt-get; }

# In a fresh container the package lists are empty, and every package looks unknown.
apt_lists() {
    [ -z "${APT_UPDATED:-}" ] || return 0
    export APT_UPDATED=1 # also for the scripts started from this one
    info "apt-get update"
    apt-get update -qq || warn "apt-get update failed; going on with the package lists that are here"
}

want_build_tools() {
    printf 'int main(void){return 0;}\n' | cc -x c -o /dev/null - >/dev/null 2>&1 || want gcc libc6-dev
    has_libclang || want clang libclang-dev
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki/tls/certs ] || want ca-certificates
    # The trees are built with the system's time zones.
    [ -e /usr/share/zoneinfo/UTC ] || want tzdata
    # OpenSSL's headers are needed to build cargo-pgrx only.
    has_cargo_pgrx || { pkg-config --exists openssl 2>/dev/null || want pkg-config libssl-dev; }
}

# bindgen loads libclang.so at build time, and needs clang's own headers (stddef.h) besides.
has_libclang() {
    local found
    found=$(find "${LIBCLANG_PATH:-/nonexistent}" /usr/lib/llvm-*/lib /usr/lib64 /usr/lib /usr/local/lib -maxdepth 2 \
        -name 'libclang*.so*' ! -name 'libclang-cpp*' -print -quit 2>/dev/null) || true
    [ -n "$found" ] || return 1
    found=$(find /usr/lib/llvm-*/lib/clang /usr/lib/clang /usr/lib64/clang /usr/local/lib/clang -maxdepth 3 \
        -name stddef.h -print -quit 2>/dev/null) || true
    [ -n "$found" ]
}

ensure_valgrind() {
    has valgrind || ! may_apt || {
        apt_lists
        info "apt-get install valgrind"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends valgrind >/dev/null ||
            warn "apt could not install valgrind: instructions are not counted"
    }
}

install_wanted() {
    [ ${#WANTED[@]} -gt 0 ] || return 0
    local line="apt-get install -y --no-install-recommends ${WANTED[*]}"
    if ! may_apt; then
        if has apt-get; then
            die "these packages are missing, and only root may install them; run as root:" "$line" "then run this again"
        fi
        die "these are missing (Debian's names): ${WANTED[*]}" "install what your distribution calls them, then run this again"
    fi
    apt_lists
    info "$line"
    no_main_cluster "$line" || die "apt could not install: ${WANTED[*]}" "the command was: $line"
    WANTED=()
}

# Debian's postgresql-NN makes and starts a cluster when first installed. Nobody asked for one: switch that off for the
# length of this transaction only, so that a later install of the user's own behaves as he expects.
no_main_cluster() {
    local line=$1 dropin=/etc/postgresql-common/createcluster.d/zz-hyperion_vault.conf status=0
    export DEBIAN_FRONTEND=noninteractive
    case " $line " in
    *" postgresql-"[0-9]*)
        # The settings directory comes with postgresql-common, which by itself makes no cluster.
        apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null || return 1
        mkdir -p "${dropin%/*}"
        printf 'create_main_cluster = false\n' >"$dropin"
        ;;
    esac
    $line -qq >/dev/null || status=$?
    rm -f "$dropin"
    return "$status"
}

# ---- Rust

rust_version_of() { "$@" --version 2>/dev/null | sed -nE 's/^rustc ([0-9]+\.[0-9]+)\..*/\1/p'; }
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Uses the active Rust if it is new enough, else another one that rustup already has; the default stays untouched.
ensure_rust() {
    local version toolchain
    version=$(rust_version_of rustc) || true
    if [ -n "$version" ] && at_least "$version" $RUST_NEEDED; then
        info "rustc $version"
        return 0
    fi
    if has rustup; then
        for toolchain in $(rustup toolchain list 2>/dev/null | awk '{print $1}' | grep -E '^(stable|[0-9])' | sort -rV); do
            version=$(RUSTUP_TOOLCHAIN=$toolchain rust_version_of rustc) || true
            if [ -n "$version" ] && at_least "$version" $RUST_NEEDED; then
                export RUSTUP_TOOLCHAIN=$toolchain
                info "rustc $version (rustup toolchain $toolchain)"
                return 0
            fi
        done
    fi
    local now="none is installed"
    version=$(rust_version_of rustc) || true
    [ -z "$version" ] || now="the one here is $version"
    if has rustup; then
        die "Rust $RUST_NEEDED or newer is needed; $now" "run: rustup toolchain install stable --component rustfmt,clippy"
    fi
    # Debian 12 packages Rust 1.63, so apt is no help; and a script from the network is the user's own decision.
    die "Rust $RUST_NEEDED or newer is needed; $now (Debian's own package is too old)" "install it with:" \
        "$(has curl || ! has apt-get || printf '  as root: apt-get install -y --no-install-recommends curl ca-certificates')" \
        "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --component rustfmt,clippy" \
        "then run this again"
}

# Rust's own checks, needed by the tests but not by a build.
ensure_rust_components() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        die "rustfmt or clippy is missing" "run: rustup component add rustfmt clippy"
    fi
}

# ---- cargo-pgrx

has_cargo_pgrx() { [ "$(cargo pgrx --version 2>/dev/null)" = "cargo-pgrx $PGRX_VERSION" ]; }

ensure_cargo_pgrx() {
    if has_cargo_pgrx; then
        info "cargo-pgrx $PGRX_VERSION"
        return 0
    fi
    info "building cargo-pgrx $PGRX_VERSION into $TOOLS (about 2 minutes on 2 cores, once)"
    mkdir -p "$TOOLS"
    # Unoptimised: it drives cargo and copies files. An optimised build takes 2.6 times the processor time.
    cargo install cargo-pgrx --version "=$PGRX_VERSION" --locked --root "$TOOLS" --debug \
        --config profile.dev.debug=0 --config 'profile.dev.package."*".debug=0' ||
        die "cargo-pgrx could not be built" "see above; by hand: cargo install cargo-pgrx --version =$PGRX_VERSION --locked"
    has_cargo_pgrx || die "cargo-pgrx was built, but \"cargo pgrx --version\" does not say $PGRX_VERSION"
}

# pgrx's build script reads headers through config.toml in PGRX_HOME, and runs again when that file changes: an entry
# that works stays as it is, whoever made it, and all missing ones are added in one go.
# Arguments: MAJOR PG_CONFIG, repeated.
ensure_pgrx_config() {
    local config=${PGRX_HOME:-$HOME/.pgrx}/config.toml entry add=()
    while [ $# -ge 2 ]; do
        entry=$(sed -nE "s/^ *pg$1 *= *\"(.*)\" *\$/\\1/p" "$config" 2>/dev/null | head -n 1) || true
        [ -n "$entry" ] && usable_pg_config "$entry" "$1" || add+=("--pg$1=$2")
        shift 2
    done
    [ ${#add[@]} -gt 0 ] || return 0
    # Created first: pgrx wants the directory that PGRX_HOME names to exist.
    mkdir -p "${config%/*}"
    cargo pgrx init --no-run "${add[@]}" >/dev/null || die "cargo pgrx init ${add[*]} failed"
}
