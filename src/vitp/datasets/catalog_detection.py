"""The benchmarks of detection: the paper's six, COCO, and the older versions and HRSC2016 that oriented detection is compared on.

Sources: paper (arXiv 2509.17562) Tables 1, 2, 4, 12, 13, 16 and appendix C.2; "released": the code published with it; sizes
and layouts: the data sets' own pages, repositories and papers.
"""

from __future__ import annotations

from vitp.datasets.benchmark import Benchmark

_METRIC = 'the paper says "standard COCO metrics" for all detection; the released config scores {}'
_SIZE = "appendix C.2 resizes to {} pixels, the released config to {}"

_DIOR_PAGE = "https://gcheng-nwpu.github.io/"
_DIOR_LICENCE = "not stated on its page; images are Google Earth's"
_DIOR_SPLITS = "5,862 training, 5,863 validation and 11,738 test images; trained on the first two, 11,725"
_DIOR_ORDER = (
    "released class orders differ: DIOR's COCO files have dam at 6 and the expressway classes after it, DIOR-R's list has "
    "dam at 8; each recipe keeps its own"
)


def _dior_layout(kind: str) -> tuple[str, ...]:
    return (
        f"Annotations/{kind} Bounding Boxes/00001.xml",
        "JPEGImages-trainval/00001.jpg, JPEGImages-test/11726.jpg",
        "ImageSets/Main/{train,val,test}.txt",
    )


DIOR = Benchmark(
    name="dior",
    title="DIOR, 20 kinds of objects in aerial images, upright boxes",
    task="detect",
    modality="RGB, 0.5-30 m, 800 x 800",
    licence=_DIOR_LICENCE,
    obtain="links on the page of its authors, under Datasets",
    page=_DIOR_PAGE,
    layout=_dior_layout("Horizontal"),
    prepared=_dior_layout("Horizontal"),
    counts={"train": 11_725, "val": None, "test": 11_738},
    splits=f"{_DIOR_SPLITS}; 192,472 objects",
    paper="79.80 mAP (Table 1)",
    notes=(
        _METRIC.format("COCO's AP, in which 79.80 can only be the one at IoU 0.5"),
        _SIZE.format("1024 x 1024", "800 x 800"),
        "released: reads COCO files made from the XML by a script that is not released; here the XML is read",
        _DIOR_ORDER,
    ),
)

DIOR_R = Benchmark(
    name="dior_r",
    title="DIOR-R, the objects of DIOR with oriented boxes",
    task="detect",
    modality="RGB, 0.5-30 m, 800 x 800",
    licence=_DIOR_LICENCE,
    obtain="links on the page of its authors, under Datasets; images are DIOR's",
    page=_DIOR_PAGE,
    layout=_dior_layout("Oriented"),
    prepared=_dior_layout("Oriented"),
    counts={"train": 11_725, "val": None, "test": 11_738},
    splits=f"{_DIOR_SPLITS}; 192,518 objects",
    paper="75.08 mAP (Table 1)",
    notes=(
        _METRIC.format("rotated AP at IoU 0.5, VOC 2007's 11 points"),
        _SIZE.format("1024 x 1024", "800 x 800"),
        "Table 16 gives 73.37 at 800 without test-time augmentation, and a leftover script names a best of 73.40 at 800: "
        "expect that of the released config, not 75.08",
        _DIOR_ORDER,
    ),
)

_DOTA_PAGE = "https://captain-whu.github.io/DOTA/dataset.html"
_DOTA_LICENCE = "academic use only, no commercial use (Google Earth's terms besides)"
_DOTA_PREPARED = ("{train,val}/images/P0000__1024__0___0.png", "{train,val}/labelTxt/P0000__1024__0___0.txt")
_DOTA_NOTES = (
    "headers (imagesource, gsd) are skipped; the released loader does not tolerate them",
    "the figures here are of the patches of val; the server scores whole test images whose patches were merged",
    "cut as mmrotate does: windows of 1,024 every 824 pixels, the last flush with the border, objects kept from 0.7 of their "
    "area and marked with difficulty 2 where cut",
)


def _dota_layout(version: str, folder: str) -> tuple[str, ...]:
    return (
        "{train,val}/images/P0000.png",
        f"{{train,val}}/labelTxt-v{version}/{folder}/P0000.txt (or beside it, or labelTxt/)",
        "test images without labels are not prepared: `vitp predict` reads them whole",
    )


DOTA_V1 = Benchmark(
    name="dota_v1",
    title="DOTA v1.0, 15 kinds of objects in aerial images, oriented boxes",
    task="detect",
    modality="RGB and panchromatic, up to 20,000 pixels a side",
    licence=_DOTA_LICENCE,
    obtain="links on the DOTA page",
    page=_DOTA_PAGE,
    layout=_dota_layout("1.0", "labelTxt"),
    prepared=_DOTA_PREPARED,
    counts={"train": None, "val": None, "test": None},
    splits="1,411 training, 458 validation and 937 test images whose labels a server keeps; 188,282 objects",
    paper="none: the paper uses v2.0",
    notes=_DOTA_NOTES,
)

DOTA_V1_5 = Benchmark(
    name="dota_v1_5",
    title="DOTA v1.5, the images of v1.0 with objects below 10 pixels and container cranes",
    task="detect",
    modality="RGB and panchromatic, up to 20,000 pixels a side",
    licence=_DOTA_LICENCE,
    obtain="labels from the DOTA page; images are those of v1.0",
    page=_DOTA_PAGE,
    layout=_dota_layout("1.5", "DOTA-v1.5_{train,val}"),
    prepared=_DOTA_PREPARED,
    counts={"train": None, "val": None, "test": None},
    splits="1,411 training, 458 validation and 937 test images whose labels a server keeps; 403,318 objects of 16 classes",
    paper="none: the paper uses v2.0",
    notes=_DOTA_NOTES,
)

DOTA_V2 = Benchmark(
    name="dota_v2",
    title="DOTA v2.0, 18 kinds of objects in aerial images, oriented boxes",
    task="detect",
    modality="RGB and panchromatic, up to 29,200 pixels a side",
    licence=_DOTA_LICENCE,
    obtain="links on the DOTA page; v2.0 adds images to those of v1.0, which are needed too",
    page=_DOTA_PAGE,
    layout=_dota_layout("2.0", "DOTA-v2.0_{train,val}"),
    prepared=_DOTA_PREPARED,
    counts={"train": None, "val": None, "test": None},
    splits="1,830 training, 593 validation, 2,792 test-dev and 6,053 test-challenge images; 1,793,658 objects in all 11,268",
    paper="60.23 mAP on test-dev, by the server (Table 1)",
    notes=(
        _METRIC.format("by the server: AP at IoU 0.5"),
        "released: trains on train and val together, and its validation slot is that val: it says nothing; here val is kept for "
        "scoring, and the recipe's header says how to train on both",
        "released: airport (class 16) is among the classes turned by quarters only, the round helipad (17) is not",
        *_DOTA_NOTES,
    ),
)

_SARDET_LAYOUT = ("Annotations/{train,val,test}.json (COCO)", "JPEGImages/{train,val,test}/0000001.jpg (or .png)")
SARDET_100K = Benchmark(
    name="sardet_100k",
    title="SARDet-100K, ten SAR sets under one roof, upright boxes",
    task="detect",
    modality="SAR, 512 x 512 mostly",
    licence="CC BY-NC 4.0 (its repository); each of the ten sets has terms of its own",
    obtain="links in its repository",
    page="https://github.com/zcablii/SARDet_100K",
    layout=_SARDET_LAYOUT,
    prepared=_SARDET_LAYOUT,
    counts={"train": 94_493, "val": 10_492, "test": 11_613},
    splits="94,493 training, 10,492 validation and 11,613 test images; 245,653 objects",
    paper="59.7 mAP (Table 2)",
    notes=(
        "the README's table says 57.9 for the paper's 59.7",
        _SIZE.format("800 x 800", "1024 x 1024"),
        "released: the validation slot is the test part; here it is the validation part, which chooses the threshold alone",
    ),
)

_RSAR_LAYOUT = ("{train,val,test}/images/0000001.png (or .jpg)", "{train,val,test}/annfiles/0000001.txt")
RSAR = Benchmark(
    name="rsar",
    title="RSAR, the objects of SARDet-100K with oriented boxes",
    task="detect",
    modality="SAR",
    licence="not stated in its repository; ask its authors",
    obtain="links in its repository",
    page="https://github.com/zhasion/RSAR",
    layout=_RSAR_LAYOUT,
    prepared=_RSAR_LAYOUT,
    counts={"train": 78_837, "val": 8_467, "test": 8_538},
    splits="78,837 training, 8,467 validation and 8,538 test images; 183,534 objects",
    paper="72.31 mAP (Table 2)",
    notes=(
        _METRIC.format("rotated AP at IoU 0.5, VOC 2007's 11 points"),
        "released: stretches images to 800 x 800 and oriented boxes by sqrt(sx sy) with their angle kept, which is wrong where "
        "images are not square; here corners are transformed",
        "released: the validation slot is the test part, and only .png is found, while the set has other suffixes too",
        "Table 15 trains 36 epochs: 67.07, 61.68, 56.42 and 46.98 with 20, 10, 5 and 2 % of the images",
        "ablations train on the validation part and score on test",
    ),
)

_SSDD_LAYOUT = (
    "annotations/train.json, annotations/test.json (COCO polygons)",
    "images/train/000002.jpg, images/test/000001.jpg",
)
SSDD_DETECTION = Benchmark(
    name="ssdd_detection",
    title="SSDD, ships in SAR images, upright boxes and masks",
    task="detect",
    modality="SAR, 190-670 pixels",
    licence="Apache-2.0 (official repository, which says free for academic use)",
    obtain="Official-SSDD, linked in its repository: coco_style of the polygon labels (PSeg_SSDD, BBox_RBox_PSeg_SSDD)",
    page="https://github.com/TianwenZhang0825/Official-SSDD",
    layout=_SSDD_LAYOUT,
    prepared=_SSDD_LAYOUT,
    counts={"train": 928, "val": None, "test": 232},
    splits="928 training and 232 test images (those whose number ends in 1 or 9); 2,587 ships",
    paper="70.8 box AP, 65.9 mask AP (Table 4)",
    notes=(
        "Table 4 names box AP at 0.75 twice; the first of the two (97.8) is that at 0.5",
        "released: the config is called orcnn and is Mask R-CNN; its head has 80 classes, left over from COCO, for one",
        "released: mirrored images are averaged in at test (TTA); the recipe merges the finds of both",
        "the paper's text and its README list the masks under UPerNet; as masks without instances: recipe ssdd",
        "XML (voc_style) has rotated boxes too: recipe ssdd_oriented",
    ),
)

HRSC2016 = Benchmark(
    name="hrsc2016",
    title="HRSC2016, ships in harbours, oriented boxes",
    task="detect",
    modality="RGB, 0.4-2 m, 300-1,500 pixels",
    licence="not stated (Google Earth images); research use is what its paper speaks of",
    obtain="links in Liu et al., ICPRAM 2017 (the authors' page has moved since); copies are linked by most oriented detectors",
    page=None,
    layout=(
        "FullDataSet/AllImages/100000001.bmp",
        "FullDataSet/Annotations/100000001.xml (mbox_cx ... mbox_ang, in radians)",
        "ImageSets/{train,val,test}.txt",
    ),
    prepared=("{train,val,test}/images/100000001.png", "{train,val,test}/labelTxt/100000001.txt"),
    counts={"train": 617, "val": None, "test": 444},
    splits="436 training and 181 validation images, trained on together, and 444 test images; 2,976 ships; other images of the "
    "archive are in no list",
    paper="none: the paper does not use it",
    notes=(
        "all ships are one class here, as detectors are compared on it (mmrotate: classwise False); the file's types are dropped",
        "results elsewhere are of train and val together, at VOC 2007's 11 points or VOC 2012's area: both are printed",
    ),
)

_COCO_LAYOUT = (
    "annotations/instances_{train,val}2017.json",
    "train2017/000000000009.jpg, val2017/000000000139.jpg",
)
COCO = Benchmark(
    name="coco",
    title="COCO 2017, everyday objects, upright boxes and masks",
    task="detect",
    modality="RGB, photographs",
    licence="annotations: CC BY 4.0; images: Flickr's terms, each its own",
    obtain="2017 Train and Val images and annotations from the download page",
    page="https://cocodataset.org/",
    layout=_COCO_LAYOUT,
    prepared=_COCO_LAYOUT,
    counts={"train": 118_287, "val": None, "test": 5_000},
    splits="118,287 training and 5,000 validation images, on which scores are; test labels are kept by a server",
    paper="53.9 box AP, 46.7 mask AP with Mask R-CNN, 12 epochs (Table 13)",
    notes=(
        "no released config: the paper says Mask R-CNN, 12 epochs and standard augmentations, nothing of size, batch or rates",
        "category ids run to 90 with gaps; classes are in the order of the file",
    ),
)

DETECTION = (
    DIOR, DIOR_R, DOTA_V1, DOTA_V1_5, DOTA_V2, SARDET_100K, RSAR, SSDD_DETECTION, HRSC2016, COCO
)  # fmt: skip
