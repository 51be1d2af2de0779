"""Detections of a batch of images, by one network or by several together."""

import functools
import math

import torch
from torch import Tensor, nn

from pipeline.detection.ensemble import Ensemble, average, fuse, one_look
from pipeline.detection.parts import map_parts, part_count
from pipeline.detection.postprocess import Detections, mirror, post_process, separate
from pipeline.detection.retinanet import HeadOutputs, RetinaNet
from pipeline.detection.settings import PostProcessing
from pipeline.detection.suppression import Candidates


class NotFiniteError(ValueError):
    """An error for outputs with a NaN or an infinity: a NaN passes no threshold, and must not read as "nothing found".

    Attributes:
        indices: positions of the images in their batch.
    """

    def __init__(self, indices: list[int]) -> None:
        super().__init__("the outputs of the model are not finite")
        self.indices = indices


Detector = RetinaNet | Ensemble
# Pixels times weights, a measure of an image's work, from which all cores are faster than half of them; such an image
# takes about a quarter of a second on a core. Measured with EfficientNet-Lite0 (3.3 million weights) and ResNet-50
# (32 million) at 256, 512 and 1024 pixels, on two cores.
_LARGE = 3e12


def detect(model: Detector, images: Tensor, post_processing: PostProcessing) -> list[Detections]:
    """Return the detections in each image of a batch ``[B, C, H, W]``, fetched from the device at once.

    On a CPU of several cores, parts of the batch are worked on at the same time.

    Raises:
        NotFiniteError: an output is not finite.
    """
    count, cores = part_count(len(images), images.device), torch.get_num_threads()
    if images.is_cpu and cores > 1:
        find_in = functools.partial(find, model, post_processing=post_processing)
        large = count == 1 and is_large(model, *_size(images))
        found = map_parts(find_in, images.tensor_split(count), cores, large=large)
    else:
        found = [find(model, images, post_processing)]
    detections = [one for part in found for one in separate(part)]
    unsound = [number for number, one in enumerate(detections) if one["scores"].isnan().any()]
    if unsound:
        raise NotFiniteError(unsound)
    return detections


def is_large(model: Detector, height: int, width: int) -> bool:
    """Return whether a CPU's cores should all work on one image of ``height`` by ``width`` pixels, not half of them.

    All cores are up to 1.8 times as fast for a large image, and about as fast beside busy processes; for a small one
    they are slower. See benchmarks/README.md.
    """
    weights = sum(one.numel() for one in model.parameters())
    if isinstance(model, Ensemble):
        weights //= len(model.members)  # they work one after another
    return height * width * weights >= _LARGE


def find(model: Detector, images: Tensor, post_processing: PostProcessing) -> Candidates:
    """Return the detections of a batch of images ``[B, C, H, W]``; see `post_process`.

    A network, or an ensemble that averages, looks at the image and, with ``flip``, at its mirror image, and all
    candidates of both go through one suppression. In an ensemble that fuses boxes, each look of each member is
    post-processed alone, and then all are fused.

    An image for which an output is not finite has the score NaN: reading whether there is one would wait for a GPU.
    """
    if isinstance(model, Ensemble) and model.fusion_thresh is not None:
        pairs = [_looks(member, images, post_processing) for member in model.members]
        looks = [one for found, _ in pairs for one in found]
        sound = torch.stack([one for _, one in pairs]).all(0)
        found = fuse(looks, model.fusion_thresh, post_processing)
    else:
        outputs, mirrored, sound = _outputs(model, images, post_processing.flip)
        found = post_process(outputs, model.anchors_for(images), _size(images), post_processing, mirrored)
    return found._replace(scores=torch.where(sound.to(found.scores.device)[:, None], found.scores, math.nan))


def _looks(member: nn.Module, images: Tensor, post_processing: PostProcessing) -> tuple[list[Candidates], Tensor]:
    """Return a member's detections in the images and, with ``flip``, in their mirror images; and `_sound`."""
    assert isinstance(member, RetinaNet)
    alone = one_look(post_processing)
    anchors, size = member.anchors_for(images), _size(images)
    outputs, mirrored, sound = _outputs(member, images, post_processing.flip)
    looks = [post_process(outputs, anchors, size, alone)]
    if mirrored is not None:
        found = post_process(mirrored, anchors, size, alone)
        looks.append(found._replace(boxes=mirror(found.boxes, size[1])))
    return looks, sound


def _outputs(model: Detector, images: Tensor, flip: bool) -> tuple[HeadOutputs, HeadOutputs | None, Tensor]:
    """Return the outputs for the images, for their mirror images, and `_sound`."""
    networks = [*model.members] if isinstance(model, Ensemble) else [model]
    views = [images, images.flip(3)] if flip else [images]
    outputs = [[network(view) for network in networks] for view in views]
    # Before the mean, in which a NaN would stay one but an infinity may not.
    sound = _sound([one for view in outputs for one in view])
    seen = [average(view) if isinstance(model, Ensemble) else view[0] for view in outputs]
    return seen[0], seen[1] if flip else None, sound


def _sound(views: list[HeadOutputs]) -> Tensor:
    """Return whether all outputs for an image are finite, bool ``[B]``."""
    parts = [part for one in views for part in (one.logits, one.deltas, one.image_class) if part is not None]
    return torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
