#!/bin/sh
# What the tests need beside cargo: a C compiler for the bundled SQLite, PostgreSQL's server programs, strace, unshare and
# ip for a network of their own, Node 18 or later with npm and Python 3 with pip, which fetch other people's clients, guests
# and toolchains. Each argument is one more program, from the package of the same name.
# As root, or with CI=true, missing packages are installed; otherwise they are named.
set -eu

# Where Debian has what only root starts, and not everybody looks.
PATH=$PATH:/usr/sbin
missing=
for program in "$@"; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
command -v cc >/dev/null || missing="$missing gcc"
set -- /usr/lib/postgresql/*/bin/initdb
[ -x "$1" ] || command -v initdb >/dev/null || missing="$missing postgresql"
command -v strace >/dev/null || missing="$missing strace"
command -v unshare >/dev/null || missing="$missing util-linux"
command -v ip >/dev/null || missing="$missing iproute2"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ] || [ "${CI:-}" = true ]; then
    echo "installing$missing"
    apt-get update -qq
    # The tests start clusters of their own; the package shall not start one.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "these packages are needed: apt-get install$missing" >&2
    exit 1
fi
