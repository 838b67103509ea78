"""What a network is trained on, as it stands in a recipe: pictures, patterns, noise, channels (imports pydantic)."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 pydantic reads it
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from lowdose.acquisition.settings import Positive, Settings
from lowdose.reconstruction.engine import Channel  # noqa: TC001 pydantic reads it
from lowdose.scan_patterns.checks import nearest_name
from lowdose.simulator.detector import Kind  # noqa: TC001 pydantic reads it
from lowdose.simulator.mixed import KINDS
from lowdose.training.pattern_choice import drawn_parameters, make_pattern, n_choices

Rule = Literal["mean_std", "min_max", "pstem", "dlss"]
Target = Literal["blurred_5x5", "blurred_3x3", "sharp"]
Probability = Annotated[float, Field(ge=0, le=1)]
MIN_CROP_PX, MAX_CROP_PX = 32, 4096
MAX_MASKS = 100_000


class Range(Settings):
    """Where a number is drawn from, evenly in its logarithm."""

    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low:g} and {self.high:g}")
        return self

    def draw(self, rng: np.random.Generator) -> float:
        """Return a number between both."""
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


class AtMost(Settings):
    """A column whose number must not be larger."""

    at_most: float


class ImageSource(Settings):
    """A folder of images, with or without a table of them.

    With a ``manifest.csv`` in the folder, of the columns ``file``, ``repo`` and any others, its rows are the images
    and ``repo`` names their source; without it all images below the folder, whose source is the folder of the top level
    or, for a file lying there, the file. Training and validation never share a source.

    Parameters
    ----------
    images : str
        The folder; ``~`` and ``$VARIABLES`` are expanded.
    weight : float
        How often an example comes from here, against the other sources.
    where : dict
        Column of the manifest -> what its rows must have: a value, a list of them, or ``{at_most: number}``.
    balance : "image" or "source"
        What is drawn evenly.
    validation_share : float
        Of the sources, chosen by a hash of their names; without effect where `validation_sources` are given.
    validation_sources : tuple of str, optional
        Sources for validation alone.
    """

    images: str
    weight: Positive = 1.0
    where: dict[str, AtMost | tuple[str, ...] | str] = Field(default={})
    balance: Literal["image", "source"] = "image"
    validation_share: Probability = 0.1
    validation_sources: tuple[str, ...] | None = None


class ProceduralSource(Settings):
    """Specimens of the simulator, each drawn anew.

    Parameters
    ----------
    procedural : str
        A kind of specimen, or "mixed" for any of them.
    weight : float
        How often an example comes from here, against the other sources.
    pixel_size_nm : Range
        Says which details show [nm].
    edge_px : int, optional
        Of the picture that examples are cropped from; default: two crops [pixel].
    reuse : int
        Examples that are cropped from a picture, on average.
    """

    procedural: str = "mixed"
    weight: Positive = 1.0
    pixel_size_nm: Range = Range(low=0.01, high=0.2)
    edge_px: Annotated[int, Field(ge=MIN_CROP_PX, le=4 * MAX_CROP_PX)] | None = None
    reuse: Annotated[int, Field(ge=1)] = 16

    @field_validator("procedural")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in (*KINDS, "mixed"):
            raise ValueError(f"unknown specimen {kind!r}: {nearest_name(kind, [*KINDS, 'mixed'])}")
        return kind


class PatternMix(Settings):
    """Masks of one pattern.

    Parameters
    ----------
    pattern : dict
        Name and parameters as in a scan. A list stands for its values one after the other, mask by mask, and
        ``{low, high}`` for a number drawn anew for every mask, evenly in its logarithm.
    weight : float
        How often an example has this pattern, against the others.
    n : int
        Masks made, at least one for every combination of listed values.
    field_px : int, optional
        Edge of the field the pattern is laid out on, of which every mask is a random crop; default: the crop's own.
    """

    pattern: dict[str, Any]
    weight: Positive = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_MASKS)] = 64
    field_px: Annotated[int, Field(ge=MIN_CROP_PX, le=4 * MAX_CROP_PX)] | None = None

    @model_validator(mode="after")
    def _usable(self) -> PatternMix:
        choices = n_choices(self.pattern)
        if self.n < choices:
            raise ValueError(f"{choices} combinations of listed values need as many masks, got n: {self.n}")
        rng = np.random.default_rng(0)
        for index in range(choices):
            make_pattern(drawn_parameters(self.pattern, index, rng))
        return self


class Jitter(Settings):
    """The probe is not quite where it should be, as in the lines of most real micrographs.

    Parameters
    ----------
    px : Range
        Standard deviation of the displacement along either axis [pixel]; drawn for every example.
    samples : Range
        After how many samples the displacement is another one: its correlation falls to 1/e.
    share : float
        Of the examples.
    """

    px: Range
    samples: Range
    share: Probability = 1.0


class PhysicalNoise(Settings):
    """Single electrons, counted by the simulator's detector.

    Parameters
    ----------
    counts : Range
        Electrons at full scale in one nominal dwell time; drawn for every example.
    kinds : tuple of str
        Detectors, one drawn for every example.
    exact : float
        Share of the examples whose counts are without noise: real pictures have some of their own.
    jitter : Jitter, optional
        Of the probe's positions, whatever the counts.
    """

    counts: Range = Range(low=2, high=2000)
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("haadf",)
    exact: Probability = 0.0
    jitter: Jitter | None = None


def _source_kind(source: Any) -> str:
    return (
        "images"
        if isinstance(source, ImageSource) or (isinstance(source, dict) and "images" in source)
        else "procedural"
    )


def _noise_kind(noise: Any) -> str:
    return "name" if isinstance(noise, str) else "counted"


# told apart by a key, so that a mistake is reported of the kind that was meant
Source = Annotated[
    Annotated[ImageSource, Tag("images")] | Annotated[ProceduralSource, Tag("procedural")], Discriminator(_source_kind)
]
Noise = Annotated[
    Annotated[Literal["none", "published"], Tag("name")] | Annotated[PhysicalNoise, Tag("counted")],
    Discriminator(_noise_kind),
]


class DataSettings(Settings):
    """Everything an example is made of.

    Parameters
    ----------
    crop_px : int
        Edge of the picture to be completed [pixel].
    sources, patterns : tuple
        What is seen, and where the beam goes.
    noise : "none", "published" or PhysicalNoise
        "published" is the partial-STEM paper's: a mask with blurred edges whose values are the share of the signal, and
        uniform noise for the rest.
    channels : tuple of str
        Of the inputs, as an engine names them. With published noise `dwell` is that share.
    inputs : "field" or "lattice"
        "lattice": the inputs are the measured values alone, as a picture of the lattice's rows and columns.
    normalisation : "mean_std", "min_max", "pstem" or "dlss"
        The first two from the measured values alone, for inputs and target alike, so that they can be undone at the
        microscope. The other two are those of the papers: inputs between 0 and 1, the target between -1 and 1 by its
        own extremes.
    target : "blurred_5x5", "blurred_3x3" or "sharp"
        What is learned.
    symmetries : bool
        Flip and turn every picture at random.
    invert, bin_by_2, decimate_by_2 : float
        Probability of inverted contrast, of 2 x 2 pixels averaged to one, of every second one taken.
    cache : Path, optional
        Folder for decoded images and masks, kept from run to run; default: a temporary one.
    """

    crop_px: Annotated[int, Field(ge=MIN_CROP_PX, le=MAX_CROP_PX)] = 512
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = (ProceduralSource(),)
    patterns: Annotated[tuple[PatternMix, ...], Field(min_length=1)]
    noise: Noise = "none"
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)] = ("nearest",)
    inputs: Literal["field", "lattice"] = "field"
    normalisation: Rule = "mean_std"
    target: Target = "blurred_5x5"
    symmetries: bool = True
    invert: Probability = 0.0
    bin_by_2: Probability = 0.0
    decimate_by_2: Probability = 0.0
    cache: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if isinstance(self.noise, PhysicalNoise) and self.normalisation in ("pstem", "dlss"):
            raise ValueError(
                f"normalisation {self.normalisation} is for pictures between -1 and 1, not for counts: "
                "expected mean_std or min_max"
            )
        if self.bin_by_2 + self.decimate_by_2 > 1:
            raise ValueError(f"bin_by_2 + decimate_by_2 must be <= 1, got {self.bin_by_2 + self.decimate_by_2:g}")
        if self.inputs == "lattice" and not self._one_lattice():
            raise ValueError("inputs: lattice needs one lattice of one coverage, no field_px, and channels: [sparse]")
        for source in self.sources:
            edge = source.edge_px if isinstance(source, ProceduralSource) else None
            if edge is not None and edge < self.crop_px:
                raise ValueError(f"edge_px must be at least crop_px, {self.crop_px}, got {edge}")
        for mix in self.patterns:
            if mix.field_px is not None and mix.field_px < self.crop_px:
                raise ValueError(f"field_px must be at least crop_px, {self.crop_px}, got {mix.field_px}")
        return self

    def _one_lattice(self) -> bool:
        first, *others = self.patterns
        fixed = n_choices(first.pattern) == 1 and not any(isinstance(v, dict) for v in first.pattern.values())
        plain = first.pattern["name"] == "lattice" and first.field_px is None
        return not others and fixed and plain and self.channels == ("sparse",) and self.noise != "published"
