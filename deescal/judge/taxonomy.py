"""The 30 binary features of an encounter, in five groups: what each means and how the judge is asked for it.

A feature holds only if the transcript itself shows it. "Officer" is any sworn speaker or a dispatcher acting
for them; "civilian" is anyone else who takes part, but not a presenter. A group's score is the number of its
features that are present.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("police_presence", "interaction", "escalation", "deescalation", "context")


@dataclass(frozen=True)
class Feature:
    """One yes/no property of a transcript."""

    name: str
    group: str
    definition: str  # what makes it true, with examples; goes into the rubric
    question: str  # the short form that is asked after the transcript


def _group(group: str, *features: tuple[str, str, str]) -> tuple[Feature, ...]:
    return tuple(Feature(name, group, definition, question) for name, definition, question in features)


FEATURES: tuple[Feature, ...] = (
    *_group(
        "police_presence",
        (
            "police_identified_by_role",
            "a police officer, deputy, trooper or detective takes part in the encounter and can be told as one",
            "Does a police officer speak in this transcript, as a participant?",
        ),
        (
            "police_commands_present",
            "an officer gives a civilian a direct order: stop, step out, hands up, sit down, drop it",
            "Does an officer give a civilian a direct order?",
        ),
        (
            "id_request_event",
            "an officer asks who someone is: name, license, ID, registration, date of birth, insurance",
            "Does an officer ask someone for a name, license, ID or date of birth?",
        ),
        (
            "legal_procedure_language",
            "words of legal procedure are spoken: under arrest, detained, warrant, rights, citation, charges, trespass",
            "Do the people speak of arrest, detention, a warrant, rights, a citation or charges?",
        ),
        (
            "police_explaining_actions",
            "an officer tells a civilian why something is done: the reason for the stop, the search, the handcuffs",
            "Does an officer tell a civilian the reason for what the police do?",
        ),
        (
            "civilian_questioning_police",
            "a civilian questions or challenges the officer's action: why am I stopped, what did I do, am I detained",
            "Does a civilian question or challenge what the officer does?",
        ),
    ),
    *_group(
        "interaction",
        (
            "conversation_present",
            "at least two people talk to each other in the encounter, back and forth",
            "Do at least two people talk with each other, back and forth?",
        ),
        (
            "verbal_disagreement_detected",
            "two sides openly disagree, argue or contradict each other",
            "Do two sides openly argue or contradict each other?",
        ),
        (
            "compliance_discussion",
            "they talk about whether a civilian will or must comply: are you going to cooperate, I need you to comply",
            "Do they discuss whether the civilian will or must comply?",
        ),
        (
            "instruction_clarification_dialogue",
            "an instruction is asked about, repeated in other words or clarified: stand where? I said turn around",
            "Is an instruction asked about, repeated or clarified?",
        ),
        (
            "negotiation_attempts",
            "a side offers a trade, choice or condition: if you put it down, I will; can I call my mother first",
            "Does someone offer a choice, a trade or a condition to reach agreement?",
        ),
        (
            "conflict_resolution_attempt",
            "someone tries to settle the conflict: let us work this out, tell me your side, nobody has to go to jail",
            "Does someone try to settle the conflict itself?",
        ),
    ),
    *_group(
        "escalation",
        (
            "raised_threat_language",
            "someone threatens violence, harm or a weapon: I will kill you, I am going to shoot",
            "Does someone threaten violence or harm?",
        ),
        (
            "noncompliance_resistance_language",
            "a civilian refuses or resists an order in words: no, I am not getting out, do not touch me",
            "Does a civilian refuse or resist an order in words?",
        ),
        (
            "accusatory_language",
            "someone accuses the other side of wrongdoing: you are lying, you hit me, you stole it",
            "Does someone accuse the other side of doing wrong?",
        ),
        (
            "police_warning_language",
            "an officer warns of a consequence: you will be tased, if you do not stop you go to jail",
            "Does an officer warn a civilian of a consequence?",
        ),
        (
            "emotional_intensity_spike",
            "strong emotion shows in the words: screaming, cursing at someone, crying, pleading, panic",
            "Do the words show strong emotion: cursing, crying, pleading, panic?",
        ),
        (
            "crowd_escalation_factors",
            "bystanders or several other people add pressure: a crowd shouts, family interferes, several fight",
            "Do bystanders, family or a crowd interfere and add pressure?",
        ),
        (
            "use_of_force_transition_signals",
            "force starts or is used: taser, shots fired, get on the ground in a struggle, stop resisting",
            "Do the words show that force is being used: taser, shots, struggle, stop resisting?",
        ),
    ),
    *_group(
        "deescalation",
        (
            "calming_language_used_by_officer",
            "an officer soothes: calm down said gently, take a breath, you are okay, relax, it is all right",
            "Does an officer use soothing words to calm someone?",
        ),
        (
            "empathetic_statements",
            "someone in authority shows understanding of feelings: I understand, I know this is hard, I am sorry",
            "Does an officer show understanding for someone's feelings?",
        ),
        (
            "clear_explanations_given",
            "an officer explains clearly the situation, the law or the next steps",
            "Does an officer clearly explain the situation, the law or the next steps?",
        ),
        (
            "tone_softening_cues",
            "an officer is polite or soft under tension: sir please, thank you, I appreciate that, buddy",
            "Is an officer polite or friendly to a civilian: please, thank you, I appreciate it?",
        ),
        (
            "conflict_deescalation_success",
            "there was tension, and it has visibly gone down by the end",
            "Was there tension that has clearly calmed down by the end?",
        ),
        (
            "agreement_reached",
            "they reach an explicit agreement, or the civilian complies freely: okay, I will go, deal",
            "Does the civilian agree in the end to do what is asked?",
        ),
    ),
    *_group(
        "context",
        (
            "no_police_presence",
            "no officer takes part in any encounter in the transcript",
            "Is there no police officer among the speakers?",
        ),
        (
            "no_conversation_detected",
            "there is only narration, a monologue or fragments, nobody converses",
            "Is it only narration or a monologue, without a conversation?",
        ),
        (
            "advertisement_content_detected",
            "a product, service, sponsor or channel subscription is promoted",
            "Is a product, a sponsor or a channel subscription promoted?",
        ),
        (
            "training_range_context",
            "it is a training exercise, a drill, a class or a shooting range",
            "Is this a training exercise, a drill or a class rather than a real event?",
        ),
        (
            "non_relevant_crime_only_context",
            "a crime is only told of or shown, with no talk between police and a civilian",
            "Does a presenter only tell of a crime, without police talking to a civilian?",
        ),
    ),
)

NAMES: tuple[str, ...] = tuple(f.name for f in FEATURES)
BY_NAME: dict[str, Feature] = {f.name: f for f in FEATURES}
GROUP_NAMES = {
    "police_presence": "Police presence",
    "interaction": "Interaction",
    "escalation": "Escalation",
    "deescalation": "De-escalation",
    "context": "Context filters",
}
BY_GROUP: dict[str, tuple[str, ...]] = {g: tuple(f.name for f in FEATURES if f.group == g) for g in GROUPS}


def rubric() -> str:
    """All definitions, one a line, as the judge reads them."""
    return "\n".join(f"- {f.name.replace('_', ' ')}: {f.definition}." for f in FEATURES)
