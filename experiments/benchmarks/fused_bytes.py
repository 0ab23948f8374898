"""What kernels that fuse 1x1 convolution with batch normalisation would save ResNet-50's step, in counted bytes.

    python -m experiments.benchmarks.fused_bytes [--write_docs]

Nothing is timed. A step that is bound by memory takes as long as its bytes do, so bytes that need not move bound what a
kernel can win. Counted from the traced network, activations in bfloat16:

  statistics    a 1x1 convolution's outputs are read once more for their mean and variance; a kernel that sums them up while
                it writes them spares that reading
  sums          the gradient with regard to such a normalisation needs two sums over the incoming gradient; where a 1x1
                convolution's input gradient is what comes in, its kernel could sum while it writes: one reading spared
  input         a 1x1 convolution that normalises its input as it reads it spares that the normalised map is written and
                read; its weights' gradient does the same again

The last two concern the 3x3 convolutions' maps, whose normalisation a 1x1 convolution follows. Block outputs are written in
any case: the shortcut wants them. `--write_docs` writes docs/fused_normalisation.md.
"""

import argparse
import json
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "fused_normalisation.md"
RECORD = ROOT / "experiments" / "results" / "deviceless" / "h200.json"
BYTES = 2  # of a bfloat16
VARIANT = "50-v1.5"


def counted() -> dict[str, float]:
    """Megabytes an image that each fusion would spare, and "maps", those of all convolutions' outputs."""
    import jax
    from flax.traverse_util import flatten_dict

    from cnn_jax.analysis.complexity import analyze_module
    from cnn_jax.build import init_variables
    from cnn_jax.models import resnet

    shape = tuple(resnet.VARIANTS[VARIANT].input_shape)
    module = resnet.build(VARIANT)
    shapes = jax.eval_shape(lambda key: init_variables(module, key, shape)["params"], jax.random.key(0))
    kernels = {
        "/".join(path[:-1]): leaf.shape
        for path, leaf in flatten_dict(shapes).items()
        if path[-1] == "kernel" and len(leaf.shape) == 4
    }
    maps = {
        layer.name: math.prod(layer.output_shape) * BYTES / 1e6
        for layer in analyze_module(module, shape).layers
        if layer.name in kernels
    }
    if maps.keys() != kernels.keys():
        raise ValueError(
            f"these convolutions are counted but have no kernel, or not: {sorted(maps.keys() ^ kernels.keys())}"
        )
    inside = [name for name, kernel in kernels.items() if kernel[:2] == (3, 3)]  # of a block: a 1x1 follows each
    statistics = sum(size for name, size in maps.items() if kernels[name][:2] == (1, 1))
    of_inside = sum(maps[name] for name in inside)
    return {"maps": sum(maps.values()), "statistics": statistics, "sums": of_inside, "input": 2 * of_inside}


def render(found: dict[str, float]) -> str:
    """The page."""
    saved = sum(found[name] for name in ("statistics", "sums", "input"))
    recorded = json.loads(RECORD.read_text())["programs"].get("resnet50", {}).get("megabytes_an_image")
    whole = f", of {recorded:.1f} that the step moves as compiled today ({saved / recorded:.1%})" if recorded else ""
    return "\n".join([
        "# Fusing 1x1 convolution with batch normalisation",
        "",
        f"What it could save a training step of ResNet-{VARIANT} in bfloat16, counted from the traced network by",
        "`python -m experiments.benchmarks.fused_bytes --write_docs`; nothing here was timed.",
        "",
        "| fusion | MB an image |",
        "|---|---|",
        f"| mean and variance summed up where a 1x1 convolution writes its outputs | {found['statistics']:.1f} |",
        f"| the gradient's two sums where a 1x1 convolution writes its input's gradient | {found['sums']:.1f} |",
        f"| normalisation and ReLU where a 1x1 convolution reads its input | {found['input']:.1f} |",
        f"| together | {saved:.1f} |",
        "",
        f"All outputs of convolutions together are {found['maps']:.1f} MB an image{whole}.",
        "",
        "Not built. The gain is what stands above only if the kernel, in Pallas or Triton, multiplies as fast as the",
        "library's convolution that it replaces, in all shapes and three directions (forward, and both gradients);",
        "whether it does takes an accelerator to say. The first row is most of it, and the one to try first: it is of the",
        "forward pass alone, and its sums are over rows that the kernel holds in registers anyway.",
        "",
    ])  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write_docs", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    page = render(counted())
    print(page)
    if args.write_docs:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
