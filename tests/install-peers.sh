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
need curl curl
