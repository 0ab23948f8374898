"""Picture files as they are stored: plain ones byte for byte, others converted to what every reader takes.

Plain is a JPEG, PNG or WebP of one still picture, 8 bits a channel, grey or RGB, without transparency. All else that comes
in these formats or as GIF (four inks, palettes, 16 bits, transparency, which is laid on black, animations, of which the
first frame stays) becomes RGB: lossless PNG where it came as PNG or GIF, else JPEG of quality 95, colours not subsampled.

With a `short_side`, larger pictures are reduced to it by Pillow's bicubic filter (antialiased) and stored as JPEG of
quality 90, colours subsampled 4:2:0 (where they came as PNG or GIF, as PNG); smaller ones are stored as above. A picture
gives the same bytes wherever the same versions of Pillow and of its libjpeg run.
"""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cnn_jax.data.decode import decode_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
CONVERTED_QUALITY = 95
REDUCED_QUALITY = 90
ORIENTATION = 0x0112  # EXIF's tag


def stored_form(data: bytes, where: str, *, short_side: int | None = None, upright: bool = False) -> bytes:
    """The bytes to store of a picture file, which is decoded to its end, so that a damaged one is found now.

    where: its name in errors. upright: turned as the EXIF orientation says, as viewers do; ImageNet's pipelines do not.
    To be called where warnings are ignored: Pillow's are about pictures that it reads all the same.

    Raises:
      ValueError: empty, of another format, damaged, cut short, or of more pixels than Pillow's limit of 179 million.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError(f"{where} has zero bytes; remove it, or fetch it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            orientation = image.getexif().get(ORIENTATION, 1) if upright else 1
            is_small = short_side is None or min(image.size) <= short_side
            if is_small and not 2 <= orientation <= 8 and _is_plain(image, data):
                if image.format in ("JPEG", "MPO"):
                    image.draft("L", (1, 1))  # grey, an eighth of the size: all the data are read, in half the time
                image.load()
                return data
            size, form = image.size, image.format
        return _encoded(data, where, size, form, None if is_small else short_side, orientation)
    except UnidentifiedImageError:
        raise ValueError(f"{where} is no JPEG, PNG, WebP or GIF; remove it, or convert it") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{where} is too large to be a picture: {error}") from None
    except Exception as error:  # there is hardly an exception that some decoder does not raise for some damaged file
        raise ValueError(f"{where} is damaged or cut short ({error}); remove it, or fetch it again") from None


def _is_plain(image: Any, data: bytes) -> bool:
    if image.format == "GIF" or (
        image.format == "PNG" and data[24] != 8
    ):  # bits a channel: of RGB Pillow would not tell
        return False
    is_still = image.format == "MPO" or getattr(image, "n_frames", 1) == 1  # MPO: a JPEG with others behind it
    return is_still and image.mode in ("L", "RGB") and "transparency" not in image.info


def _encoded(
    data: bytes, where: str, size: tuple[int, int], form: str | None, short_side: int | None, orientation: int
) -> bytes:
    from PIL import Image, ImageOps

    if short_side is not None:
        width, height = (max(short_side, round(side * short_side / min(size))) for side in size)
        # A large JPEG comes at a half, a quarter or an eighth of its size, yet twice as large as it will be.
        pixels = decode_bytes(data, where, least_size=(2 * height, 2 * width))
        rgb = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    else:
        rgb = Image.fromarray(decode_bytes(data, where))
    if 2 <= orientation <= 8:
        rgb.getexif()[ORIENTATION] = orientation
        rgb = ImageOps.exif_transpose(rgb)
    out = io.BytesIO()
    if form in ("PNG", "GIF"):
        rgb.save(out, "PNG")
    elif short_side is not None:
        rgb.save(out, "JPEG", quality=REDUCED_QUALITY, subsampling="4:2:0")
    else:
        rgb.save(out, "JPEG", quality=CONVERTED_QUALITY, subsampling="4:4:4")
    return out.getvalue()


def png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Pixels, grey or RGB, as a PNG file: the same for the same version of zlib."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()
