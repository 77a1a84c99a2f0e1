#!/usr/bin/env bash
# Debian packages that some tests use. All are optional: without chromium the browser tests skip with a reason, without
# tcmalloc vLLM on CPU is some 15 % slower. flite and espeak-ng speak the sample clips, which are in the repository:
# `scripts/system_packages.sh --clips` adds them, to make the clips anew.
set -euo pipefail

have_program() { command -v "$1" >/dev/null; }
have_library() { ldconfig -p 2>/dev/null | grep -q "$1" || /sbin/ldconfig -p 2>/dev/null | grep -q "$1"; }

missing=()
have_program chromium || have_program chromium-browser || have_program google-chrome || missing+=(chromium)
have_library libtcmalloc_minimal.so.4 || missing+=(libtcmalloc-minimal4)
if [[ ${1:-} == --clips ]]; then
    for program in flite espeak-ng; do
        have_program "$program" || missing+=("$program")
    done
fi

if ((${#missing[@]} == 0)); then
    echo "system packages: nothing missing"
    exit 0
fi
apt=(apt-get)
if ((EUID != 0)); then
    apt=(sudo -n apt-get)
    # -n: a set-up that waits for a password in a log helps nobody
    have_program sudo && sudo -n true 2>/dev/null || apt=()
fi
if ((${#apt[@]} == 0)) || ! have_program apt-get; then
    echo "system packages: optional ${missing[*]} missing; as root: apt-get install ${missing[*]}"
    exit 0
fi
echo "system packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! { "${apt[@]}" -qq update && "${apt[@]}" -qqy install --no-install-recommends "${missing[@]}" >/dev/null; }; then
    echo "system packages: could not install ${missing[*]} (optional); what needs them is skipped"
fi
