"""The config of a dataset build: one section a step, and what Ray may use."""

from __future__ import annotations

from pydantic import Field

from deescal.cluster import RayConfig
from deescal.config import Config, Resources
from deescal.dataset.bias import BiasConfig
from deescal.dataset.context import ContextConfig
from deescal.dataset.dedup import DedupConfig
from deescal.dataset.examples import ExamplesConfig
from deescal.dataset.redact import RedactConfig
from deescal.dataset.roles import DatasetRolesConfig
from deescal.dataset.split import SplitConfig
from deescal.models import resolve


class CardConfig(Config):
    """What the dataset card says that no number tells."""

    title: str = "Police-civilian encounters"
    licence: str = "other"  # a licence tag of the Hugging Face Hub
    language: str = "en"


class DatasetConfig(Config):
    """All of a build. Defaults are the `local` profile: packaged weights on CPU."""

    roles: DatasetRolesConfig = DatasetRolesConfig()
    redact: RedactConfig = RedactConfig()
    dedup: DedupConfig = DedupConfig()
    split: SplitConfig = SplitConfig()
    examples: ExamplesConfig = ExamplesConfig()
    context: ContextConfig = ContextConfig()
    bias: BiasConfig = BiasConfig()
    card: CardConfig = CardConfig()
    part_clips: int = Field(default=64, ge=1)  # a part is what a worker takes at once, and one file of each table
    workers: Resources = Resources(workers=2, num_cpus=1, memory_gib=2.5)
    ray: RayConfig = RayConfig()

    def models(self) -> list[str]:
        """Registry names, folders or hub ids of all that is loaded."""
        names = [self.examples.tokenizer, *self.context.models()]
        if self.redact.enabled:
            names.append(self.redact.model)
        if self.roles.use_model:
            names.append(self.roles.llm.model)
        if self.bias.perplexity_share:
            names.append(self.bias.model)
        return list(dict.fromkeys(names))

    def check_models(self) -> None:
        """Raises UserError, naming the model, when one is unknown or not fetched, or the tokenizer has no template."""
        from deescal.dataset.chat import load_tokenizer

        for name in self.models():
            resolve(name)
        load_tokenizer(self.examples.tokenizer)
