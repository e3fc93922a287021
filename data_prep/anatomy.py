"""Bodies built of analytic shapes.

Organs are written down once, in LPS millimetres, for a reference adult of 175 cm whose soles are at z = 0; a `Frame`
moves them into a patient. Landmark heights follow the organ maps of the autoPET III cohort (MIC-DKFZ
autopet-3-submission), e.g. kidneys 26 cm above the bladder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.shapes import Blob, Capsule, Hoop, Point, Shape, Tube, Wobble, rotation_matrix
from data_prep.tissues import HEART, Anatomy, Layer, MapLayer, Tissue

REFERENCE_HEIGHT_MM = 1750.0
VERTEX_MM, SKULL_BASE_MM, THIGH_MM = 1765.0, 1600.0, 800.0  # where scans of the reference adult begin and end
INNER = (Tissue.MUSCLE, Tissue.FAT, Tissue.SOFT, Tissue.LUNG)
ABDOMEN = (*INNER, Tissue.LIVER)
# z, x, y, half width, half depth of the muscular body, in mm of the reference adult; fat comes on top
TORSO = (
    (780, 0, 5, 150, 90),
    (870, 0, 5, 160, 92),
    (930, 0, 5, 166, 98),
    (1010, 0, 5, 158, 96),
    (1100, 0, 5, 142, 96),
    (1200, 0, 5, 144, 102),
    (1300, 0, 5, 150, 106),
    (1390, 0, 8, 160, 100),
    (1440, 0, 12, 166, 84),
    (1475, 0, 14, 150, 66),
    (1500, 0, 14, 80, 58),
    (1520, 0, 12, 56, 56),
    (1590, 0, 5, 54, 60),
)
# station -> points; pairs are mirrored where x is not 0
STATIONS: dict[str, tuple[Point, ...]] = {
    "mediastinum": ((0, 5, 1390), (25, 10, 1370), (-25, 10, 1365), (0, 30, 1345)),
    "hilum": ((42, 20, 1360), (-42, 20, 1360)),
    "neck": ((42, 15, 1520), (-42, 15, 1520), (48, 10, 1550), (-48, 10, 1550)),
    "supraclavicular": ((60, -5, 1487), (-60, -5, 1487)),
    "axilla": ((135, 5, 1425), (-135, 5, 1425)),
    "retroperitoneum": ((28, 20, 1150), (-24, 20, 1130), (30, 22, 1100), (-10, 12, 1180)),
    "mesentery": ((20, -25, 1120), (-15, -30, 1090)),
    "pelvis": ((62, 15, 985), (-62, 15, 985), (70, 0, 955), (-70, 0, 955)),
    "groin": ((72, -62, 890), (-72, -62, 890)),
    "prostate bed": ((8, 5, 878), (-8, 5, 878), (0, 18, 900)),
}


@dataclass(frozen=True)
class Frame:
    """The way from the reference adult into a patient.

    `heights` maps reference z to patient z by linear pieces, continued beyond its ends; x and y are scaled and then
    shifted by offsets that are interpolated over the reference z.
    """

    heights_from: np.ndarray = field(default_factory=lambda: np.array([0.0, REFERENCE_HEIGHT_MM]))
    heights_to: np.ndarray = field(default_factory=lambda: np.array([0.0, REFERENCE_HEIGHT_MM]))
    offsets: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))  # (knots, 2): x and y
    scale: float = 1.0

    def height(self, z: float) -> float:
        """Patient z of a reference z."""
        source, target = self.heights_from, self.heights_to
        beyond = min(z - source[0], 0.0) + max(z - source[-1], 0.0)
        return float(np.interp(z, source, target) + beyond * self.scale)

    def point(self, x: float, y: float, z: float) -> Point:
        """Patient coordinates of a reference point."""
        shift = [float(np.interp(z, self.heights_from, column)) for column in self.offsets.T]
        return x * self.scale + shift[0], y * self.scale + shift[1], self.height(z)


@dataclass(frozen=True)
class Habitus:
    """What makes one body differ from another."""

    height_mm: float = REFERENCE_HEIGHT_MM
    fat_mm: float = 15.0  # thickness of the subcutaneous fat
    arms_up: bool = True
    male: bool = True
    from_vertex: bool = True  # else the scan begins at the skull base
    brown_fat: bool = False
    bladder: float = 1.0  # filling, as a factor on the radius

    @staticmethod
    def sample(rng: np.random.Generator, *, male: bool, brown_fat: float = 0.0) -> Habitus:
        """Draw a body; `brown_fat` is the probability of active brown fat."""
        return Habitus(
            height_mm=float(np.clip(rng.normal(1760 if male else 1650, 55), 1550, 1880)),
            fat_mm=float(np.clip(rng.lognormal(np.log(16 if male else 19), 0.35), 7, 34)),
            arms_up=bool(rng.random() < 0.7),
            male=male,
            from_vertex=bool(rng.random() < 0.6),
            brown_fat=bool(rng.random() < brown_fat),
            bladder=float(rng.uniform(0.7, 1.25)),
        )


class Builder:
    """Collects layers in reference coordinates and moves them into the patient."""

    def __init__(self, rng: np.random.Generator, frame: Frame, spread: float = 1.0) -> None:
        self.rng, self.frame, self.spread = rng, frame, spread
        self.layers: list[Layer | MapLayer] = []

    def add(self, tissue: Tissue, shape: Shape, over: tuple[Tissue, ...] = (), *, organ: int | None = None) -> None:
        """A shape in patient coordinates, see `Layer`."""
        self.layers.append(Layer(tissue, shape, over, organ))

    def blob(
        self,
        tissue: Tissue,
        centre: Point,
        radii: Point,
        *,
        over: tuple[Tissue, ...] = (),
        wobble: float = 0.05,
        tilt: float = 0.12,
        vary: float = 0.08,
        organ: int | None = None,
    ) -> None:
        """An organ: position, size, tilt and surface vary between patients."""
        rng = self.rng
        moved = np.add(centre, rng.normal(0, 3.5, 3) * self.spread * min(1.0, min(radii) / 20))
        size = np.multiply(radii, self.frame.scale * np.exp(rng.normal(0, vary * self.spread, 3)))
        rotation = rotation_matrix(rng.normal(0, tilt, 3) * self.spread)
        waves = Wobble.sample(rng, wobble, float(np.mean(size)))
        x, y, z = (float(value) for value in size)
        shape = Blob(self.frame.point(*(float(v) for v in moved)), (x, y, z), rotation, waves)
        self.add(tissue, shape, over, organ=organ)

    def capsule(
        self, tissue: Tissue, start: Point, end: Point, radii: tuple[float, float], over: tuple[Tissue, ...] = ()
    ) -> None:
        """A vessel, bone or limb from one reference point to another."""
        scale = self.frame.scale
        shape = Capsule(self.frame.point(*start), self.frame.point(*end), radii[0] * scale, radii[1] * scale)
        self.add(tissue, shape, over)


def procedural(rng: np.random.Generator, habitus: Habitus) -> Anatomy:
    """A patient made of shapes only; the middle of the body is at x = y = 0 and the soles at z = 0."""
    tall = habitus.height_mm / REFERENCE_HEIGHT_MM
    frame = Frame(heights_to=np.array([0.0, habitus.height_mm]), scale=tall * float(rng.uniform(0.94, 1.04)))
    build = Builder(rng, frame)
    add_body(build, habitus)
    add_details(build, habitus)
    return finish(build, habitus)


def add_body(build: Builder, habitus: Habitus, torso: Sequence[Sequence[float]] = TORSO) -> None:
    """The whole body but its details; `torso` has the columns of `TORSO`."""
    _outline(build, habitus, torso)
    _skeleton(build)
    _head(build)
    _chest(build)
    _abdomen(build)
    _pelvis(build, habitus)


def finish(build: Builder, habitus: Habitus) -> Anatomy:
    """The layers with the stations and the stretch that is scanned."""
    frame = build.frame
    top = VERTEX_MM if habitus.from_vertex else SKULL_BASE_MM
    stations = {name: tuple(frame.point(*point) for point in points) for name, points in STATIONS.items()}
    middle = frame.point(0, 5, 1200)
    return Anatomy(tuple(build.layers), stations, frame.height(THIGH_MM), frame.height(top), (middle[0], middle[1]))


def _tube(build: Builder, sections: Sequence[Sequence[float]], extra_mm: float) -> Tube:
    rows = []
    for z, x, y, a, b in sections:
        px, py, pz = build.frame.point(x, y, z)
        rows.append((pz, px, py, a * build.frame.scale + extra_mm, b * build.frame.scale + extra_mm))
    return Tube(np.array(rows))


def _outline(build: Builder, habitus: Habitus, torso: Sequence[Sequence[float]]) -> None:
    """Fat and muscle of trunk, head and limbs."""
    thighs: list[Sequence[Sequence[float]]] = [
        [(600, s * 82, 5, 62, 66), (780, s * 84, 5, 76, 84), (870, s * 78, 5, 84, 92)] for s in (-1, 1)
    ]
    trunk: Sequence[Sequence[float]] = [row for row in torso if row[0] >= 870]
    for tissue, extra in ((Tissue.FAT, habitus.fat_mm), (Tissue.MUSCLE, 0.0)):
        for sections in [trunk, *thighs]:
            build.add(tissue, _tube(build, sections, extra))
        thin = 5.0 if tissue == Tissue.FAT else 0.0
        for centre, radii in (((0, -5, 1650), (78, 98, 108)), ((0, -32, 1590), (60, 62, 75))):
            size = tuple(radius * build.frame.scale + thin for radius in radii)
            build.add(tissue, Blob(build.frame.point(*centre), size))  # type: ignore[arg-type]
    for side in (-1, 1):
        _arm(build, side, habitus)


def _arm(build: Builder, side: int, habitus: Habitus) -> None:
    shoulder: Point = (side * 158, 12, 1440)
    if habitus.arms_up:
        elbow, hand = (side * 172.0, -10.0, 1690.0), (side * 70.0, -30.0, 1850.0)
    else:
        out = 172 + 0.8 * habitus.fat_mm
        elbow, hand = (side * (out + 20), 25.0, 1130.0), (side * out, -15.0, 900.0)
    for tissue, upper, lower in ((Tissue.FAT, 46, 34), (Tissue.MUSCLE, 38, 28), (Tissue.BONE, 12, 9)):
        build.capsule(tissue, shoulder, elbow, (upper, lower + 3))
        build.capsule(tissue, elbow, hand, (lower + 3, lower * 0.75))


def _skeleton(build: Builder) -> None:
    """Spine with discs, pelvis, femora, shoulder girdle, skull."""
    for z in np.linspace(1010, 1560, 21):
        size = np.interp(z, [1010, 1300, 1560], [24, 18, 11])
        y = float(np.interp(z, [1010, 1120, 1330, 1480, 1560], [52, 42, 72, 42, 22]))
        body: Point = (0, y, float(z))
        build.blob(Tissue.MARROW, body, (size, size * 0.8, 11.5), wobble=0.02, tilt=0.04, vary=0.03)
        build.blob(Tissue.BONE, (0, y + size * 1.5, float(z) - 4), (size * 0.5, size * 0.8, 8), wobble=0.02)
    build.blob(Tissue.MARROW, (0, 68, 975), (46, 20, 48), tilt=0.05)
    for side in (-1, 1):
        build.blob(Tissue.BONE, (side * 92, 40, 1000), (14, 46, 52), tilt=0.06)
        build.blob(Tissue.MARROW, (side * 92, 40, 1000), (8, 40, 46), tilt=0.06)
        build.blob(Tissue.BONE, (side * 92, 5, 905), (30, 30, 32), tilt=0.05)
        build.blob(Tissue.BONE, (side * 35, -48, 888), (38, 12, 13), tilt=0.05)
        build.capsule(Tissue.BONE, (side * 112, 5, 890), (side * 90, 5, 620), (20, 15))
        build.capsule(Tissue.MARROW, (side * 112, 5, 890), (side * 90, 5, 620), (11, 8))
        build.capsule(Tissue.BONE, (0, -42, 1445), (side * 140, 5, 1465), (7, 7))
        build.blob(Tissue.BONE, (side * 105, 88, 1400), (42, 7, 56), over=(Tissue.MUSCLE, Tissue.FAT))
    build.blob(Tissue.BONE, (0, -5, 1652), (73, 93, 98), wobble=0.01, tilt=0.02, vary=0.02)
    build.blob(Tissue.BONE, (0, -72, 1560), (34, 14, 10), tilt=0.03)


def _head(build: Builder) -> None:
    """Brain, airway and salivary glands."""
    build.blob(Tissue.BRAIN, (0, -3, 1662), (65, 83, 66), wobble=0.02, tilt=0.03, vary=0.03)
    build.blob(Tissue.BRAIN, (0, 45, 1612), (44, 32, 24), wobble=0.03, vary=0.03)
    build.blob(Tissue.GAS, (0, -62, 1605), (14, 24, 16))
    for side in (-1, 1):
        build.blob(Tissue.SALIVARY, (side * 57, 2, 1578), (10, 17, 24))
        build.blob(Tissue.SALIVARY, (side * 30, -38, 1540), (10, 14, 11))
        build.blob(Tissue.SALIVARY, (side * 36, -80, 1632), (5, 6, 6), organ=0)  # of tears: no head gland of the maps
    build.capsule(Tissue.GAS, (0, -12, 1570), (0, 12, 1395), (8, 7))


def _chest(build: Builder) -> None:
    """Ribs, lungs, great vessels, heart."""
    for level in range(9):
        z, wide = 1462 - 24 * level, float(np.interp(level, [0, 3, 8], [78, 124, 138]))
        shape = Hoop(
            build.frame.point(0, 8, z),
            wide * build.frame.scale,
            0.68 * wide * build.frame.scale,
            9.0,
            float(build.rng.uniform(0.25, 0.4)),
        )
        build.add(Tissue.BONE, shape, (Tissue.MUSCLE,))
    build.blob(Tissue.BONE, (0, -78, 1380), (17, 6, 70), tilt=0.03)
    for side in (-1, 1):
        build.blob(Tissue.LUNG, (side * 68, 8, 1360), (56, 80, 118), over=(Tissue.MUSCLE, Tissue.FAT), wobble=0.03)
    build.blob(Tissue.SOFT, (0, 0, 1370), (30, 72, 105), over=INNER)
    build.capsule(Tissue.GAS, (0, 5, 1480), (0, 12, 1395), (8, 7))
    build.blob(Tissue.BLOOD, (12, -30, 1325), (56, 50, 46), organ=HEART)
    heart = build.frame.point(*(np.array([36.0, -36.0, 1318.0]) + build.rng.normal(0, 4, 3)))
    rotation = rotation_matrix(np.array([0.5, 0.6, 0.0]) + build.rng.normal(0, 0.15, 3))
    for tissue, radii in ((Tissue.MYOCARDIUM, (34, 34, 46)), (Tissue.BLOOD, (22, 22, 34))):
        size = tuple(radius * build.frame.scale for radius in radii)
        build.add(tissue, Blob(heart, size, rotation), organ=HEART)  # type: ignore[arg-type]
    build.capsule(Tissue.BLOOD, (-8, -15, 1340), (-5, -8, 1405), (15, 14))
    build.capsule(Tissue.BLOOD, (-5, -8, 1405), (18, 38, 1398), (13, 12))
    build.capsule(Tissue.BLOOD, (18, 38, 1398), (16, 22, 1200), (12, 11), INNER)


def _abdomen(build: Builder) -> None:
    """Visceral fat, bowel, solid organs of the upper abdomen."""
    rng = build.rng
    build.blob(Tissue.FAT, (0, -15, 1110), (118, 66, 125), over=(Tissue.MUSCLE,))
    for start, end in (
        ((-105, 0, 1040), (-100, 0, 1150)),
        ((-100, -20, 1150), (0, -62, 1130)),
        ((0, -62, 1130), (100, -15, 1170)),
        ((102, 10, 1160), (98, 15, 1030)),
        ((98, 15, 1030), (15, 45, 955)),
    ):
        wide = float(rng.uniform(15, 22))
        build.capsule(Tissue.BOWEL, start, end, (wide, wide), INNER)
    for _ in range(int(rng.integers(9, 14))):
        centre = (float(rng.uniform(-75, 75)), float(rng.uniform(-60, 5)), float(rng.uniform(985, 1110)))
        radii = rng.uniform([18, 12, 10], [38, 20, 18])
        build.blob(Tissue.BOWEL, centre, tuple(radii), over=INNER, tilt=0.8)
    build.capsule(Tissue.DUODENUM, (-35, -20, 1200), (-42, 5, 1140), (13, 13), INNER)
    build.capsule(Tissue.DUODENUM, (-42, 5, 1140), (25, -5, 1130), (13, 12), INNER)
    build.blob(Tissue.STOMACH, (62, -35, 1232), (40, 36, 46), over=INNER)
    build.blob(Tissue.LIVER, (-66, 0, 1238), (74, 78, 70), over=ABDOMEN, wobble=0.04)
    build.blob(Tissue.LIVER, (12, -42, 1245), (66, 34, 36), over=ABDOMEN, wobble=0.04)
    build.blob(Tissue.SPLEEN, (102, 42, 1235), (28, 42, 48), over=ABDOMEN)
    build.capsule(Tissue.BLOOD, (16, 22, 1200), (6, 18, 1060), (11, 9), INNER)
    build.capsule(Tissue.BLOOD, (-14, 12, 1290), (-16, 20, 1060), (11, 10), ABDOMEN)
    for side, z in ((-1, 1168), (1, 1182)):
        centre = (side * 62, 48, z)
        build.blob(Tissue.KIDNEY, centre, (27, 25, 52))
        build.blob(Tissue.FAT, (side * 42, 44, z), (13, 10, 18), wobble=0.02)


def _pelvis(build: Builder, habitus: Habitus) -> None:
    """Pelvic vessels, bladder, prostate or uterus, rectum."""
    build.blob(Tissue.FAT, (0, 5, 935), (62, 52, 42), over=(Tissue.MUSCLE,))
    build.capsule(Tissue.BOWEL, (0, 52, 955), (0, 45, 860), (15, 14), INNER)
    for side in (-1, 1):
        build.capsule(Tissue.BLOOD, (side * 8, 18, 1060), (side * 62, -8, 955), (8, 7), INNER)
        build.capsule(Tissue.BLOOD, (side * 62, -8, 955), (side * 78, -58, 880), (7, 7), INNER)
    if not habitus.male:
        build.blob(Tissue.SOFT, (0, 14, 950), (24, 22, 30), over=INNER)
    if habitus.male:
        build.blob(Tissue.PROSTATE, (0, 2, 880), (23, 18, 18))
    fill = habitus.bladder
    build.blob(Tissue.URINE, (0, -20, 912 + 8 * fill), (38 * fill, 32 * fill, 27 * fill), vary=0.1)


def add_details(build: Builder, habitus: Habitus) -> None:
    """What lies on top: urine on its way, brown fat, benign nodules in the lungs."""
    rng = build.rng
    for side in (-1, 1):
        for _ in range(int(rng.integers(0, 2))):
            z = float(rng.uniform(960, 1130))
            end = z - float(rng.uniform(10, 35))
            build.capsule(Tissue.URETER, (side * 34, 26, z), (side * 36, 24, end), (3.5, 3.0), (*INNER, Tissue.BOWEL))
        if habitus.brown_fat:
            build.blob(Tissue.BROWN_FAT, (side * 62, 5, 1482), (26, 11, 13), over=(Tissue.MUSCLE, Tissue.FAT))
            build.blob(Tissue.BROWN_FAT, (side * 30, 62, 1400), (6, 8, 40), over=(Tissue.MUSCLE, Tissue.FAT))
    for _ in range(int(rng.integers(0, 4))):
        side = int(rng.choice([-1, 1]))
        radius = float(rng.uniform(4, 11))
        centre = (side * float(rng.uniform(50, 85)), float(rng.uniform(-30, 50)), float(rng.uniform(1300, 1430)))
        build.blob(Tissue.SOFT, centre, (radius, radius, radius), over=(Tissue.LUNG,), wobble=0.15)
