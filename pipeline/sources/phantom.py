"""A chest phantom: synthetic frontal radiographs with lung opacities in given boxes.

Coordinates are fractions of the image side, x to the right and y down; the heart lies on the
image's right. The phantom is not anatomy to learn from. It gives a detector something to find
(soft, textured clouds inside the lungs) among structures that it must not box (heart, effusion, lines).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float64]

SOFT_TISSUE, LUNG, AIR = 0.60, 0.26, 0.03


@dataclass(frozen=True)
class Anatomy:
    """Traits that all studies of one patient share."""

    lung_width: float
    lung_top: float
    lung_bottom: float
    midline: float
    tilt: float
    heart: float
    rib_contrast: float
    vessel_contrast: float
    outline_seed: int


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient's anatomy."""
    return Anatomy(
        lung_width=rng.uniform(0.15, 0.19),
        lung_top=rng.uniform(0.09, 0.16),
        lung_bottom=rng.uniform(0.78, 0.90),
        midline=rng.uniform(0.48, 0.52),
        tilt=rng.uniform(-0.03, 0.03),
        heart=rng.uniform(0.10, 0.145),
        rib_contrast=rng.uniform(0.02, 0.06),
        vessel_contrast=rng.uniform(0.03, 0.07),
        outline_seed=int(rng.integers(2**31)),
    )


def render_study(
    anatomy: Anatomy,
    boxes: Boxes,
    finding: str,
    view: str,
    size: int,
    rng: np.random.Generator,
) -> Image:
    """Render one study.

    Args:
        anatomy: the patient.
        boxes: ``[N, 4]`` x, y, width, height as fractions of the side; one opacity fills each.
        finding: another visible finding: ``none``, ``heart``, ``effusion`` or ``line``.
        view: ``AP`` (bedside: larger heart, flatter contrast, more noise) or ``PA``.
        size: side in pixels.
        rng: the study's own random generator.

    Returns:
        ``[size, size]`` grey levels; dense tissue is bright (MONOCHROME2).
    """
    grid = _grid(size)
    lungs = _lung_mask(anatomy, boxes, grid, rng)
    image = _body(grid, rng) * (1 - lungs) + LUNG * lungs
    image += _vessels(anatomy, lungs, size, rng)
    image += _ribs(anatomy, lungs, grid)
    image += _mediastinum(anatomy, grid, view, finding, rng)
    image += _shadows(anatomy, grid, rng) * (0.3 + 0.7 * lungs)
    for box in boxes:
        image += _opacity(box, lungs, grid, rng) * np.clip(0.8 - image, 0, None)
    if finding == "effusion":
        image += _effusion(anatomy, lungs, grid, rng) * np.clip(0.75 - image, 0, None)
    if finding == "line" or (view == "AP" and rng.random() < 0.4):
        image = np.maximum(image, _line(size, rng))
    return _expose(image, view, size, rng)


def _grid(size: int) -> tuple[Floats, Floats]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.asarray(axis[None, :], np.float32), np.asarray(axis[:, None], np.float32)


def _bump(t: Floats) -> Floats:
    """Return 1 inside and 0 outside, with a soft edge where ``t`` (a normalised radius) is near 1."""
    return np.asarray(1 / (1 + np.exp(np.clip((t - 1) * 14, -30, 30))), np.float32)


def _cloud(size: int, grain: float, rng: np.random.Generator) -> Floats:
    """Return smooth noise of unit variance whose blobs measure ``grain`` of the image side."""
    cells = max(3, round(1 / grain))
    noise = cv2.resize(rng.standard_normal((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise / (noise.std() + 1e-6), np.float32)


def _lung_mask(anatomy: Anatomy, boxes: Boxes, grid: tuple[Floats, Floats], rng: np.random.Generator) -> Floats:
    x, y = grid
    size = x.shape[1]
    shape = np.random.default_rng(anatomy.outline_seed)
    # The same patient breathes in a little more or less from study to study.
    bottom = anatomy.lung_bottom + rng.normal(0, 0.012)
    middle, half = (anatomy.lung_top + bottom) / 2, (bottom - anatomy.lung_top) / 2
    mask = np.zeros((size, size), np.float32)
    for side in (-1, 1):
        wave = 0.012 * np.sin(y * shape.uniform(8, 14) + shape.uniform(0, 6)).astype(np.float32)
        down = (y - middle) / half
        width = anatomy.lung_width * (1 + 0.22 * down)
        centre = anatomy.midline + side * (0.055 + anatomy.lung_width) + anatomy.tilt * down + wave
        across = np.abs(x - centre) / width
        # The diaphragm cuts each lung off with a dome, which lies a little higher on the heart's side.
        dome = 0.05 * (across**2) + (0.03 if side < 0 else 0.01)
        mask = np.maximum(mask, _bump((across**2.6 + np.abs(down) ** 4) ** (1 / 2.6)) * (y < bottom - 0.06 + dome))
    for bx, by, bw, bh in boxes:
        radius = (np.abs((x - bx - bw / 2) / (bw * 0.52)) ** 3 + np.abs((y - by - bh / 2) / (bh * 0.52)) ** 3) ** (
            1 / 3
        )
        mask = np.maximum(mask, _bump(radius))
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), size * 0.006), np.float32)


def _body(grid: tuple[Floats, Floats], rng: np.random.Generator) -> Floats:
    x, y = grid
    half = 0.44 + 0.06 * np.minimum(y, 0.5) + rng.uniform(-0.02, 0.04)
    inside = _bump(np.abs(x - 0.5) / half)
    neck = _bump(np.hypot((x - 0.5) / 0.16, (y + 0.02) / 0.22))
    shoulder = 0.05 + 0.5 * np.clip(np.abs(x - 0.5) - 0.1, 0, None) ** 2
    above = np.maximum(_bump(1 + (shoulder - y) / 0.18), neck)
    density = SOFT_TISSUE + 0.05 * _cloud(x.shape[1], 0.3, rng) + 0.10 * np.clip(y - 0.7, 0, None)
    return np.asarray(AIR + (density - AIR) * inside * above, np.float32)


def _vessels(anatomy: Anatomy, lungs: Floats, size: int, rng: np.random.Generator) -> Floats:
    x, y = _grid(size)
    # Ridges of smooth noise branch like vessels; they fade with the distance from the hilum.
    ridges = np.exp(-((_cloud(size, 0.045, rng) / 0.25) ** 2)) + 0.6 * np.exp(-((_cloud(size, 0.02, rng) / 0.3) ** 2))
    distance = np.hypot(np.abs(x - anatomy.midline) - 0.07, y - 0.47)
    return np.asarray(anatomy.vessel_contrast * ridges * np.exp(-distance / 0.22) * lungs * 2, np.float32)


def _ribs(anatomy: Anatomy, lungs: Floats, grid: tuple[Floats, Floats]) -> Floats:
    x, y = grid
    across = np.abs(x - anatomy.midline)
    back = np.sin((y - 0.55 * across**1.5 + 0.9 * across**2) * 2 * np.pi / 0.085)
    front = np.sin((y - 0.5 * across) * 2 * np.pi / 0.095)
    bands = np.clip(back, 0, 1) ** 0.5 + 0.5 * np.clip(front, 0, 1) ** 0.5 * (across > 0.16)
    collar = np.exp(-(((y - 0.135 + 0.16 * (across - 0.2)) / 0.016) ** 2)) * (across > 0.04) * (across < 0.36)
    return np.asarray(anatomy.rib_contrast * (bands * (0.3 + 0.7 * lungs) + 2.2 * collar), np.float32)


def _mediastinum(
    anatomy: Anatomy, grid: tuple[Floats, Floats], view: str, finding: str, rng: np.random.Generator
) -> Floats:
    x, y = grid
    across = x - anatomy.midline
    column = np.exp(-((across / 0.055) ** 4)) * (0.75 + 0.05 * np.sin(y * 2 * np.pi / 0.055))
    heart = anatomy.heart * (1.12 if view == "AP" else 1.0) * (rng.uniform(1.35, 1.6) if finding == "heart" else 1.0)
    radius = np.hypot((across - 0.42 * heart) / (heart * 1.25), (y - 0.66) / (heart * 1.05))
    # The two dense parts overlap, but a film saturates: their plain sum would be white.
    return np.asarray(np.hypot(0.22 * column, 0.24 * _bump(radius)), np.float32)


def _opacity(box: Boxes, lungs: Floats, grid: tuple[Floats, Floats], rng: np.random.Generator) -> Floats:
    """Render a soft, textured cloud that fills its box and stays inside the lungs."""
    x, y = grid
    size = x.shape[1]
    bx, by, bw, bh = _as_readers_see_it(box, rng)
    ragged = 0.12 * _cloud(size, 0.08, rng)
    power = rng.uniform(2.0, 3.0)
    radius = (np.abs((x - bx - bw / 2) / (bw / 2)) ** power + np.abs((y - by - bh / 2) / (bh / 2)) ** power) ** (
        1 / power
    )
    body = 1 / (1 + np.exp(np.clip((radius + ragged - 0.90) * rng.uniform(5, 10), -30, 30)))
    texture = 1 + 0.06 * _cloud(size, 0.02, rng) + 0.13 * _cloud(size, 0.09, rng)
    return np.asarray(rng.uniform(0.16, 0.5) * body * np.clip(texture, 0.2, 1.8) * (0.15 + 0.85 * lungs), np.float32)


def _as_readers_see_it(box: Boxes, rng: np.random.Generator) -> Boxes:
    """Vary a box at random to get the extent of its opacity, because readers agree on that only roughly."""
    x, y, width, height = box
    wider, taller = np.exp(rng.normal(0, 0.07, 2))
    middle = np.array([x + width / 2, y + height / 2]) + rng.normal(0, 0.04, 2) * (width, height)
    sides = np.array([width * wider, height * taller])
    return np.concatenate([middle - sides / 2, sides])


def _shadows(anatomy: Anatomy, grid: tuple[Floats, Floats], rng: np.random.Generator) -> Floats:
    """Render shadows that are no findings: breasts or muscle over the lower lungs, the roots of the lungs, haze."""
    x, y = grid
    total = np.zeros((x.shape[1], x.shape[1]), np.float32)
    breast, root = rng.uniform(0, 0.10), rng.uniform(0.03, 0.10)
    for side in (-1, 1):
        outer = anatomy.midline + side * rng.uniform(0.20, 0.26)
        total += breast * _bump(np.hypot((x - outer) / rng.uniform(0.12, 0.17), (y - 0.70) / rng.uniform(0.12, 0.2)))
        inner = anatomy.midline + side * 0.09
        total += root * np.exp(-((x - inner) ** 2 / 0.004 + (y - rng.uniform(0.42, 0.5)) ** 2 / 0.008))
    haze = rng.uniform(0, 0.07) * np.clip(1 + 0.7 * _cloud(x.shape[1], 0.25, rng), 0, 2)
    return np.asarray(total + haze, np.float32)


def _effusion(anatomy: Anatomy, lungs: Floats, grid: tuple[Floats, Floats], rng: np.random.Generator) -> Floats:
    """Render fluid at the bottom of one lung: dense, with a meniscus that climbs the outer wall."""
    x, y = grid
    outer = np.clip((x - anatomy.midline) * rng.choice([-1.0, 1.0]), 0, None) / 0.4
    level = anatomy.lung_bottom - rng.uniform(0.10, 0.20) - 0.16 * outer**2
    return np.asarray(0.8 * _bump(1 + (level - y) / 0.12) * (outer > 0) * lungs, np.float32)


def _line(size: int, rng: np.random.Generator) -> Floats:
    """Render a catheter or lead: one thin bright curve."""
    t = np.linspace(0, 1, 40)
    start, bend, end = rng.uniform([[0.2, 0.0], [0.2, 0.2], [0.35, 0.4]], [[0.8, 0.1], [0.8, 0.5], [0.65, 0.8]])
    curve = np.outer((1 - t) ** 2, start) + np.outer(2 * t * (1 - t), bend) + np.outer(t**2, end)
    canvas = np.zeros((size, size), np.float32)
    points = np.round(curve * size).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, rng.uniform(0.75, 0.95), max(1, round(size * 0.005)), cv2.LINE_AA)
    return canvas


def _expose(image: Floats, view: str, size: int, rng: np.random.Generator) -> Image:
    """Turn density into grey levels: exposure, scatter and noise differ from study to study."""
    contrast = rng.uniform(0.75, 0.95) if view == "AP" else rng.uniform(0.9, 1.15)
    grain = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), size / 512)
    noise = (0.03 if view == "AP" else 0.02) * grain
    exposed = np.clip((image - 0.45) * contrast + rng.uniform(0.40, 0.52) + noise, 0, 1) ** rng.uniform(0.85, 1.2)
    return np.asarray(np.round(exposed * 255), np.uint8)
