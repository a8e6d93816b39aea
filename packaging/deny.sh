#!/usr/bin/env bash
# cargo-deny over all dependencies: licences compatible with GPL-3.0-or-later, sources, known vulnerabilities.
# Needs the network for the advisory database; builds cargo-deny below the cache the first time (about 5 minutes).
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"

ensure_rust >/dev/null
if ! cargo deny --version >/dev/null 2>&1; then
    info "building cargo-deny into $TOOLS (about 5 minutes, once)"
    cargo install cargo-deny --locked --root "$TOOLS" || die "cargo-deny could not be built"
fi
cd "$ROOT"
cargo deny check licenses bans sources
cargo deny check advisories
