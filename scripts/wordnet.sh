#!/usr/bin/env bash
# WordNet 3.0 for METEOR, where NLTK looks for it, into $DEESCAL_CACHE/nltk_data (default ~/.cache/deescal/nltk_data).
# The files are those of Debian's packages, taken out without installing them, so that no root and no NLTK server is
# needed; each is checked by its SHA-256. Optional: without WordNet, METEOR says how to get it.
set -euo pipefail

corpora=${DEESCAL_CACHE:-$HOME/.cache/deescal}/nltk_data/corpora
say() { printf '%-10s %s\n' wordnet "$1"; }
fail() {
    say "$1; METEOR needs it: python -m nltk.downloader wordnet" >&2
    exit 1
}

sums="
8824cc24bbedd797b9702316b27f07cd4c2b76b629539f0a1276f03926758016  adj.exc
e7291461b629abfe63301bbe1998cee09fd575ed7107abd7ea9763adb05bf0a8  adv.exc
a198580b8f705fa02797bba8b13e5cbe4a9f9f40cb1697e774c7fc6a5865b035  cntlist.rev
c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7  data.adj
444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139  data.adv
fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2  data.noun
adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2  data.verb
c9865d7b4d1f805bdef82ccdcea5282436e23083e6f6f1b33e716327c4eda810  index.adj
6f5465ed5758fe9c8a2f7ec17b1300f3aa875756c70ff7cba162f7e71bcf88ea  index.adv
a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04  index.noun
ce997000ec806318ff1dfadf77d314ac527358e127d7bbe3d1f4e83a1c5c1c2b  index.sense
e2ac24816c3a8289dcb72aaa9cf8db81fdf25ec34d792bfc96ac5b7a20c8b4ae  index.verb
2b5d675c380b39ecf595af9fa9d4e7feb1d58c643b0bff08c40ed5bfe41fab7a  noun.exc
dbbcf9a601b2d77e934e413b91d90e88ec7f933a8b77cfc00602a923b891b42c  verb.exc
"
# Debian leaves out the list of lexicographer files (man 5wn lexnames): number, name, part of speech.
lexnames="adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object
noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state
noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption
verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative
verb.weather adj.ppl"

complete() { (cd "$1" 2>/dev/null && [[ -f lexnames ]] && sha256sum --check --status <<<"$sums"); }
download() { (cd "$1" && apt-get -qq download wordnet-base wordnet-sense-index 2>/dev/null); }

if complete "$corpora/wordnet"; then
    say "in $corpora"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "no Debian packages here"
mkdir -p "$corpora"
work=$(mktemp -d "$corpora/.wordnet-XXXXXX")
trap 'rm -rf "$work"' EXIT
if ! download "$work"; then # apt's lists may never have been fetched
    apt-get -qq update 2>/dev/null || sudo -n apt-get -qq update 2>/dev/null || true
    download "$work" || fail "apt-get cannot download wordnet-base and wordnet-sense-index"
fi
for package in "$work"/*.deb; do
    dpkg -x "$package" "$work/root"
done
new=$work/root/usr/share/wordnet
cp "$work/root/usr/share/doc/wordnet-base/copyright" "$new/LICENSE"
declare -A category=([noun]=1 [verb]=2 [adj]=3 [adv]=4)
number=0
for name in $lexnames; do
    printf '%02d\t%s\t%d\n' "$number" "$name" "${category[${name%%.*}]}"
    number=$((number + 1))
done >"$new/lexnames"
complete "$new" || fail "Debian's files are not those this was tested with"
rm -rf "$corpora/wordnet"
mv "$new" "$corpora/wordnet"
say "WordNet 3.0 in $corpora"
