"""Pictures from files: any size, any mode, to uint8 (H, W, C)."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


def read_picture(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """A picture file as grey (H, W, 1) or RGB (H, W, 3), upright as its EXIF orientation says, transparency on black.

    Of an animation the first frame is read. Where a mode does not say what white is (32 bits, floating point), the largest
    value tells: up to 1 (of floats), up to 255, or 65535.

    Raises FileNotFoundError, PermissionError, or ValueError for what is no whole picture, or is larger than Pillow's limit
    of 179 million pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a picture file")
    if not path.is_file():
        raise ValueError(f"{path} is no file; name a picture file")
    try:
        # Pillow warns of pictures that are large, or oddly tagged, and reads them all the same: no word of it to the user.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return _to_bytes(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be a picture: {error}") from None
    except PermissionError:
        raise
    except Exception as error:  # there is hardly an exception that some decoder does not raise for some damaged file
        raise ValueError(f"{path} is damaged or cut short ({error})") from None


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
