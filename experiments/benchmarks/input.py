"""Pictures a second from JPEG files to a batch on the device, against a PyTorch DataLoader, and against tf.data.

    python -m experiments.benchmarks.input --pictures=DIR [--enlarged_px=375] [--out=FILE]

Stages: a file's bytes decoded; decoded, cropped at random and resized to 224 (both on one core); and batches end to end:
read, decoded, cropped, flipped, normalised, on the device. End to end each side has as many workers: DataLoader processes
there (with torchvision's transforms), decoding threads or worker processes here. Both sides read the same files, take
turns in one run, and their evaluation pictures (resize 256, crop 224) must agree to a grey level. tf.data, which decodes
only the window that is cropped and resizes without antialiasing, takes its turns in the same way. Beside it stands the
rate at which batches that lie ready reach the device.

--enlarged_px also measures the pictures enlarged to such a short side, in place of originals that are not at hand (500 x 375
is ImageNet's usual size; enlarged ones compress better), and those as `prepare --short_side=256` stores them.
A record goes to experiments/results/input/<device>.json; README's table is made from it.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import sharding
from cnn_jax.data.decode import decode_bytes
from cnn_jax.data.encoded import EncodedSource, picture_view
from cnn_jax.data.pipeline import AHEAD, Pipeline
from cnn_jax.data.reencode import stored_form
from cnn_jax.data.source import SourceInfo
from cnn_jax.evaluate import normalize_batch
from configs.common import pictures
from experiments.benchmarks import peer
from experiments.benchmarks.input_sides import (
    IMAGE_PX,
    MEAN,
    RESIZE_PX,
    SEED,
    STD,
    family,
    picture_files,
    settle,
    ticks,
    time_batches,
)

TORCHVISION = "0.28.0"  # which asks for peer.TORCH
TENSORFLOW = "2.21.0"
COMPARED = 30
CLASSES = tuple(map(str, range(1000)))


class Machine(peer.Machine):
    """As peer's, with the processes that both sides start."""

    def __init__(self, other: peer.Peer):
        self.roots = [os.getpid(), other.process.pid]
        super().__init__(other)

    def _ticks(self) -> tuple[float, float, float]:
        self.own = []
        total, busy, _ = super()._ticks()
        return total, busy, ticks([pid for root in self.roots for pid in family(root)])


class ReadFile:
    """read(i) of an EncodedSource."""

    def __init__(self, files: list[Path]):
        self.files = files

    def __call__(self, index: int) -> bytes:
        return self.files[index].read_bytes()


def make_source(files: list[Path]) -> EncodedSource:
    """Files as a data set."""
    view = picture_view(pictures("data.benchmark", image_px=IMAGE_PX, eval_image_px=IMAGE_PX, eval_resize_px=RESIZE_PX))
    info = SourceInfo("benchmark", CLASSES, (IMAGE_PX, IMAGE_PX, 3), {"mean": MEAN, "std": STD}, "")
    labels = np.arange(len(files), dtype=np.int32) % len(CLASSES)
    return EncodedSource(ReadFile(files), labels, info, view, "train", lambda i: str(files[i]))


def make_use(mesh: jax.sharding.Mesh):
    """batch -> what a network reads, on the device: flipped at random and normalised inside one program."""

    @jax.jit
    def show(batch, step):
        flip = jax.random.bernoulli(jax.random.fold_in(jax.random.key(SEED), step), shape=batch["label"].shape)
        image = jnp.where(flip[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
        return normalize_batch({**batch, "image": image}, {"mean": MEAN, "std": STD})

    steps = itertools.count()
    return lambda batch: show(sharding.put_batch(batch, mesh), next(steps))


def measure_one_core(source: EncodedSource, count: int, other: peer.Peer, machine: Machine, args) -> Iterator[dict]:
    """Rows of the record: decoding, and decoding with a random crop, by one thread."""
    contents = [source.read(i) for i in range(count)]
    in_memory = EncodedSource(contents.__getitem__, source.labels[:count], source.info, source.view, "train")
    step = itertools.count()

    def decode() -> None:
        for data in contents:
            decode_bytes(data)

    def decode_and_crop() -> None:
        for i in range(count):
            in_memory.picture(i, (SEED, next(step)))

    for stage, run in {"decode": decode, "decode and crop": decode_and_crop}.items():
        turns = peer.take_turns(
            lambda calls, run=run: peer.time_calls(run, lambda _: None, calls),
            lambda calls, stage=stage: other.ask(do="time pictures", stage=stage, calls=calls)["seconds"],
            machine,
            trials=args.trials,
            seconds=args.seconds,
        )
        yield {"stage": stage, "pictures_a_call": count, **turns}


def measure_end_to_end(source: EncodedSource, workers: int, other: peer.Peer, machine: Machine, args) -> Iterator[dict]:
    """Rows of the record: batches on the device, from as many workers on either side; ours as threads, and as processes."""
    use = make_use(sharding.make_mesh())
    other.ask(do="loader", batch_size=args.batch_size, num_workers=workers)
    plans = {
        f"end to end, {workers} threads": ({"num_threads": workers}, AHEAD + 1),
        f"end to end, {workers} processes": ({"num_workers": workers, "num_threads": 1}, 4 * workers),
    }
    for stage, (plan, drain) in plans.items():
        batches = Pipeline(source, args.batch_size, SEED, **plan).prefetched(0, slice(None))
        jax.block_until_ready(use(next(batches)))
        settle(os.getpid())
        take = lambda batches=batches: next(batches)  # noqa: E731
        turns = peer.take_turns(
            lambda calls, take=take, drain=drain: time_batches(
                take, use, jax.block_until_ready, drain, calls, os.getpid()
            ),
            lambda calls: other.ask(do="time batches", calls=calls)["seconds"],
            machine,
            trials=args.trials,
            seconds=args.loader_seconds,
        )
        batches.close()
        yield {"stage": stage, "pictures_a_call": args.batch_size, **turns}


def measure_ready(source: EncodedSource, args) -> dict:
    """A row of the record: batches that lie ready, to the device."""
    use, ready = make_use(sharding.make_mesh()), Pipeline(source, args.batch_size, SEED).batch(0)
    seconds = [peer.time_calls(lambda: use(ready), jax.block_until_ready, 10) for _ in range(args.trials)]
    return {"stage": "batches that lie ready", "ours_per_s": args.batch_size / float(np.median(seconds))}


def check_agreement(source: EncodedSource, other: peer.Peer, folder: Path) -> int:
    """The largest difference, in grey levels, between the evaluation pictures of both sides. RuntimeError beyond 1."""
    file = folder / "evaluation.npy"
    other.ask(do="evaluation", count=COMPARED, file=str(file))
    theirs = np.load(file).astype(int)
    ours = np.stack([source.picture(i, None) for i in range(len(theirs))])
    largest = int(np.abs(ours - theirs).max())
    if largest > 1:
        raise RuntimeError(f"evaluation pictures differ by {largest} grey levels")
    return largest


def enlarged(data: bytes, short_side: int) -> bytes:
    """The picture enlarged to a short side, as JPEG."""
    from PIL import Image

    image = Image.fromarray(decode_bytes(data))
    scale = short_side / min(image.size)
    file = io.BytesIO()
    image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC).save(file, "JPEG", quality=96)
    return file.getvalue()


def make_sets(folder: str, temporary: Path, enlarged_px: int) -> dict[str, Path]:
    """Folders of pictures by the name of the set: those given; with `enlarged_px` also larger ones, and those reduced."""
    sets = {"as given": Path(folder)}
    if enlarged_px:
        large, small = f"enlarged to {enlarged_px}", f"{enlarged_px}, prepared with short_side={RESIZE_PX}"
        for name in (large, small):
            sets[name] = temporary / name
            sets[name].mkdir()
        for number, path in enumerate(picture_files(folder)):
            data = enlarged(path.read_bytes(), enlarged_px)
            (sets[large] / f"{number:06}.jpg").write_bytes(data)
            (sets[small] / f"{number:06}.jpg").write_bytes(stored_form(data, str(path), short_side=RESIZE_PX))
    return sets


def peer_python(given: str | None, package: str, version: str) -> str:
    """The interpreter of an environment that has the package: `given`, or one made once under .cache/peers."""
    if given:
        return given
    folder = peer.ROOT / ".cache" / "peers" / f"{package}-{version}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making an environment for {package} {version} in {folder.relative_to(peer.ROOT)} (once)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"{package}=={version}", "numpy"], check=True)
        (folder / "made").touch()
    return str(python)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", required=True, help="a folder with JPEG files in it, or below it")
    parser.add_argument("--enlarged_px", type=int, default=0, help="also measure pictures enlarged to this short side")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", default="2", help="how many, end to end; several numbers separated by commas")
    parser.add_argument("--count", type=int, default=200, help="pictures of the stages on one core")
    parser.add_argument("--torch_python", help="an interpreter that has torchvision; without, an environment is made")
    parser.add_argument("--tf_python", help="an interpreter that has TensorFlow; without, an environment is made")
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a side's turn takes, on one core")
    parser.add_argument("--loader_seconds", type=float, default=5.0, help="the same, end to end")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = parse_args()
    here = Path(__file__)
    torch = peer.Peer(peer_python(args.torch_python, "torchvision", TORCHVISION), here.with_name("torch_input.py"))
    tf = peer.Peer(peer_python(args.tf_python, "tensorflow-cpu", TENSORFLOW), here.with_name("tf_input.py"))
    rows, sets = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in make_sets(args.pictures, Path(temporary), args.enlarged_px).items():
            files = picture_files(str(folder))
            source, count = make_source(files), min(args.count, len(files))
            for other in (torch, tf):
                other.ask(do="pictures", folder=str(folder), count=count)
            sizes = [decode_bytes(path.read_bytes()).shape[:2] for path in files[:count]]
            sets[name] = {
                "files": len(files),
                "mean_bytes": sum(path.stat().st_size for path in files) / len(files),
                "mean_size_px": np.mean(sizes, axis=0).round().tolist(),
                "evaluation_differs_at_most_by": check_agreement(source, torch, Path(temporary)),
            }
            for beside, other in (("PyTorch", torch), ("tf.data", tf)):
                machine = Machine(other)
                stages = [measure_one_core(source, count, other, machine, args)]
                stages += [measure_end_to_end(source, int(n), other, machine, args) for n in args.workers.split(",")]
                for row in itertools.chain(*stages):
                    row |= {
                        f"{side}_per_s": row["pictures_a_call"] / row[side]["median_s"] for side in ("ours", "theirs")
                    }
                    rows.append({"set": name, "beside": beside} | row)
                    show(rows[-1])
            rows.append({"set": name} | measure_ready(source, args))
            show(rows[-1])
    record = {
        "benchmark": "input",
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "git": peer.git_commit(),
        "versions": peer.versions() | library_versions(),
        "peers": torch.ask(do="facts") | tf.ask(do="facts"),
        "batch_size": args.batch_size,
        "trials": args.trials,
        "sets": sets,
        "rows": rows,
    }
    torch.close()
    tf.close()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {args.out}")


def show(row: dict) -> None:
    """A row as a line."""
    line = f"{row['set']:34} {row['stage']:26} {row['ours_per_s']:8.0f}/s"
    if "theirs_per_s" in row:
        line += f"  {row['beside']}"
        spread = [row[side]["max_s"] / row[side]["min_s"] for side in ("ours", "theirs")]
        line += f" {row['theirs_per_s']:8.0f}/s  {row['ours_per_s'] / row['theirs_per_s']:.2f} times"
        line += f"  (spread {spread[0]:.2f}, {spread[1]:.2f}){'  disturbed' if row['disturbed'] else ''}"
    print(line, flush=True)


def library_versions() -> dict:
    """Of what decodes, and feeds."""
    from importlib.metadata import version

    return {name: version(name) for name in ("simplejpeg", "opencv-python-headless", "pillow", "grain", "numpy")}


if __name__ == "__main__":
    main()
