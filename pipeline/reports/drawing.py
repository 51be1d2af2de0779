"""Pictures of radiographs with boxes."""

import base64
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# In the order blue, green, red. Colour-blind people can tell the two apart too, and true boxes are drawn dashed.
TRUTH: Colour = (235, 200, 60)
DETECTION: Colour = (40, 140, 255)
_TAB = 20  # height of a tab of text, pixels


def captions(labels: npt.ArrayLike, classes: Sequence[str]) -> list[str]:
    """Return the name of each label ``[N]`` to write beside its box; nothing if there is only one class."""
    return ["" if len(classes) == 1 else classes[label] for label in np.asarray(labels, np.int64)]


def draw_boxes(
    image: Image,
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    side: int,
    names: Sequence[str] = (),
    truth_names: Sequence[str] = (),
) -> Image:
    """Draw detections (orange, with scores) and true boxes (blue, dashed) on an image.

    Args:
        image: uint8 ``[H, W]``.
        boxes: detections ``[N, 4]`` xyxy pixels of ``image``.
        scores: scores of the detections, ``[N]``.
        truth: true boxes ``[M, 4]`` xyxy pixels of ``image``.
        side: the longer side of the picture in pixels.
        names: what to write before the score of each detection; empty: nothing.
        truth_names: what to write under each true box.

    Returns:
        uint8 ``[h, w, 3]``, in OpenCV's order BGR.
    """
    scores = np.asarray(scores).reshape(-1)
    captioned = itertools.zip_longest(names, scores)
    texts = [f"{name} {score:.2f}" if name else f"{score:.2f}" for name, score in captioned]
    return draw_captioned(image, boxes, texts, truth, truth_names, side)


def draw_captioned(
    image: Image,
    boxes: npt.ArrayLike,
    texts: Sequence[str],
    dashed: npt.ArrayLike,
    dashed_texts: Sequence[str],
    side: int,
) -> Image:
    """Draw boxes in orange and dashed ones in blue, each ``[N, 4]`` xyxy, with texts above and below; empty: no text.

    Image, side and result are as in `draw_boxes`.
    """
    scale = side / max(image.shape)
    canvas = cv2.cvtColor(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    for box, text in itertools.zip_longest(np.asarray(dashed, np.float64).reshape(-1, 4) * scale, dashed_texts):
        _dashed(canvas, box)
        if text:
            _label(canvas, text, round(box[0]), round(box[3]) + _TAB, TRUTH, inside=True)
    for box, text in itertools.zip_longest(np.asarray(boxes, np.float64).reshape(-1, 4) * scale, texts):
        x0, y0, x1, y1 = (round(value) for value in box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), DETECTION, 2)
        if text:
            _label(canvas, text, x0, y0, DETECTION, inside=" " in text)
    return np.asarray(canvas, np.uint8)


def _label(canvas: np.ndarray, text: str, x: int, y: int, colour: Colour, *, inside: bool) -> None:
    """Draw black text on a filled tab above ``y``, readable on bright and dark lungs.

    It stays below the upper edge, and with ``inside``, for long texts, left of the right edge.
    """
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    bottom = min(max(y, height + 8), canvas.shape[0])
    if inside:
        x = max(1, min(x, canvas.shape[1] - width - 6))
    cv2.rectangle(canvas, (x - 1, bottom - height - 8), (x + width + 6, bottom), colour, cv2.FILLED)
    cv2.putText(canvas, text, (x + 3, bottom - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _dashed(canvas: np.ndarray, box: np.ndarray, dash: int = 8) -> None:
    x0, y0, x1, y1 = box
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for (ax, ay), (bx, by) in itertools.pairwise(corners):
        count = max(1, int(np.hypot(bx - ax, by - ay) // dash))
        points = np.linspace((ax, ay), (bx, by), count + 1).round().astype(int)
        for start, end in zip(points[::2], points[1::2], strict=False):
            cv2.line(canvas, tuple(map(int, start)), tuple(map(int, end)), TRUTH, 2, cv2.LINE_AA)


def contact_sheet(pictures: Sequence[Image], columns: int) -> Image:
    """Put pictures of one size side by side, uint8 ``[H, W, 3]``."""
    blank = np.zeros_like(pictures[0])
    padded = list(pictures) + [blank] * (-len(pictures) % columns)
    rows = [np.hstack(padded[start : start + columns]) for start in range(0, len(padded), columns)]
    return np.asarray(np.vstack(rows), np.uint8)


def encode_jpeg(picture: Image, *, fine: bool = False) -> bytes:
    """Return the JPEG bytes of a picture, uint8 BGR ``[H, W, 3]``; ``fine`` keeps each colour, in twice the bytes.

    A PNG of a radiograph takes seven times as long as a fine JPEG, and has seven times the bytes.
    """
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if fine else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, 95 if fine else 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    ok, data = cv2.imencode(".jpg", picture, options)
    assert ok
    return data.tobytes()


def data_uri(picture: Image) -> str:
    """Return a BGR picture as a JPEG data URI, for pages that must work offline."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(picture)).decode()
