"""Does a reply sound like an assistant, not like somebody at the roadside? Fixed phrases make the rate comparable.

Each pattern is one habit of instruction-tuned models that people do not have when police stop them. A phrase that
people say, too ("I'm sorry, I can't do that"), counts only with the words that only assistants put to it.
"""

from __future__ import annotations

import re

_CANNOT = r"(?:cannot|can't|can not|am unable to|'m unable to|am not able to|'m not able to|won't)"

PATTERNS: dict[str, str] = {
    "says it is an AI": r"\bas an? (?:\w+ )?(?:ai|(?:large )?language model|virtual assistant|chatbot)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language model|(?:ai|virtual|digital) assistant|chatbot)\b",
    "refuses a request": rf"\bi {_CANNOT} (?:assist|engage|provide|fulfil?l|generate|create|role-?play)\b"
    rf"|\bi {_CANNOT} (?:help|continue) (?:you )?with (?:this|that|your) (?:request|conversation|question|topic)\b",
    "offers help": r"\bhow (?:can|may) i (?:assist|help) you\b"
    r"|\bi(?:'m| am) here to (?:help|assist|support|listen)\b"
    r"|\bis there anything else i can (?:help|assist)\b|\bfeel free to (?:ask|reach out|let me know)\b"
    r"|\bi(?:'d| would) be happy to (?:help|assist)\b|\bplease let me know if you (?:have|need)\b",
    "gives general advice": r"\bit(?:'s| is) (?:important|essential|crucial) (?:to|that|for)\b"
    r"|\bseek (?:professional|medical|legal) (?:help|advice|attention)\b|\bif you or someone you know\b",
    "acknowledges by formula": r"^(?:certainly|absolutely|of course)[!,.] (?:i|here|let)\b"
    r"|\bi (?:completely |fully |totally )?understand your (?:concerns?|frustrations?|feelings|perspective)\b"
    r"|\bi apologi[sz]e for (?:any|the) (?:inconvenience|confusion|misunderstanding)\b"
    r"|\bthank you for (?:reaching out|bringing this to my attention|your (?:understanding|cooperation|patience))\b",
    "writes a page": r"\*\*[^*\n]+\*\*|^\s*(?:[-*] |#+ |\d+\. )(?:.*\n)+?\s*(?:[-*] |#+ |\d+\. )",
    "writes a script": r"^\W{0,2}(?:officer|civilian|suspect|driver|user|assistant)\W{0,2}:",
}

_ANY = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS.values()), re.IGNORECASE | re.MULTILINE)


def looks_like_assistant(text: str) -> bool:
    """Whether a reply holds any of `PATTERNS`: a refusal, an offer of help, advice, markup, or lines of a script."""
    return _ANY.search(text.replace("’", "'")) is not None
