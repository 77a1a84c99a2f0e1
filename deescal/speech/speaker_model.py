"""The packaged models as pyannote objects: PyanNet segmentation, the GE2E encoder, and the pipeline of both.

The models are built from a folder with `config.json` and `model.safetensors` (see deescal.models). This module
imports torch and pyannote: import it inside workers only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from pyannote.audio import Model
from pyannote.audio.core.plda import PLDA
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.core import SlidingWindowFeature
from safetensors.torch import load_file
from torch.nn.functional import avg_pool1d, interpolate, normalize, pad

from deescal.speech.diarize import DiarizeConfig, LocalSpeakers, cluster_speakers

SAMPLE_RATE_HZ = 16_000
HOP = 160  # samples between mel frames: 10 ms
WINDOW_FRAMES = 160  # 1.6 s, the length that GE2E was trained on
WINDOW_HOP_FRAMES = 80
MIN_FRAMES = 40  # 0.4 s; below, an embedding is noise
TARGET_POWER = 1e-3  # -30 dB full scale, the loudness that GE2E was trained on; its mel input has no logarithm
MAX_GAIN = 1e4  # of power: 40 dB, so that silence does not become speech


def load_segmentation(folder: str | Path) -> PyanNet:
    """Folder of `pyannote-segmentation` -> the model, in evaluation mode."""
    config: dict[str, Any] = json.loads(Path(folder, "config.json").read_text())
    specifications = config.pop("specifications")
    model = PyanNet(**config)
    model.specifications = Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=specifications["duration_s"],
        min_duration=specifications["duration_s"],
        warm_up=(0.0, 0.0),
        classes=specifications["classes"],
        permutation_invariant=True,
    )
    model.build()
    model.load_state_dict(load_file(Path(folder, "model.safetensors")))
    return model.eval()


def load_ge2e(folder: str | Path) -> Ge2e:
    """Folder of `ge2e` -> the model, in evaluation mode."""
    model = Ge2e()
    state = load_file(Path(folder, "model.safetensors"))
    # What training used and inference does not: the scale and offset of the GE2E loss.
    state = {name: value for name, value in state.items() if not name.startswith("similarity_")}
    model.load_state_dict(state)
    return model.eval()


class Ge2e(Model):
    """Speaker encoder of Resemblyzer (3-layer LSTM on 40 power mel bands), one unit vector of 256 a waveform."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self) -> None:
        super().__init__(sample_rate=SAMPLE_RATE_HZ)
        self.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = torch.nn.Linear(256, 256)
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        filters = torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 40, SAMPLE_RATE_HZ, "slaney", "slaney")
        self.register_buffer("filters", filters, persistent=False)

    @property
    def dimension(self) -> int:
        return 256

    def mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """(batch, samples) -> power mel spectrogram (batch, frames, 40), 100 frames a second."""
        spectrum = torch.stft(
            waveforms, 400, HOP, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().transpose(1, 2) @ self.filters

    def forward(self, waveforms: torch.Tensor, weights: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """One embedding a waveform, of the frames in which its speaker speaks.

        Args:
            waveforms: (batch, 1, samples) at 16 kHz.
            weights: (batch, frames of any rate), over 0.5 where the speaker speaks; None: everywhere.

        Returns:
            (batch, 256), unit norm; NaN where fewer than MIN_FRAMES frames speak.
        """
        frame_count = waveforms.shape[2] // HOP + 1
        if weights is None:
            spoken = torch.ones(len(waveforms), frame_count, dtype=torch.bool, device=waveforms.device)
        else:
            spoken = interpolate(weights[:, None], size=frame_count, mode="nearest")[:, 0] > 0.5
        embeddings = torch.full((len(waveforms), self.dimension), torch.nan, device=waveforms.device)
        heard = torch.nonzero(spoken.sum(1) >= MIN_FRAMES)[:, 0]  # pyannote asks for silent speakers too
        if len(heard):
            embeddings[heard] = self._embed(waveforms[heard, 0], spoken[heard])
        return embeddings

    def _embed(self, waveforms: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        mel = self.mel(waveforms)
        power = avg_pool1d(pad(waveforms, (0, HOP))[:, None].square(), HOP)[:, 0]  # of a frame's own 10 ms
        windows, owners = [], []
        for i in range(len(mel)):
            frames = mel[i, spoken[i]]
            loudness = power[i, spoken[i]].mean()
            frames = frames * (TARGET_POWER / loudness.clamp_min(TARGET_POWER / MAX_GAIN))
            if len(frames) < WINDOW_FRAMES:  # too short for a window: repeat it
                frames = frames.repeat(-(-WINDOW_FRAMES // len(frames)), 1)[:WINDOW_FRAMES]
            starts = list(range(0, len(frames) - WINDOW_FRAMES + 1, WINDOW_HOP_FRAMES))
            if len(frames) - WINDOW_FRAMES - starts[-1] > WINDOW_HOP_FRAMES // 2:
                starts.append(len(frames) - WINDOW_FRAMES)
            windows += [frames[s : s + WINDOW_FRAMES] for s in starts]
            owners += [i] * len(starts)
        _, (hidden, _) = self.lstm(torch.stack(windows))
        partial = normalize(torch.relu(self.linear(hidden[-1])), dim=1)
        total = partial.new_zeros(len(mel), self.dimension)
        return normalize(total.index_add_(0, torch.tensor(owners, device=mel.device), partial), dim=1)


def build_pipeline(config: DiarizeConfig, segmentation: str, embedding: str) -> SpeakerDiarization:
    """pyannote's pipeline on the two models (folders), with our clustering."""
    pipeline = _Pipeline(
        segmentation=load_segmentation(segmentation),
        segmentation_batch_size=config.chunks_at_once,
        embedding=load_ge2e(embedding),
        embedding_batch_size=3 * config.chunks_at_once,  # one for every local speaker
        embedding_exclude_overlap=True,
        plda=_NoPlda(),
        clustering="AgglomerativeClustering",  # replaced below; the constructor only knows pyannote's own
    )
    pipeline.segmentation_step = config.step_s / pipeline._segmentation.duration
    pipeline._segmentation.step = config.step_s
    pipeline.clustering = SpeakerClustering(config)
    pipeline.instantiate(
        {"segmentation": {"threshold": config.activity_threshold, "min_duration_off": config.fill_gap_s}}
    )
    return pipeline


class _NoPlda(PLDA):
    """pyannote's constructor insists on a PLDA, which only its own VBx clustering uses."""

    def __init__(self) -> None:
        pass


class SpeakerClustering(BaseClustering):
    """`cluster_speakers` behind pyannote's interface."""

    expects_num_clusters = False

    def __init__(self, config: DiarizeConfig) -> None:
        super().__init__(metric="cosine")
        self._config = config

    def __call__(  # type: ignore[override]  # pyannote's own annotation contradicts what it returns
        self,
        embeddings: np.ndarray,
        segmentations: SlidingWindowFeature | None = None,
        num_clusters: int | None = None,
        min_clusters: int | None = None,
        max_clusters: int | None = None,
        **_: Any,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hard clusters, similarities, centroids), as BaseClustering says."""
        assert segmentations is not None
        active = np.nan_to_num(segmentations.data) > 0.5  # (chunks, frames, local speakers)
        frame_s = segmentations.sliding_window.duration / active.shape[1]
        local = LocalSpeakers(
            embeddings=embeddings,
            active=active.any(axis=1),
            clean_s=(active & (active.sum(axis=2, keepdims=True) == 1)).sum(axis=1) * frame_s,
        )
        hard, centroids = cluster_speakers(
            local,
            self._config.clustering,
            self._config.step_s,
            min_speakers=int(num_clusters or min_clusters or 1),
            max_speakers=int(min(num_clusters or max_clusters or len(embeddings) * 3, 2**31)),
        )
        return hard, embeddings @ centroids.T, centroids


class _Pipeline(SpeakerDiarization):
    def reconstruct(
        self, segmentations: SlidingWindowFeature, hard_clusters: np.ndarray, count: SlidingWindowFeature
    ) -> SlidingWindowFeature:
        """As pyannote's, but never more speakers at once than there are: it would make one up."""
        count.data = np.minimum(count.data, hard_clusters.max() + 1).astype(np.int8)
        return super().reconstruct(segmentations, hard_clusters, count)
