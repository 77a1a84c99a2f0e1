"""Who is compared: models, adapters over them, and names at an endpoint, each with a short unique label.

Contestants over one base are asked in one engine, those of an endpoint one by one. A contestant that cannot be loaded
is out alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from urllib.parse import urlsplit

from deescal.config import Config, fingerprint
from deescal.errors import UserError
from deescal.models import identity, resolve
from deescal.score.config import ScoreConfig, contestant_name
from deescal.serve.adapters import Adapter, check_adapter, parse_adapter
from deescal.serve.client import KEY_ENV, base_url, check_endpoint

REFERENCE = "reference"  # what the real civilian is called among systems
_NAMED_ADAPTER = re.compile(r"[\w.-]+=")


class Contestant(Config):
    """One of the systems that are compared."""

    label: str = ""  # letters, digits and . _ : @ - only
    model: str  # base: registry name, folder or Hugging Face id; of an endpoint, a name that it serves
    adapter: Adapter | None = None
    endpoint: str | None = None

    @property
    def asked_as(self) -> str:
        """What `deescal.score` calls it."""
        return contestant_name(self.model, self.adapter.name if self.adapter else None)

    @property
    def option(self) -> str:
        """As `deescal.score.config.parse_models` takes it."""
        return f"{self.asked_as}={self.adapter.uri}" if self.adapter else self.model

    @property
    def weights(self) -> str:
        """What changes when the weights do; of one that runs here."""
        base = identity(self.model)
        return f"{base}, adapter {self.adapter.digest}" if self.adapter else base

    @property
    def stands_for(self) -> str:
        """What `deescal.judge.independence` compares a judge with."""
        return f"{self.endpoint}#{self.model}" if self.endpoint else self.asked_as


@dataclass(frozen=True)
class Pass:
    """Contestants that are asked together: all over one base, or one at an endpoint."""

    contestants: tuple[Contestant, ...]

    @property
    def endpoint(self) -> str | None:
        return self.contestants[0].endpoint

    @property
    def labels(self) -> dict[str, str]:
        """Name in `deescal.score` -> label."""
        return {c.asked_as: c.label for c in self.contestants}

    def folder(self) -> str:
        """Name of the folder of its replies: another one where one is added, gone, or has other weights."""
        first = self.contestants[0]
        weights = [first.endpoint or identity(first.model), *(c.adapter and c.adapter.digest for c in self.contestants)]
        return f"{_short(first.model)}-{fingerprint([c.asked_as for c in self.contestants], weights)}"


def parse_contestants(texts: Sequence[str]) -> list[Contestant]:
    """Texts, each with one contestant or several between commas.

    NAME is a model, NAME:adapter=URI and NAME:URI an adapter over it, URL#MODEL a model at an endpoint.

    Raises:
        UserError: none at all, one that cannot be read, or one twice.
    """
    found = [_parse(part.strip()) for text in texts for part in text.split(",") if part.strip()]
    if not found:
        raise UserError("--models is required: NAME, NAME:adapter=URI or https://host/v1#MODEL, between commas")
    named: dict[tuple[str | None, str], Contestant] = {}
    for contestant in found:
        there = named.setdefault((contestant.endpoint, contestant.asked_as), contestant)
        if contestant.adapter and there.adapter != contestant.adapter:
            model, name = contestant.model, contestant.adapter.name
            raise UserError(f"--models: two adapters of {model} are called '{name}'; name them: {model}:first=URI")
        if there is not contestant:
            raise UserError(f"--models: '{contestant.option}' is given twice")
    return _labelled(found)


def _parse(text: str) -> Contestant:
    if text.startswith(("http://", "https://")):
        url, _, model = text.partition("#")
        if not model:
            raise UserError(f"--models '{text}': expected URL#MODEL, as https://host/v1#gpt-4o-mini")
        if "=" in model:  # `deescal.score` would read an adapter
            raise UserError(f"--models '{text}': a name with '=' cannot be asked for; serve it under another")
        return Contestant(model=model, endpoint=base_url(url))
    base, colon, adapter = text.partition(":")
    if not base or "=" in base or (colon and not adapter):
        raise UserError(f"--models '{text}': expected NAME, NAME:adapter=URI or https://host/v1#MODEL")
    if not colon:
        return Contestant(model=base)
    named = adapter if _NAMED_ADAPTER.match(adapter) else f"{_adapter_name(adapter)}={adapter}"
    return Contestant(model=base, adapter=parse_adapter(named))


def _adapter_name(uri: str) -> str:
    """Of the folder of a fine-tune, or of its adapter/."""
    parts = [part for part in uri.rstrip("/").split("/") if part not in ("", "adapter", ".", "..")]
    return _short(parts[-1]) if parts else "adapter"


def _short(name: str) -> str:
    """The last part of a name or path, of letters, digits and . _ - only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-._")[:40] or "model"


def _labelled(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Labels as short as they can be: the name; with its host where two are alike; with a number where still."""

    def label(c: Contestant, with_host: bool) -> str:
        place = f"@{_short(urlsplit(c.endpoint).netloc.replace(':', '-'))}" if with_host and c.endpoint else ""
        return _short(c.model) + place + (f":{c.adapter.name}" if c.adapter else "")

    short = Counter(label(c, with_host=False) for c in contestants)
    labels = [label(c, with_host=short[label(c, with_host=False)] > 1) for c in contestants]
    taken = {REFERENCE}
    found = []
    for contestant, name in zip(contestants, labels, strict=True):
        numbered = (f"{name}-{n}" for n in count(2))
        unique = next(text for text in chain([name], numbered) if text not in taken)
        taken.add(unique)
        found.append(contestant.model_copy(update={"label": unique}))
    return found


def check_contestant(contestant: Contestant, config: ScoreConfig, keys: Mapping[str, str]) -> Contestant:
    """The contestant, its adapter with a digest, once it is known that it can be asked.

    Raises:
        UserError: no such model or adapter, one that does not fit, or an endpoint that does not serve it to us.
    """
    if contestant.endpoint is not None:
        check_endpoint(contestant.endpoint, contestant.model, key_variable(contestant.endpoint, keys))
        return contestant
    resolve(contestant.model)
    if contestant.adapter is None:
        return contestant
    adapter = check_adapter(contestant.adapter, contestant.model, config.lora)
    return contestant.model_copy(update={"adapter": adapter})


def passes(contestants: Sequence[Contestant]) -> list[Pass]:
    """Contestants over one base together, in order of name; those of endpoints alone; by the first of each."""
    together: dict[tuple[str | None, str], list[Contestant]] = {}
    for contestant in contestants:
        together.setdefault((contestant.endpoint, contestant.model), []).append(contestant)
    # The order in which they are given does not make another run of the same contestants.
    return [Pass(tuple(sorted(group, key=lambda c: c.asked_as))) for group in together.values()]


def known_pairs(contestants: Sequence[Contestant]) -> list[tuple[str, str]]:
    """Labels (tuned, base) of contestants whose base is a contestant, too."""
    from deescal.judge.independence import base_of

    bases = {c.model: c.label for c in contestants if not c.endpoint and not c.adapter}
    by_origin = {base_of(model): label for model, label in reversed(bases.items()) if not _is_tuned(model)}
    found = []
    for c in contestants:
        if c.endpoint:
            continue
        base = bases.get(c.model) if c.adapter else by_origin.get(base_of(c.model)) if _is_tuned(c.model) else None
        if base:
            found.append((c.label, base))
    return found


def layout_pairs(contestants: Sequence[Contestant], asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Labels (tuned, base) that stand as base -> tuned: those known, else of each first label asked for its first pair.

    What endpoints serve cannot be seen: there a pair that is asked for says which is tuned from which.
    """
    first: dict[str, tuple[str, str]] = {}
    for a, b in asked:
        first.setdefault(a, (a, b))
    return known_pairs(contestants) or list(first.values())


def _is_tuned(model: str) -> bool:
    """Whether a model is a folder with a note of what it was tuned from."""
    from deescal.judge.independence import NOTES

    return any(os.path.isfile(os.path.join(model, file)) for file, _ in NOTES)


def pairs_to_compare(contestants: Sequence[Contestant], asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Labels (a, b): as asked for; else each tuned one against its base and all that are no kin; else all with all.

    Raises:
        UserError: a label that no contestant has, one against itself, or a pair twice.
    """
    labels = [c.label for c in contestants]
    for label in (label for pair in asked for label in pair):
        if label not in labels:
            raise UserError(f"pairs: no contestant '{label}'; there are {', '.join(labels)}")
    twice = {pair for pair, n in Counter(frozenset(pair) for pair in asked).items() if n > 1 or len(pair) < 2}
    if twice:
        raise UserError(f"pairs: {' and '.join(sorted(next(iter(twice))))}: each pair once, of two contestants")
    if asked:
        return list(asked)
    known = known_pairs(contestants)
    if not known:
        return [(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    kin = {label for pair in known for label in pair}
    return known + [(tuned, other) for tuned, _ in known for other in labels if other not in kin]


def key_variable(endpoint: str, keys: Mapping[str, str]) -> str:
    """Environment variable that has the key of an endpoint."""
    parts = urlsplit(base_url(endpoint))
    return keys.get(parts.netloc) or keys.get(parts.hostname or "") or KEY_ENV


def with_key(config: ScoreConfig, endpoint: str | None, keys: Mapping[str, str]) -> ScoreConfig:
    """The same, asking with the key of this endpoint."""
    if endpoint is None:
        return config
    online = config.online.model_copy(update={"key_env": key_variable(endpoint, keys)})
    return config.model_copy(update={"online": online})


def check_keys(contestants: Sequence[Contestant], keys: Mapping[str, str]) -> None:
    """Raises UserError where the config names a variable for an endpoint's key that is not set."""
    for contestant in contestants:
        if contestant.endpoint is None:
            continue
        variable = key_variable(contestant.endpoint, keys)
        if variable != KEY_ENV and not os.environ.get(variable):
            raise UserError(f"{contestant.label}: the environment variable {variable}, which `keys` names, is not set")
