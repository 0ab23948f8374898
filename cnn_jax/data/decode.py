"""Pictures from files: any size, any mode, to uint8 (H, W, C).

A picture that a user names is read by Pillow (`read_picture`); those of a data set, by the hundred a second, by the
fastest decoder that is well kept (`decode_bytes`): simplejpeg, which is libjpeg-turbo, for JPEG; Pillow for all else.
Both give the same pixels, and those that torchvision's reader gives: libjpeg's accurate DCT, colour smoothly upsampled.
As there, the orientation that EXIF may tell is left alone: what is to be turned is turned when a data set is prepared.

Preprocessing differs from library to library, and costs accuracy where a network meets another than it was trained with.
RESAMPLES names the ways to resize here:

  bilinear  Pillow's BILINEAR: a triangle as wide as the reduction (antialiased). What torchvision does to pictures, and
            to tensors with antialias=True; the published weights of torchvision expect it.
  bicubic   Pillow's BICUBIC: Keys' cubic with a = -0.5, as wide as the reduction. What weights trained in TensorFlow are
            evaluated with (timm); tf.image.resize has that kernel, and this width with antialias=True.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

RESAMPLES = ("bilinear", "bicubic")


def read_picture(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """A picture file as grey (H, W, 1) or RGB (H, W, 3), upright as its EXIF orientation says, transparency on black.

    Of an animation the first frame is read. Where a mode does not say what white is (32 bits, floating point), the largest
    value tells: up to 1 (of floats), up to 255, or 65535.

    Raises FileNotFoundError, PermissionError, or ValueError for what is no whole picture, or is larger than Pillow's limit
    of 179 million pixels.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a picture file")
    if not path.is_file():
        raise ValueError(f"{path} is no file; name a picture file")
    # Pillow warns of pictures that are large, or oddly tagged, and reads them all the same: no word of it to the user.
    with warnings.catch_warnings(action="ignore"):
        return _read_with_pillow(path, str(path), upright=True)


def decode_bytes(
    encoded: bytes, name: str = "the picture", least_size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file's bytes as RGB, grey repeated, as it lies; otherwise as `read_picture` has it. Safe in threads.

    name: of the picture, for errors. least_size: (height, width) that suffice: a JPEG comes at a half, a quarter or an
    eighth of its size (rounded up) where that is no less, in a fraction of the time, each pixel the mean of those that it
    stands for, or nearly.

    Raises:
      ValueError: no picture, a damaged one, or one of more than 179 million pixels; begins with `name`.
    """
    size = _plain_jpeg_size(encoded)
    if size is not None:
        import simplejpeg

        least_height, least_width = least_size or size
        shrink = max(s for s in (1, 2, 4, 8) if s == 1 or (size[0] >= s * least_height and size[1] >= s * least_width))
        try:
            return simplejpeg.decode_jpeg(
                encoded, "RGB", min_height=-(-size[0] // shrink), min_width=-(-size[1] // shrink)
            )
        except ValueError:
            pass  # Pillow forgives what does no harm, such as bytes between markers, and says what does
    picture = _read_with_pillow(_file_of(encoded, name), name, upright=False)
    return picture if picture.shape[2] == 3 else np.repeat(picture, 3, axis=2)


def picture_size(encoded: bytes, name: str = "the picture") -> tuple[int, int]:
    """(height, width) of what `decode_bytes` gives, from the header alone. Raises ValueError as that does."""
    size = _plain_jpeg_size(encoded)
    if size is not None:
        return size
    from PIL import Image

    file = _file_of(encoded, name)
    with _one_line(name), Image.open(file) as image:
        return image.height, image.width


def _plain_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG for simplejpeg; None for all else, a JPEG of four inks, and one too large."""
    if encoded[:3] != b"\xff\xd8\xff":
        return None
    import simplejpeg
    from PIL import Image

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    too_large = height * width > 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    return None if too_large or colours not in ("YCbCr", "RGB", "Gray") else (height, width)


def _file_of(encoded: bytes, name: str) -> io.BytesIO:
    if not encoded:
        raise ValueError(f"{name} is empty (0 bytes)")
    # Threads must not enter catch_warnings, which swaps a list that they all share.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return io.BytesIO(encoded)


def _read_with_pillow(file: Path | io.BytesIO, name: str, upright: bool) -> UInt8[np.ndarray, "h w c"]:
    from PIL import Image, ImageOps

    with _one_line(name), Image.open(file) as image:
        return _to_bytes(ImageOps.exif_transpose(image) if upright else image)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What Pillow raises, as a ValueError that begins with `name`."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{name} is no picture that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to be a picture: {error}") from None
    except PermissionError:
        raise
    except Exception as error:  # there is hardly an exception that some decoder does not raise for some damaged file
        raise ValueError(f"{name} is damaged or cut short ({error})") from None


def _to_bytes(image) -> UInt8[np.ndarray, "h w c"]:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel or more: Pillow would clip it to 255
        wide = np.nan_to_num(np.asarray(image, np.float64))
        if image.mode.startswith("I;16") or wide.max() > 255:
            top = 65535.0
        else:
            top = 1.0 if image.mode == "F" and wide.max() <= 1 else 255.0
        return np.clip(wide / top * 255 + 0.5, 0, 255).astype(np.uint8)[:, :, None]
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.asarray(image, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def fit_picture(
    picture: UInt8[np.ndarray, "h w c"], shape: tuple[int, int, int], inner_px: int | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """A picture in the shape (H, W, C) that a network takes: its short side resized, its middle cut out, grey or RGB.

    inner_px: side of the field that the training pictures fill, on zeros (28 for MNIST on 32x32); None: all of it.
    """
    from PIL import Image

    height, width, channels = shape
    inner_height, inner_width = (height, width) if inner_px is None else (inner_px, inner_px)
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    image = image.convert({1: "L", 3: "RGB"}[channels])
    scale = max(inner_width / image.width, inner_height / image.height)
    size = max(inner_width, round(image.width * scale)), max(inner_height, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - inner_width) // 2, (image.height - inner_height) // 2
    field = np.asarray(image.crop((left, top, left + inner_width, top + inner_height)), np.uint8)
    canvas = np.zeros(shape, np.uint8)
    x, y = (width - inner_width) // 2, (height - inner_height) // 2
    canvas[y : y + inner_height, x : x + inner_width] = field.reshape(inner_height, inner_width, channels)
    return canvas
