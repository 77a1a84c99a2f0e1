"""What a speaker label of a published transcript says: a role, a person's name, or nothing."""

from __future__ import annotations

import re

from deescal.judge import roles as judge_roles

POLICE = (
    r"officer|deputy|trooper|sergeant|sgt\.?|detective|corporal|cpl\.?|lieutenant|lt\.?|captain|chief|constable|"
    r"sheriff|marshal|ranger|game warden|patrol(?:man|woman)|investigator|inspector|special agent"
)
_RELATIVE = (
    r"mother|father|parent|mom|dad|sister|brother|son|daughter|grand(?:ma|pa|mother|father|son|daughter)|wife|husband|"
    r"fianc\w+|(?:boy|girl)?friend|roommate|cousin|niece|nephew|family member|companion|co-worker"
)
# Tried before `judge_roles.role_of_label`, in order: what its shorter list leaves out or, as in "female officer" and
# "neighbor, talking to the police", reads the wrong way round.
_LABELS: tuple[tuple[str, str], ...] = (
    (
        "medic",
        r"medic\b|\b(em[ts]|nurse|doctor|physician)\b|fire ?(fighter|depart)|(first|emergency) responder|ambulance",
    ),
    ("medic", r"^medical (staff|personnel|professional)|^emergency (medical )?services$"),
    ("other", r"^(loss|asset) p\w+|\bsecurity (guard|officer|personnel)|^security$|bouncer|bail bond|insurance agent"),
    (
        "other",
        r"animal control|medical examiner|^automat|recording|voice ?mail|\bgps\b|\b(machine|device|music|singer|dog)$",
    ),
    ("other", r"\b(translator|interpreter|lawyer|attorney|prosecutor|bailiff|court|counsell?or|social worker)\b"),
    ("narrator", r"^commentator|^sponsor|streamer|video (editor|producer)|spokesperson|retired police officer"),
    ("bystander", r"^(bystander|eye ?witness|witness|neighbou?r|onlooker|observer)"),
    ("dispatcher", r"^operator$|^dispatch"),
    (
        "officer",
        rf"^((un\w+|male|female|first|second|lead|another|arresting|younger|older) )*({POLICE})( \w+)?( \d+)?$",
    ),
    ("officer", r"^k-?9( \w+)?$|\bswat\b|^air (support|unit)|police helicopter"),
    ("civilian", rf"^(\w+ )?({_RELATIVE})( of\b.*|)$|'s ([\w-]+ )?({_RELATIVE})\b|^(drunk|intoxicated|distressed) "),
    (
        "civilian",
        r"^(homeless|scared|injured) |^(citizen|aggressor|child|subject)\b|\b(arrestee|burglar|robber|shooter)\b",
    ),
    (
        "civilian",
        r"\b(attacker|tenant|landlord|owner|employee|manager|cashier|clerk|teller|waiter|waitress|bartender)\b",
    ),
    ("civilian", r"\b(juvenile|teenager|cyclist|key ?holder)\b|^motorist|^motorcyclist"),
    (
        "civilian",
        r"\b(patient|caregiver|babysitter|(flight|drive-thru) attendant|housekeeper|life ?guard|mechanic|contractor|"
        r"musician|(hair ?)?stylist|chef|(delivery|sales) (person|guy|man|woman)|principal|organizer|volunteer|"
        r"(maintenance|poll|construction) worker|(faculty|community) member)\b",
    ),
)
_COMPILED_LABELS = tuple((role, re.compile(pattern)) for role, pattern in _LABELS)
_GENERIC = re.compile(
    r"\b(speaker|voice|unknown|unidentified|male|female|person|man|woman|interviewe[re]|individual|adult|guest|visitor|"
    r"team|leader|supervisor|pilot|group|crowd|all|both|everyone)\b",
    re.IGNORECASE,
)


def label_role(label: str) -> str | None:
    """The role that a speaker label names, or None for a person's name, a letter or "[Voice 2]"."""
    text = label.strip("[]() .").lower()
    found = next((role for role, pattern in _COMPILED_LABELS if pattern.search(text)), None)
    if found is None and not (person_name(label) and text.endswith("staff")):
        found = judge_roles.role_of_label(label)
    return found


def person_name(label: str) -> tuple[str, ...]:
    """The parts of the name that a label is, such as ("Jane", "Doe"); empty for any other label."""
    words = label.split()
    if label.startswith(("[", "(")) or not 1 <= len(words) <= 4 or _GENERIC.search(label):
        return ()
    return tuple(words) if all(re.fullmatch(r"[A-Z][\w'’.-]+", word) for word in words) else ()


def anonymous(label: str) -> bool:
    """Whether the label points at nobody in particular, such as "[Voice 1]": several people may share it."""
    return bool(_GENERIC.search(label))
