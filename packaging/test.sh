#!/usr/bin/env bash
# Everything that must hold, from nothing: set-up, format, lints, tests of the pure crates, and for each major the
# extension built with fault injection, installed into a private tree and tested on throw-away clusters. At last the
# instructions of a read are held against their limits, in a release build, where there is valgrind.
#
# Runs as root (the server then runs as an unprivileged user) or as a normal user. A stage that fails does not stop the
# others; the last line counts all tests, and the exit status is 0 only if nothing failed.
#   PG_MAJORS        majors to test on, oldest first         (15 18)
#   PG_CHECK_MAJORS  majors whose build is checked by clippy (15 16 17 18)
#   TEST_ARGS        passed on to the integration tests, such as the name of one
#   ONLY             stages to run, by the start of their names: ONLY="rustfmt clippy-pg18"
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=packaging/lib.sh
. "$here/lib.sh"
# shellcheck source=packaging/toolchain.sh
. "$here/toolchain.sh"
# shellcheck source=packaging/postgres.sh
. "$here/postgres.sh"
# shellcheck source=packaging/moto.sh
. "$here/moto.sh"

read -r -a MAJORS <<<"${PG_MAJORS:-15 18}"
read -r -a CHECKED <<<"${PG_CHECK_MAJORS:-15 16 17 18}"
read -r -a ARGS <<<"${TEST_ARGS:-}"
LOGS=$WORK/test-logs
TABLE=() FAILED=()

main() {
    local began=$SECONDS major
    [ ${#MAJORS[@]} -gt 0 ] || die "PG_MAJORS is empty"
    plan
    rm -rf "$LOGS"
    mkdir -p "$LOGS"
    cd "$ROOT"

    # Set-up is not a check: without it nothing else says anything, so a failure ends the run here.
    stage "set-up: tools, PostgreSQL $(every_major), moto"
    # shellcheck disable=SC2046 # majors are words
    "$here/setup.sh" $(every_major) moto valgrind
    ensure_rust >/dev/null
    ensure_rust_components
    # Once more: what set-up has installed may make a stage possible.
    plan
    # One run at a time installs into the trees of this cache.
    lock test

    check "rustfmt" cargo fmt --all -- --check
    for major in "${CHECKED[@]}"; do
        check "clippy-pg$major" cargo clippy --workspace --all-targets --no-default-features --features "pg$major testing" -- -D warnings
    done
    # What users get has no fault injection in it: that build is checked too.
    check "clippy-release" cargo clippy --workspace --all-targets --no-default-features --features "pg${MAJORS[-1]}" -- -D warnings
    if cargo deny --version >/dev/null 2>&1; then
        check "dependencies" cargo deny --offline check licenses bans sources
    else
        info "(cargo-deny is not installed: licences and sources are not checked; see make deny)"
    fi
    check "tests-crates" cargo test --no-fail-fast -p hyperion_vault_core -p hyperion_vault_kms --features hyperion_vault_kms/testing

    SERVER_USER=$(server_user)
    for major in "${MAJORS[@]}"; do
        check "install-pg$major" install_extension "$(pg_config_of "$major")" "pg$major testing"
        # Without it, whatever an earlier run left in the tree would be tested.
        [ $RESULT != ok ] || check "tests-pg$major" integration "$major"
    done
    if counts_instructions; then
        check "instructions-pg18" env PG_MAJOR=18 BENCH_OUT="$LOGS/instructions.json" "$here/bench.sh" gate
    else
        info "(the instructions of a read are not counted: that takes valgrind, PostgreSQL 18 and x86-64)"
    fi
    summary "$((SECONDS - began))"
}

# The union of both lists, in order.
every_major() { printf '%s\n' "${MAJORS[@]}" "${CHECKED[@]}" | sort -un | paste -sd ' '; }

# How many stages there will be, for the numbers shown.
plan() {
    STAGES=$((4 + ${#CHECKED[@]} + 2 * ${#MAJORS[@]}))
    ! cargo deny --version >/dev/null 2>&1 || STAGES=$((STAGES + 1))
    ! counts_instructions || STAGES=$((STAGES + 1))
}

# Limits are for this major and this processor.
counts_instructions() {
    case " ${MAJORS[*]} " in *" 18 "*) ;; *) return 1 ;; esac
    [ "$(uname -m)" = x86_64 ] && has valgrind
}

wanted() {
    local prefix
    [ -n "${ONLY:-}" ] || return 0
    for prefix in $ONLY; do
        case $1 in "$prefix"*) return 0 ;; esac
    done
    return 1
}

# check NAME COMMAND...: runs it with its output shown and kept; its result goes into the table and RESULT.
check() {
    local name=$1 log began=$SECONDS passed failed
    shift
    RESULT=ok
    stage "$name"
    wanted "$name" || { info "skipped (ONLY=$ONLY)"; return 0; }
    log=$LOGS/$(printf '%02d-%s' "$STAGE" "$name").log
    # In a subshell: a die inside is the failure of this stage, not of the run.
    ("$@") 2>&1 | tee "$log" || RESULT=FAILED
    read -r passed failed < <(counts "$log")
    case $name in tests*)
        # A run that tests nothing must not look like one that passed.
        [ "$passed" -gt 0 ] || [ -n "${TEST_ARGS:-}" ] || RESULT=FAILED
        ;;
    esac
    # A stage that failed without a failed test (it did not compile, it was killed) counts as one.
    [ $RESULT = ok ] || { [ "$failed" -gt 0 ] || failed=1; FAILED+=("$name"); }
    PASSED_TESTS=$((PASSED_TESTS + passed)) FAILED_TESTS=$((FAILED_TESTS + failed))
    TABLE+=("$(printf '%-26s %-7s %8s  %s' "$name" "$RESULT" "$(elapsed $((SECONDS - began)))" \
        "$( [ $((passed + failed)) = 0 ] || printf '%d passed, %d failed' "$passed" "$failed")")")
    info "$RESULT after $(elapsed $((SECONDS - began)))"
}
PASSED_TESTS=0 FAILED_TESTS=0

# Sums libtest's own result lines.
counts() {
    sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$1" |
        awk '{p += $1; f += $2} END {print p + 0, f + 0}'
}

# pg_upgrade goes from the oldest of MAJORS, whose tree has the extension from its own stage by then, to the newest.
integration() {
    local older='' skip=(--skip pg_upgrade)
    if [ "$1" = "${MAJORS[-1]}" ] && [ "$1" != "${MAJORS[0]}" ]; then
        older=$(pg_config_of "${MAJORS[0]}") skip=()
    elif [ ${#MAJORS[@]} = 1 ]; then
        info "(pg_upgrade is not tested: it needs two majors, see PG_MAJORS)"
    fi
    HYPERION_VAULT_TEST_OLD_PG_CONFIG=$older PG_CONFIG=$(pg_config_of "$1") HYPERION_VAULT_TEST_USER=$SERVER_USER \
        HYPERION_VAULT_MOTO=$(moto_server) \
        cargo test --no-fail-fast -p hyperion_vault_tests -- "${skip[@]}" "${ARGS[@]}"
}

summary() {
    local row
    [ ${#TABLE[@]} -gt 0 ] || die "ONLY=\"$ONLY\" names no stage"
    printf '\n%sSummary%s (%s, logs in %s)\n' "$BOLD" "$PLAIN" "$(elapsed "$1")" "$LOGS"
    for row in "${TABLE[@]}"; do printf '  %s\n' "$row"; done
    [ ${#FAILED[@]} = 0 ] || printf '  %sfailed: %s%s\n' "$RED" "$(printf '%s; ' "${FAILED[@]}")" "$PLAIN"
    printf '%d passed, %d failed\n' "$PASSED_TESTS" "$FAILED_TESTS" | tee "$LOGS/summary"
    [ "$FAILED_TESTS" = 0 ] && [ ${#FAILED[@]} = 0 ]
}

main "$@"
