"""tf.data's side of input.py: it decodes only the window that is cropped. In an environment of its own.

Reads one JSON line a request, answers each. Besides TensorFlow it imports the standard library only, and runs as a script.
The pipeline is the usual one of ImageNet training: a window drawn by sample_distorted_bounding_box, decode_and_crop_jpeg,
a bilinear resize (not antialiased, which costs less than what the other sides do), a flip, normalisation.
"""

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf
from input_sides import IMAGE_PX, MEAN, STD, picture_files, time_batches

PREFETCH = 2  # batches


def random_window(data):
    """The pixels of a random-resized crop: uint8 (h, w, 3)."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(data),
        tf.zeros([0, 0, 4], tf.float32),
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    return tf.io.decode_and_crop_jpeg(data, window, channels=3)


def crop(data):
    """A random-resized crop of IMAGE_PX, as TensorFlow's users resize it."""
    return tf.image.resize(random_window(data), (IMAGE_PX, IMAGE_PX), tf.image.ResizeMethod.BILINEAR)


def show(data):
    """What a network reads."""
    image = tf.image.random_flip_left_right(crop(data))
    return (image / 255 - tf.constant(MEAN)) / tf.constant(STD)


def make_loader(files, batch_size, num_workers):
    """next_batch() and the number of batches that it holds ready."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_workers
    options.deterministic = True
    names = tf.data.Dataset.from_tensor_slices([str(path) for path in files])
    data = names.shuffle(len(files)).repeat().map(lambda name: show(tf.io.read_file(name)), num_workers)
    batches = iter(data.batch(batch_size, drop_remainder=True).prefetch(PREFETCH).with_options(options))
    return (lambda: next(batches)), PREFETCH + 1


def main() -> None:
    """Answers requests until the input ends."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    stages = {
        "decode": tf.function(lambda data: tf.io.decode_jpeg(data, channels=3)),
        "decode and crop": tf.function(lambda data: tf.cast(crop(data), tf.uint8)),
    }
    files, contents, next_batch, drain = [], [], None, 0
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "facts":
            answer = {"tensorflow": tf.__version__}
        elif request["do"] == "pictures":
            files = picture_files(request["folder"])
            contents = [tf.constant(path.read_bytes()) for path in files[: request["count"]]]
            answer = {"files": len(files)}
        elif request["do"] == "loader":
            next_batch, drain = make_loader(files, request["batch_size"], request["num_workers"])
            next_batch()
            answer = {}
        elif request["do"] == "time batches":
            same = lambda batch: batch  # noqa: E731
            answer = {"seconds": time_batches(next_batch, same, same, drain, request["calls"], os.getpid())}
        else:  # time pictures, one after another
            stage = stages[request["stage"]]
            begin = time.perf_counter()
            for _ in range(request["calls"]):
                for data in contents:
                    stage(data).numpy()
            answer = {"seconds": (time.perf_counter() - begin) / request["calls"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
