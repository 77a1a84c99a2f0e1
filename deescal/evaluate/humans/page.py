"""A rater's page: one file that works offline, keeps every answer at once, and hands them over as CSV.

The words of others reach it as JSON only, which its script puts in as text. A content security policy with the hash of
the one script stands behind that: nothing else runs, and nothing is fetched or sent.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from deescal.evaluate.humans.criteria import INTRODUCTION, QUESTIONS, RULES, criteria
from deescal.evaluate.humans.pack import Pack
from deescal.report.page import script_json, template_environment


def render_pack_page(pack: Pack, rater: str) -> str:
    """The HTML that `rater` is handed: of the pack's items those on their sheet, and nothing of the key."""
    from jinja2 import ChoiceLoader, PackageLoader

    environment = template_environment()
    own = PackageLoader("deescal", "evaluate/humans")
    environment.loader = ChoiceLoader([own, environment.loader] if environment.loader else [own])
    script = environment.get_template("script.html.jinja").render()
    form = pack.config.form
    return environment.get_template("pack.html.jinja").render(
        rater=rater,
        form=form,
        n_items=len(pack.sheets[rater]),
        introduction=INTRODUCTION[form],
        questions=QUESTIONS[form],
        criteria=criteria(form),
        rules=RULES,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=script_json(page_data(pack, rater)),
    )


def page_data(pack: Pack, rater: str) -> dict[str, Any]:
    """What the page's script needs."""
    items = []
    for blinded in pack.sheets[rater]:
        shown = pack.shown[blinded]
        messages = [{"speaker": speaker, "text": text} for speaker, text in shown.messages]
        items.append({"id": blinded, "setting": shown.setting, "messages": messages, "replies": shown.replies})
    questions = [
        {"name": q.name, "title": q.title, "ask": q.ask, "choices": list(q.choices.items())}
        for q in QUESTIONS[pack.config.form]
    ]
    return {
        "pack": pack.pack_id,
        "rater": rater,
        "shownMessages": pack.config.shown_messages,
        "questions": questions,
        "items": items,
    }
