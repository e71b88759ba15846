"""The region proposal network: losses, gradients and proposals of torchvision's; what it samples; hostile input."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from vitp.boxes.assign import RandomSampler
from vitp.boxes.coders import MidpointOffsetCoder
from vitp.boxes.formats import from_xyxy
from vitp.boxes.iou import plain_ioa
from vitp.boxes.objects import Objects
from vitp.heads.anchors import AnchorConfig
from vitp.heads.detector_config import PlainRPN, UprightRPN
from vitp.heads.rpn import RPN, RPNConfig
from vitp.heads.truth import Truth, truth_of

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 8
HEIGHT, WIDTH = 128, 192


def _maps(images: int = 2, height: int = HEIGHT, width: int = WIDTH) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(images, CHANNELS, h, w, generator=g).requires_grad_() for h, w in shapes]


def _truth(boxes: list[list[float]], ignored: Sequence[list[float]] = ()) -> Truth:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Truth(torch.tensor(boxes).view(-1, 4), labels, torch.tensor([*ignored]).view(-1, 4))


TRUTH = [
    _truth([[10, 20, 45, 60], [100, 10, 170, 50], [70, 70, 90, 118]]),
    _truth([[5, 5, 25, 22], [60, 30, 130, 100]]),
]
SIZES = [(HEIGHT, WIDTH), (112, 160)]
KEYS = [(7, 0, 0), (7, 0, 1)]


def _rpn(config: RPNConfig, std: float = 0.1) -> RPN:
    torch.manual_seed(0)
    rpn = RPN(config, CHANNELS, STRIDES)
    for parameter in rpn.parameters():  # the initial ones say nearly the same of every anchor
        torch.nn.init.normal_(parameter, std=std)
    return rpn


class _Fixed:
    """A sampler that takes what it is told."""

    def __init__(self, positive: list[Tensor], negative: list[Tensor]) -> None:
        self.chosen = positive, negative

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        found = []
        for indices, sign in zip(self.chosen, (1, 0), strict=True):
            masks = [torch.zeros_like(one, dtype=torch.bool) for one in labels]
            for mask, index, one in zip(masks, indices, labels, strict=True):
                mask[index] = True
                assert (one[index] == sign).all(), "the two disagree about an anchor"
            found.append(masks)
        return found[0], found[1]


def _torchvision(rpn: RPN, test: int = 1000) -> RegionProposalNetwork:
    """torchvision's network with the weights and settings of ours."""
    config = rpn.config
    anchors = AnchorGenerator(sizes=tuple((8.0 * s,) for s in STRIDES), aspect_ratios=((0.5, 1.0, 2.0),) * 5)
    anchors.cell_anchors = [config.anchors.cell(s) for s in STRIDES]  # torchvision's are rounded to whole pixels
    head = RPNHead(CHANNELS, 3, conv_depth=1)
    pairs = ((head.conv[0][0], rpn.conv), (head.cls_logits, rpn.objectness), (head.bbox_pred, rpn.offsets))
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict(), strict=False)
    head.conv[0][0].weight.data = rpn.conv.weight.data[:CHANNELS, :].clone()
    head.conv[0][0].bias.data = rpn.conv.bias.data[:CHANNELS].clone()
    count = {"training": config.train_proposals, "testing": test}
    before = {"training": config.per_level, "testing": config.test_per_level}
    return RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, before, count, config.nms)


def _settings(**changes: object) -> PlainRPN:
    return PlainRPN.model_validate({"beta": 1 / 9, "channels": CHANNELS, "per_level": 300, **changes})


def test_losses_and_gradients_are_those_of_torchvision() -> None:
    rpn, maps = _rpn(_settings()), _maps()
    sizes = [(HEIGHT, WIDTH)] * 2
    anchors = torch.cat(rpn.anchors(maps))
    samples = [rpn.sample(anchors, t, size, key) for t, size, key in zip(TRUTH, sizes, KEYS, strict=True)]
    inside = anchors[:, 2:].min(), len(anchors)
    assert inside[1] == sum(m.shape[2] * m.shape[3] * 3 for m in maps)
    losses = rpn.losses(maps, TRUTH, sizes, KEYS)
    (losses["rpn_class"] / 2 + losses["rpn_box"] / 2).backward()
    ours = [m.grad.clone() for m in maps if m.grad is not None]
    for m in maps:
        m.grad = None

    theirs = _torchvision(rpn).train()
    theirs.fg_bg_sampler = _Fixed([s[0] for s in samples], [s[1] for s in samples])
    images = ImageList(torch.zeros(2, 3, HEIGHT, WIDTH), sizes)
    targets = [{"boxes": t.boxes} for t in TRUTH]
    _, expected = theirs(images, {str(i): m for i, m in enumerate(maps)}, targets)
    torch.testing.assert_close(losses["rpn_class"] / 2, expected["loss_objectness"])
    torch.testing.assert_close(losses["rpn_box"] / 2, expected["loss_rpn_box_reg"])
    assert float(expected["loss_rpn_box_reg"].detach()) > 0.01
    sum(expected.values()).backward()
    for mine, m in zip(ours, maps, strict=True):
        torch.testing.assert_close(mine, m.grad, rtol=1e-4, atol=1e-7)
    for mine, other in ((rpn.conv, theirs.head.conv[0][0]), (rpn.offsets, theirs.head.bbox_pred)):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-6)


def test_proposals_are_those_of_torchvision() -> None:
    rpn, maps = _rpn(_settings(test_proposals=60, test_per_level=200)).eval(), _maps()
    with torch.no_grad():
        expected, _ = _torchvision(rpn, test=60).eval()(
            ImageList(torch.zeros(2, 3, HEIGHT, WIDTH), SIZES), {str(i): m for i, m in enumerate(maps)}
        )
    for ours, theirs in zip(rpn.propose(maps, SIZES), expected, strict=True):
        assert len(ours) == 60
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_sampled_anchors_are_scored_as_on_the_whole_maps() -> None:
    for coder in (None, MidpointOffsetCoder()):
        rpn, maps = _rpn(_settings() if coder is None else RPNConfig(coder=coder)), _maps()
        logits, offsets = (torch.cat(parts, 1).flatten(0, 1) for parts in rpn(maps))
        counts = [len(a) for a in rpn.anchors(maps)]
        index = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))[:500]
        few, some = rpn.at(maps, index, counts)
        torch.testing.assert_close(few, logits[index], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some, offsets[index], rtol=1e-4, atol=1e-5)


def test_anchors_follow_the_released_settings() -> None:
    level = AnchorConfig().grid([(2, 3)], [16], torch.device("cpu"))[0].view(2, 3, 3, 4)
    sides = level[..., 2:] - level[..., :2]
    torch.testing.assert_close(sides.prod(-1), torch.full((2, 3, 3), 128.0**2))
    torch.testing.assert_close(sides[0, 0, :, 1] / sides[0, 0, :, 0], torch.tensor([0.5, 1.0, 2.0]))
    centres = (level[..., :2] + level[..., 2:]) / 2
    torch.testing.assert_close(centres[1, 2], torch.tensor([[32.0, 16.0]]).expand(3, 2))


def test_released_rpn_learns_from_anchors_inside_the_image_alone() -> None:
    maps = _maps()
    for config, whole in ((UprightRPN(), True), (PlainRPN(), False)):
        rpn = _rpn(config)
        anchors = torch.cat(rpn.anchors(maps))
        positive, negative, taker = rpn.sample(anchors, TRUTH[1], SIZES[1], KEYS[1])
        assert len(positive) + len(negative) == 256
        assert set(taker.tolist()) == {0, 1}
        used = anchors[torch.cat((positive, negative))]
        limit = torch.tensor([160.0, 112.0])
        assert bool(((used[:, :2] >= 0).all(1) & (used[:, 2:] < limit).all(1)).all()) is whole
        assert bool((((used[:, :2] + used[:, 2:]) / 2) < limit).all()), "an anchor that starts in the padding"


def test_a_batch_is_the_sum_of_its_images() -> None:
    rpn, maps = _rpn(_settings()), _maps()
    both = rpn.losses(maps, TRUTH, SIZES, KEYS)
    single = [
        rpn.losses([m[i : i + 1] for m in maps], TRUTH[i : i + 1], SIZES[i : i + 1], KEYS[i : i + 1]) for i in (0, 1)
    ]
    for name, value in both.items():
        torch.testing.assert_close(value, single[0][name] + single[1][name])


def test_what_is_sampled_depends_on_the_key_alone() -> None:
    rpn, maps = _rpn(_settings()), _maps()
    anchors = torch.cat(rpn.anchors(maps))
    first, again, other = (rpn.sample(anchors, TRUTH[0], SIZES[0], key)[1] for key in ((7, 0, 0), (7, 0, 0), (7, 1, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_without_objects_is_all_background() -> None:
    rpn, maps = _rpn(_settings()), _maps(1)
    losses = rpn.losses(maps, [_truth([])], SIZES[:1], KEYS[:1])
    assert float(losses["rpn_box"].detach()) == 0
    sum(losses.values()).backward()
    assert float(losses["rpn_class"].detach()) > 0
    assert rpn.offsets.weight.grad is not None
    assert torch.isfinite(rpn.conv.weight.grad).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (20, 20)])
@pytest.mark.parametrize("config", [UprightRPN(), PlainRPN()])
def test_images_smaller_than_every_anchor(size: tuple[int, int], config: RPNConfig) -> None:
    rpn, maps = _rpn(config), _maps(1, 32, 224)
    losses = rpn.losses(maps, [_truth([[0, 0, 1, 1]])], [size], KEYS[:1])
    assert torch.isfinite(sum(losses.values()))
    (proposals,) = rpn.propose(maps, [size])
    assert (proposals[:, 2] <= size[1]).all()
    assert (proposals[:, 3] <= size[0]).all()
    assert (proposals[:, 2:] > proposals[:, :2]).all()


def test_five_thousand_objects_in_one_image() -> None:
    g = torch.Generator().manual_seed(0)
    corner, side = torch.rand(5000, 2, generator=g) * 490, 4 + torch.rand(5000, 2, generator=g) * 18
    truth = _truth([])
    truth = Truth(torch.cat((corner, corner + side), 1), torch.zeros(5000, dtype=torch.int64), truth.ignored)
    rpn, maps = _rpn(UprightRPN()), _maps(1, 512, 512)
    losses = rpn.losses(maps, [truth], [(512, 512)], KEYS[:1])
    assert torch.isfinite(sum(losses.values()))
    positive, _, taker = rpn.sample(torch.cat(rpn.anchors(maps)), truth, (512, 512), KEYS[0])
    assert len(positive) == 128
    assert len(set(taker.tolist())) > 50


def test_regions_to_ignore_are_no_background_where_that_is_asked_for() -> None:
    crowd = [[60.0, 20.0, 180.0, 120.0]]
    maps = _maps(1)
    for share in (None, 0.5):
        rpn = _rpn(_settings(ignore_overlap=share, sampler=RandomSampler(count=2000)))
        anchors = torch.cat(rpn.anchors(maps))
        _, negative, _ = rpn.sample(anchors, _truth([[10, 20, 45, 60]], crowd), SIZES[0], KEYS[0])
        covered = (plain_ioa(anchors[negative], torch.tensor(crowd)) >= 0.5).any()
        assert bool(covered) is (share is None)


def test_rotated_truth_is_assigned_by_the_boxes_around_it() -> None:
    """The oriented network is the same class with the midpoint-offset coder."""
    upright = TRUTH[0]
    turned = Truth(from_xyxy(upright.boxes), upright.labels, upright.ignored)
    maps, plain, oriented = _maps(), _rpn(_settings()), _rpn(_settings_oriented())
    anchors = torch.cat(plain.anchors(maps))
    for mine, other in zip(
        plain.sample(anchors, upright, SIZES[0], KEYS[0]),
        oriented.sample(anchors, turned, SIZES[0], KEYS[0]),
        strict=True,
    ):
        assert torch.equal(mine, other)
    proposals = oriented.propose(maps, SIZES)
    assert proposals[0].shape[1] == 5
    assert torch.isfinite(sum(oriented.losses(maps, [turned] * 2, SIZES, KEYS).values()))


def _settings_oriented() -> RPNConfig:
    return RPNConfig(coder=MidpointOffsetCoder(), channels=CHANNELS, border=-1.0, per_level=300)


def test_gradients_reach_every_weight_under_autocast() -> None:
    rpn, maps = _rpn(_settings()), _maps(1)
    with torch.autocast("cpu", torch.bfloat16):
        rpn.propose(maps, SIZES[:1])  # casts the weights without recording; the losses must not take those
        losses = rpn.losses(maps, TRUTH[:1], SIZES[:1], KEYS[:1])
    assert losses["rpn_class"].dtype == torch.float32
    sum(losses.values()).backward()
    for name, parameter in rpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_difficult_objects_crowds_and_empty_boxes_are_not_learned() -> None:
    boxes = torch.tensor([[1.0, 1, 5, 5], [2, 2, 9, 9], [3, 3, 8, 8], [4, 4, 4, 9], [float("nan"), 0, 1, 1]])
    flags = torch.zeros(5, dtype=torch.bool)
    difficult, crowd = flags.clone(), flags.clone()
    difficult[1], crowd[2] = True, True
    truth = truth_of(Objects(boxes, torch.arange(5), difficult, crowd), rotated=False)
    assert truth.labels.tolist() == [0]
    assert truth.ignored.tolist() == boxes[1:3].tolist()
