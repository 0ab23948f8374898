"""Pictures that rest as the files they came in (JPEG, PNG, WebP), of any size: decoded and cropped when they are asked for.

A data set gives an `EncodedSource` the bytes of each file and its label. Which part of a picture a batch shows, and at
what size, follows from fields of config.data that are the same for every such set (`configs.common.pictures` has their
defaults); `picture_view` reads them.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from cnn_jax.data import crops
from cnn_jax.data.decode import RESAMPLES, picture_size
from cnn_jax.data.source import SourceInfo, check_split


@dataclass(frozen=True)
class PictureView:
    """Which part of a picture a batch shows, and at what size.

    Training shows a square of image_px, by `crop`:
      random_resized  a window of area_range (of the picture's) and aspect_range (width / height), resized
      scale_jitter    the short side resized to short_side_range_px, a random square
      centre          as evaluation, in the same proportion of square to short side
    size_epochs, ((epoch, px), ...): from that epoch on the square is of px instead (progressive resizing).
    repeats: a batch shows each picture so many times, each with draws of its own, and an epoch so many times fewer pictures.
    Evaluation resizes the short side to eval_resize_px and shows the middle square of eval_image_px.
    resample: of decode.RESAMPLES.
    """

    image_px: int
    size_epochs: tuple[tuple[float | int, int], ...]
    crop: str
    area_range: tuple[float, float]
    aspect_range: tuple[float, float]
    short_side_range_px: tuple[int, int]
    eval_resize_px: int
    eval_image_px: int
    resample: str
    repeats: int = 1  # a record from before the field was there lacks it

    def training_px(self, epoch: float | int) -> int:
        """The side of training pictures at `epoch`, counted from 0, fractions included."""
        return next((px for begin, px in reversed(self.size_epochs) if epoch >= begin), self.image_px)


def picture_view(config: ConfigDict) -> PictureView:
    """The view that `config`, a run's config.data, describes.

    Raises:
      ValueError: a field is missing, or has a value that no view could have.
    """
    names = [field.name for field in fields(PictureView) if field.name in config or field.default is MISSING]
    missing = [name for name in names if name not in config]
    if missing:
        raise ValueError(f"config.data.{missing[0]} is missing; configs.common.pictures gives its default")

    def check(field: str, good: bool, must: str) -> None:
        if not good:
            raise ValueError(f"config.data.{field}={config[field]} must {must}")

    check("image_px", config.image_px >= 1, "be at least 1")
    epochs, sizes = ((), ()) if not config.size_epochs else zip(*config.size_epochs, strict=True)
    good = all(type(px) is int and px >= 1 for px in sizes) and all(a < b for a, b in pairwise((0, *epochs)))
    check("size_epochs", good, "be ((epoch, px), ...), of epochs that rise from above 0 and whole numbers of pixels")
    repeats = config.get("repeats", 1)
    check("repeats", type(repeats) is int and repeats >= 1, "be a whole number, at least 1")
    check("eval_image_px", config.eval_image_px >= 1, "be at least 1")
    check("eval_resize_px", config.eval_resize_px >= config.eval_image_px, "be no less than eval_image_px")
    for field in ("area_range", "aspect_range", "short_side_range_px"):
        value = config[field]
        check(field, len(value) == 2 and 0 < value[0] <= value[1], "be (low, high) with 0 < low <= high")
    check("area_range", config.area_range[1] <= 1, "be parts of the picture's area, at most 1")
    check("crop", config.crop in crops.CROPS, f"be one of {', '.join(crops.CROPS)}")
    check("resample", config.resample in RESAMPLES, f"be one of {', '.join(RESAMPLES)}")
    if config.crop == "scale_jitter":
        whole = all(type(side) is int for side in config.short_side_range_px)
        largest = max((config.image_px, *sizes))
        good = whole and config.short_side_range_px[0] >= largest
        check("short_side_range_px", good, f"be whole numbers, no less than the {largest} pixels that are shown")
    return PictureView(**{name: config[name] for name in names})


def evaluation_picture(picture: UInt8[np.ndarray, "h w 3"], view: PictureView) -> UInt8[np.ndarray, "px px 3"]:
    """A decoded picture as evaluation shows it."""
    window = crops.centre_window(*picture.shape[:2], view.eval_resize_px, view.eval_image_px)
    return crops.show_inset(np.ascontiguousarray(picture), window, view.eval_image_px, view.resample)


class EncodedSource:
    """Examples held as encoded files: s[i] is {"encoded": bytes, "label": int32}.

    read(i): the bytes of file i. Threads call it side by side; with worker processes the source is pickled, and `read` with
      it (by cloudpickle; it must hold no open file).
    info.image_shape: of a training picture, (view.image_px, view.image_px, 3).
    name_of(i): the file's name, where there is one; errors name it beside split and number.

    Raises:
      ValueError: no examples, labels that are not int32 within info.classes, or an image_shape that is not the view's.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        labels: Int[np.ndarray, " n"],
        info: SourceInfo,
        view: PictureView,
        split: str,
        name_of: Callable[[int], str] | None = None,
    ):
        check_split(split)
        if not len(labels):
            raise ValueError(f"{info.name}: a source needs at least one example; {split} has none")
        low, high = int(labels.min()), int(labels.max())
        if labels.dtype != np.int32 or low < 0 or high >= len(info.classes):
            among = f"0..{len(info.classes) - 1}"
            raise ValueError(f"{info.name}: labels must be int32 in {among}; got {labels.dtype} {low}..{high}")
        if info.image_shape != (view.image_px, view.image_px, 3):
            raise ValueError(f"{info.name}: image_shape {info.image_shape} is not that of image_px={view.image_px}")
        self.labels = labels.view()
        self.labels.flags.writeable = False
        self.read, self.info, self.view, self.split, self.name_of = read, info, view, split, name_of

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | np.integer) -> dict:
        return {"encoded": self.read(int(index)), "label": self.labels[index]}

    def describe(self, index: int) -> str:
        """Example `index` in words, for errors."""
        name = f" ({self.name_of(index)})" if self.name_of else ""
        return f"{self.info.name}: {self.split} picture {index}{name}"

    def image_px(self, draw: tuple[int, int] | None) -> int:
        """The side of the pictures of a batch; `draw` as in `picture`."""
        return self.view.eval_image_px if draw is None else self.view.image_px

    def picture(
        self, index: int, draw: tuple[int, int] | None, px: int | None = None, copy: int = 0
    ) -> UInt8[np.ndarray, "px px 3"]:
        """Example `index`, decoded and cropped: for evaluation where `draw` is None, else for training.

        draw: (seed, step). The training window is a function of it, `index` and `copy` alone. px: other than the view's.
        copy: which one, of several in a batch.

        Raises:
          ValueError: not a whole picture; names the example.
          OSError: as `read` does.
        """
        try:
            return self._picture(index, draw, px or self.image_px(draw), copy)
        except ValueError as error:  # the file's name is looked up only where it is to be told
            raise ValueError(str(error).replace("the picture", self.describe(index), 1)) from error

    def _picture(self, index: int, draw: tuple[int, int] | None, px: int, copy: int) -> UInt8[np.ndarray, "px px 3"]:
        encoded, view = self.read(index), self.view
        height, width = picture_size(encoded)
        if draw is None:
            window = crops.centre_window(height, width, view.eval_resize_px, px)
        elif view.crop == "centre":
            window = crops.centre_window(height, width, round(px * view.eval_resize_px / view.eval_image_px), px)
        else:
            draws = crops.uniform(*draw, index, copy)
            if view.crop == "random_resized":
                window = crops.random_resized_window(height, width, draws, view.area_range, view.aspect_range)
            else:
                window = crops.scale_jitter_window(height, width, draws, view.short_side_range_px, px)
        return crops.decode_window(encoded, window, px, view.resample, is_exact=draw is None)
