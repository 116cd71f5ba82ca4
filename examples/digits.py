"""Writes scikit-learn's handwritten digits as pictures: `python digits.py FOLDER [--count N] [--frames]`.

The name says what each shows: digit_0021_is_1.png. With --frames the digit lies in a grey camera frame of 480x640.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--frames", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = load_digits()
    for index in range(args.count):
        digit = Image.fromarray(np.rint(data.images[index] * (255 / 16)).astype(np.uint8))  # 8x8, 0 to 16
        if args.frames:
            digit = digit.resize((640, 480), Image.Resampling.BILINEAR)
        digit.save(args.folder / f"digit_{index:04d}_is_{data.target[index]}.png")
    print(f"{args.count} pictures in {args.folder}")


if __name__ == "__main__":
    main()
