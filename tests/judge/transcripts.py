"""Invented transcripts, speakers as letters."""

from __future__ import annotations

from typing import Any


def turns(*lines: str) -> list[dict[str, Any]]:
    """'A: text' lines -> turns of schema.TURN, three seconds each."""
    rows = []
    for i, line in enumerate(lines):
        speaker, _, text = line.partition(": ")
        rows.append(
            {
                "turn_id": i,
                "start_s": 3.0 * i,
                "end_s": 3.0 * i + 2.5,
                "speaker": speaker,
                "role": None,
                "text": text,
                "words": [],
                "overlap_share": 0.0,
                "assignment_margin": 1.0,
                "asr_confidence": 0.9,
            }
        )
    return rows


STOP = turns(
    "A: Good evening. I am Officer Hale with the city police. Please turn off the engine.",
    "B: Why are you stopping me? I did not do anything.",
    "A: The reason I stopped you is that your tail light is out. Can I see your license and registration?",
    "B: That is not true. You are lying. I am not giving you anything.",
    "A: I understand that you are upset. Take a breath. But if you refuse, I will write you a ticket.",
    "B: What do you want me to do?",
    "A: Just hand me your license, please. You are okay. Nobody is going to jail.",
    "B: Okay, I will give it to you. Here you go.",
    "A: Thank you, ma'am. I appreciate that.",
)
NARRATED = turns(
    "A: Welcome back to the channel. Today's video shows a robbery in a small store that was caught on camera.",
    "A: This video is sponsored by Glow Lamps. Use the link in the description and subscribe.",
    "A: The robber grabs the money from the register and runs. The victim was not hurt, the suspect was never found.",
)
DRILL = turns(  # in other words than the sample clip of a drill
    "A: Listen up, everybody. We do this stop twice, slow first, then at normal speed. Sergeant Ruiz is our driver.",
    "B: Do we load live ammunition?",
    "A: Not in this building. You all carry dummy weapons, and I check them before each run.",
    "B: What if he does not obey me?",
    "A: Then talk him through it, like we did in class yesterday. Begin.",
    "B: Police. Turn off the car and show me your hands.",
    "C: Why, officer? What did I do?",
    "A: Pause there. You stood too close to the door. Reset, and start the scenario again.",
    "B: Understood. How am I graded?",
    "A: On your words, not on speed. Every trainee gets two tries, and then we debrief.",
)
EVERYDAY = turns(
    "A: What should we cook tonight? I am hungry.",
    "B: How about soup? We have carrots in the kitchen.",
    "A: Sounds fine. Can you buy some bread?",
    "B: Sure, I will stop at the bakery on my way.",
)
