"""Classify what a camera sees, with the time and the energy of a frame.

python main.py digits_cnn.edge --source 0                        a USB camera (needs OpenCV)
python main.py digits_cnn.edge --source "nvarguscamerasrc ! ..."  a CSI camera, by a GStreamer pipeline (needs OpenCV)
python main.py digits_cnn.edge --source frames                   a folder of pictures instead
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import edgekit


def frames(source: str) -> Iterator[np.ndarray]:
    """Frames as uint8 [height, width, 3], red first."""
    if Path(source).is_dir():
        for path in sorted(Path(source).glob("*.png")):
            yield np.asarray(Image.open(path).convert("RGB"))
        return
    import cv2

    camera = cv2.VideoCapture(int(source)) if source.isdigit() else cv2.VideoCapture(source, cv2.CAP_GSTREAMER)
    if not camera.isOpened():
        raise SystemExit(f"Camera '{source}' does not open. See: v4l2-ctl --list-devices")
    while True:
        there, frame = camera.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV gives blue first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--source", required=True)
    parser.add_argument("--frames", type=int, default=300, help="stop after so many")
    args = parser.parse_args()

    package = edgekit.Package.open(args.package)
    labels = package.labels()
    ((name, preprocess),) = package.manifest.preprocess.items()
    took_s: list[float] = []
    with edgekit.open_session(package) as session, edgekit.measure_energy() as meter:
        print(f"{package.name}: {session.variant} on {session.device}")
        for frame in frames(args.source):
            begun = time.perf_counter()
            tensor = preprocess.from_image(Image.fromarray(frame))
            logits = next(iter(session.run({name: tensor}).values()))[0]
            took_s.append(time.perf_counter() - begun)
            print(f"frame {len(took_s):4d}: {labels[int(np.argmax(logits))]}  {1e3 * took_s[-1]:6.2f} ms")
            if len(took_s) == args.frames:
                break
    if not took_s:
        raise SystemExit(f"'{args.source}' gave no frame.")
    print(f"{len(took_s)} frames, median {1e3 * statistics.median(took_s):.2f} ms from pixels to label")
    print(f"energy of the machine meanwhile: {meter}")


if __name__ == "__main__":
    main()
