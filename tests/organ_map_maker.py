"""Organ maps of ellipsoids, in place of those of real patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autopet.images import write_image
from autopet.volume import Volume

# organ label -> centre and radii (x, y, z) in mm of an ellipsoid; heights as in an adult who lies from 700 to 1780 mm
BODY = {
    1: ((95, 40, 1235), (28, 40, 48)),
    2: ((60, 48, 1180), (27, 25, 52)),
    3: ((-66, 0, 1238), (74, 70, 70)),
    4: ((0, -20, 915), (38, 32, 27)),
    5: ((-75, 8, 1370), (50, 75, 100)),
    6: ((0, 0, 1665), (65, 80, 66)),
    7: ((36, -36, 1318), (45, 45, 50)),
    8: ((62, -35, 1232), (35, 30, 40)),
    9: ((0, 2, 870), (20, 16, 14)),
    10: ((57, 2, 1578), (12, 17, 24)),
}
MIRRORED = (2, 5, 10)


def write_maps(folder: Path, *, each: int) -> Path:
    """Organ maps of ellipsoids, `each` for either tracer, all a little different."""
    spacing = 6.0
    z, y, x = np.meshgrid(np.arange(700, 1780, spacing), np.arange(-120, 121, spacing), np.arange(-170, 171, spacing),
                          indexing="ij")  # fmt: skip
    for index in range(2 * each):
        labels = np.zeros(x.shape, np.uint8)
        for label, (centre, radii) in BODY.items():
            for side in (1, -1) if label in MIRRORED else (1,):
                grown = np.array(radii) * (1 + 0.01 * index)
                off = ((x - side * centre[0]) / grown[0]) ** 2 + ((y - centre[1]) / grown[1]) ** 2
                labels[off + ((z - centre[2]) / grown[2]) ** 2 < 1] = label
        name = f"{('fdg', 'psma')[index % 2]}_{index:02d}.nii.gz"
        write_image(folder / name, Volume(labels, (spacing,) * 3, (-170.0, -120.0, 700.0)))
    return folder
