"""How another library calls the layers of a network of ours: what a model file declares in its NAMINGS.

    NAMINGS: dict[str, Callable[[nn.Module], Naming]]       by library; of a module of that file, whatever its variant

The function raises ValueError, saying why, where the library has no such network. `weights/mapping.py` makes arrays pass by
these names in both directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # torchvision's, of pixels divided by 255


@dataclass(frozen=True)
class Naming:
    """
    modules: their name of each submodule of ours that has parameters, "conv2_1/conv1" -> "layer1.0.conv1", in order of the
      forward pass. The last is the classifier.
    flattened: the channels of the map that a dense layer of ours takes flattened, by its name; they flatten channels first.
    are_convolutions: whether these layers are convolutions of theirs, over the whole map, or 1x1.
    dataset: a data set of ours that their published weights are of.
    preprocessing: mean and deviation of each channel that these expect, of pixels divided by 255.
    """

    modules: Mapping[str, str]
    flattened: Mapping[str, int] = field(default_factory=dict)
    are_convolutions: bool = False
    dataset: str = "imagenet"
    preprocessing: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(IMAGENET))
