#!/bin/sh
# Installs the real programs that the tests talk to (Debian packages), without starting any of them.
# As root where apt-get exists; elsewhere says what to install. Never fails: what stays missing is reported by the tests.
set -u
PATH=$PATH:/usr/sbin:/sbin

missing=
need() { # need PROGRAM PACKAGE...
    program=$1
    shift
    command -v "$program" >/dev/null 2>&1 || missing="$missing $*"
}
need named bind9
need tsig-keygen bind9
need nsupdate bind9-dnsutils
need knotd knot
need unbound unbound
need postfix postfix libsasl2-modules
need swaks swaks libnet-ssleay-perl
need opendkim opendkim
need opendkim-testmsg opendkim-tools
need rspamd rspamd
perl -MMail::DKIM -e 1 2>/dev/null || missing="$missing libmail-dkim-perl"
need curl curl
need msmtp msmtp
need s-nail s-nail
need node nodejs
need haproxy haproxy
need sshd openssh-server
need openssl openssl
need strace strace
need prometheus prometheus
need faketime faketime
need ip iproute2
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
[ -f /usr/share/nodejs/nodemailer/package.json ] || missing="$missing node-nodemailer"

# Exim cannot be installed beside Postfix: its program is unpacked into a directory of ours, its libraries are installed.
unpacked=$(cd "$(dirname "$0")/.." && pwd)/.venv/peers
exim=$unpacked/exim/usr/sbin/exim4
[ -x "$exim" ] || missing="$missing libdb5.3 libgnutls-dane0 libgnutls30 libidn12 libidn2-0 libnsl2 libpcre2-8-0"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests that need these will be skipped; to run them, install (names of Debian packages):$missing"
    exit 0
fi

echo "installing the peers of the tests:$missing"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then # keeps packages from starting their daemons
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections 2>/dev/null
log=$(mktemp)
# shellcheck disable=SC2086  # a list of words
if ! apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1; then
    apt-get update -q >"$log" 2>&1
    if ! apt-get install -y -q --no-install-recommends $missing >>"$log" 2>&1; then
        tail -n 5 "$log"
        echo "could not install all of them; the tests that need them say so"
    fi
fi
if [ ! -x "$exim" ]; then
    debs=$(mktemp -d)
    chmod 755 "$debs"
    (cd "$debs" && apt-get download -q exim4-daemon-light exim4-base) >"$log" 2>&1
    mkdir -p "$unpacked/exim"
    for deb in "$debs"/*.deb; do
        dpkg -x "$deb" "$unpacked/exim" || tail -n 5 "$log"
    done
    rm -rf "$debs"
    id Debian-exim >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin Debian-exim
fi
rm -f "$log"
exit 0
