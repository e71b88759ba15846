"""The benchmarks of the paper: where they come from, how they lie on disk, what was reached on them. Here the dense tasks.

Sources: paper (arXiv 2509.17562) Tables 3-6, 12-14 and appendix C.2; "released": the code published with it; sizes and layouts:
the data sets' own pages and papers.
"""

from __future__ import annotations

import difflib

from vitp.datasets.benchmark import Benchmark
from vitp.datasets.catalog_detection import DETECTION
from vitp.errors import ConfigError

ISAID = Benchmark(
    name="isaid",
    title="iSAID, aerial images, 15 kinds of objects",
    task="segment",
    modality="RGB, aerial",
    licence="academic use only, no commercial use (images: DOTA's terms and Google Earth's)",
    obtain="labels from the iSAID page; images are those of DOTA v1.0, linked there",
    page="https://captain-whu.github.io/iSAID/",
    layout=(
        "train/images/P0000.png",
        "train/Semantic_masks/images/P0000_instance_color_RGB.png (or beside the image)",
        "val/ likewise; test/images without labels",
    ),
    prepared=("train/images/P0000_0_896_0_896.png", "train/masks/P0000_0_896_0_896.png", "val/ likewise"),
    counts={"train": 33_978, "val": None, "test": 11_644},
    splits="1,411 training and 458 validation images (937 test images are unlabelled); scores are on validation crops",
    paper="71.14 mIoU (Table 3)",
    notes=(
        "Table 12 counts 15 classes; the released config trains and averages 16, background among them",
        "released: crops of 896 with an overlap of 384, scored crop by crop, never stitched to whole images",
        "released test settings: scales 0.75, 1 and 1.5 with mirrors, windows of 896 at 448; the last commit changed them",
        "counts are those that mmsegmentation's documentation gives for its crops",
    ),
    colours=(
        ("background", (0, 0, 0)),
        ("ship", (0, 0, 63)),
        ("storage tank", (0, 63, 63)),
        ("baseball diamond", (0, 63, 0)),
        ("tennis court", (0, 63, 127)),
        ("basketball court", (0, 63, 191)),
        ("ground track field", (0, 63, 255)),
        ("bridge", (0, 127, 63)),
        ("large vehicle", (0, 127, 127)),
        ("small vehicle", (0, 0, 127)),
        ("helicopter", (0, 0, 191)),
        ("swimming pool", (0, 0, 255)),
        ("roundabout", (0, 191, 127)),
        ("soccer ball field", (0, 127, 191)),
        ("plane", (0, 127, 255)),
        ("harbor", (0, 100, 155)),
    ),
)

_LOVEDA_LAYOUT = ("Train/{Urban,Rural}/{images_png,masks_png}/0.png", "Val/ likewise", "Test/{Urban,Rural}/images_png")
LOVEDA = Benchmark(
    name="loveda",
    title="LoveDA, land cover of cities and villages, 7 classes",
    task="segment",
    modality="RGB, 0.3 m",
    licence="CC BY-NC-SA 4.0",
    obtain="Train.zip and Val.zip from the Zenodo record",
    page="https://github.com/Junjue-Wang/LoveDA",
    layout=_LOVEDA_LAYOUT,
    prepared=_LOVEDA_LAYOUT,
    counts={"train": 2_522, "val": None, "test": 1_669},
    splits="2,522 training, 1,669 validation, 1,796 test images whose labels are kept by a server; here scored on validation",
    paper="54.28 mIoU on the server's test images, trained on training and validation images together (Table 3)",
    notes=(
        "released: trains on train and val together and submits test predictions; a score on Val is another number",
        "released: images of 1024 are shrunk to 512 in training and test alike, logits enlarged again",
        "labels: 0 is no data, 1 to 7 are the classes in order",
    ),
)

UAVID = Benchmark(
    name="uavid",
    title="UAVid, streets seen obliquely from a drone, 8 classes",
    task="segment",
    modality="RGB, 4K video frames",
    licence="CC BY-NC-SA 4.0",
    obtain="uavid_v1.5_official_release from the UAVid page, after registration",
    page="https://uavid.nl/",
    layout=("uavid_train/seq1/{Images,Labels}/000000.png", "uavid_val/ likewise", "uavid_test/seqN/Images"),
    prepared=("train/{images,masks}/seq1_000000_112_0.png", "val/{images,masks}/seq16_000000.png"),
    counts={"train": 1_600, "val": None, "test": 70},
    splits="20 training sequences (200 frames), 7 for validation (70), 15 for testing (150, labels kept by a server)",
    paper="73.39 mIoU on the server's test frames, trained on training and validation frames together (Table 3)",
    notes=(
        "Table 12 counts 5,510 images; the public set has 420 frames, and how they were cut is not said",
        "cut as GeoSeg does, which the released paths point to: the last 2,048 rows, padded to 4,096 columns, 8 tiles a frame",
        "class ids as in GeoSeg (building 0 ... clutter 7); UAVid's own toolkit writes clutter as 0: not interchangeable",
        "released test: 6 scales of 0.5 to 1.75 with mirrors, 12 passes; the recipe makes one",
    ),
    colours=(
        ("building", (128, 0, 0)),
        ("road", (128, 64, 128)),
        ("tree", (0, 128, 0)),
        ("low vegetation", (128, 128, 0)),
        ("moving car", (64, 0, 128)),
        ("static car", (192, 0, 192)),
        ("human", (64, 64, 0)),
        ("clutter", (0, 0, 0)),
    ),
)

SSDD = Benchmark(
    name="ssdd",
    title="SSDD, ships in SAR images, as masks",
    task="segment",
    modality="SAR",
    licence="Apache-2.0 (official repository, which says free for academic use)",
    obtain="Official-SSDD, linked in its repository: coco_style of the polygon labels (PSeg_SSDD, BBox_RBox_PSeg_SSDD)",
    page="https://github.com/TianwenZhang0825/Official-SSDD",
    layout=(
        "annotations/train.json, annotations/test.json (COCO polygons)",
        "images/train/000001.jpg, images/test/000001.jpg",
    ),
    prepared=("train/images/000002.jpg", "train/masks/000002.png", "test/ likewise"),
    counts={"train": 928, "val": None, "test": 232},
    splits="928 training and 232 test images (those whose number ends in 1 or 9)",
    paper="none as masks: the paper reports instances, box AP 70.8 and mask AP 65.9 (Table 4)",
    notes=(
        "the paper's text and its README list SSDD under segmentation by UPerNet; the released config is Mask R-CNN",
        "masks merge instances, so ships that touch become one",
    ),
)

_ADE_LAYOUT = (
    "images/{training,validation}/ADE_train_00000001.jpg",
    "annotations/{training,validation}/ADE_train_00000001.png",
)
ADE20K = Benchmark(
    name="ade20k",
    title="ADE20K, scenes, 150 classes",
    task="segment",
    modality="RGB, photographs",
    licence="images: non-commercial research and education only; annotations: BSD 3-clause",
    obtain="ADEChallengeData2016.zip from the scene parsing page",
    page="http://sceneparsing.csail.mit.edu/",
    layout=_ADE_LAYOUT,
    prepared=_ADE_LAYOUT,
    counts={"train": 20_210, "val": None, "test": 2_000},
    splits="20,210 training and 2,000 validation images; scores are on validation",
    paper="55.8 mIoU fine-tuned (Table 13), 51.9 with a frozen ViT (Table 14)",
    notes=(
        "no released config: the paper says UPerNet and 160,000 iterations, nothing of size, batch or rates",
        "labels: 0 is unlabelled, 1 to 150 are the classes in order",
    ),
)

_SVCD_LAYOUT = ("{train,val,test}/{A,B,OUT}/00000.jpg",)
SVCD = Benchmark(
    name="svcd",
    title="SVCD (CDD), seasons vary, real changes matter",
    task="change",
    modality="RGB pairs",
    licence="none stated",
    obtain="link in Lebedev et al., ISPRS Archives XLII-2, 2018; of its archive the folder Real/subset",
    page=None,
    layout=_SVCD_LAYOUT,
    prepared=_SVCD_LAYOUT,
    counts={"train": 10_000, "val": 3_000, "test": 3_000},
    splits="10,000 training, 3,000 validation and 3,000 test pairs of 256 x 256",
    paper="98.63 F1 of the changes (Table 5)",
    notes=(
        "appendix C.2 names three change sets, Table 5 has four",
        "released: rates fall over 39 layers by 0.94, left over from another backbone; the recipe gives each ViT layer that rate",
        "released config starts from its own final checkpoint; the recipe starts from the backbone",
        "labels are JPEG: values are not exactly 0 and 255, and 128 divides them",
    ),
)

WHU_CD = Benchmark(
    name="whu_cd",
    title="WHU-CD, new buildings after an earthquake",
    task="change",
    modality="RGB pairs, aerial",
    licence="not stated; the page asks for a citation",
    obtain="the building change detection set of the WHU page: two whole images of 32,507 x 15,354 and their changes",
    page="http://gpcv.whu.edu.cn/data/building_dataset.html",
    layout=(
        "train/A/x.tif (2012), train/B/x.tif (2016), train/OUT/x.tif (changes): the whole training area",
        "test/ likewise",
    ),
    prepared=("{train,test}/{A,B,OUT}/x_0_0.png, tiles of 256",),
    counts={"train": None, "val": None, "test": None},
    splits="the two areas of the authors; pretiled sets on the web have other splits",
    paper="94.98 F1 of the changes (Table 5)",
    notes=(
        "Table 12 counts 11,456 pairs; tiles of 256 of the whole image without overlap are 7,620: how they were cut is not said",
        "released: validation is the test part",
        "a pretiled set in the layout of the recipe needs no preparation",
    ),
)

LEVIR_CD = Benchmark(
    name="levir_cd",
    title="LEVIR-CD, buildings come and go",
    task="change",
    modality="RGB pairs, 0.5 m",
    licence="academic use only, no commercial use (Google Earth images)",
    obtain="LEVIR-CD from its page",
    page="https://justchenhao.github.io/LEVIR/",
    layout=("{train,val,test}/{A,B,label}/train_1.png, 1024 x 1024",),
    prepared=("{A,B,label}/train_1_0000_0000.png, tiles of 256", "list/{train,val,test}.txt"),
    counts={"train": 7_120, "val": 1_024, "test": 2_048},
    splits="445 training, 64 validation and 128 test pairs, 16 tiles each; who is what stands in list/ alone",
    paper="92.67 F1 of the changes (Table 5)",
    notes=(
        "released: validation is the test list",
        "released loader: a missing list means every image, test images among them; here it is an error",
        "released test: whole images of 1024 in windows of 256 at 128; the recipe scores the tiles, whose borders see less",
        "released config starts from its own final checkpoint; the recipe starts from the backbone",
        "head width 1024 and rate 1e-4 here, 512 and 2e-5 in the other change configs",
    ),
)

_S2_LAYOUT = ("{train,val,test}/{Image1,Image2,label}/1.png, 1024 x 1024",)
S2LOOKING = Benchmark(
    name="s2looking",
    title="S2Looking, buildings seen from the side",
    task="change",
    modality="RGB pairs, satellites",
    licence="not stated in its repository; ask its authors",
    obtain="links in the repository",
    page="https://github.com/S2Looking/Dataset",
    layout=_S2_LAYOUT,
    prepared=_S2_LAYOUT,
    counts={"train": 3_500, "val": 500, "test": 1_000},
    splits="3,500 training, 500 validation and 1,000 test pairs",
    paper="69.89 F1 of the changes (Table 5)",
    notes=(
        "appendix C.2 names three change sets, this one not among them; Table 5 has it",
        "label merges label1 (new) and label2 (gone)",
    ),
)

_AMOS_LAYOUT = (
    "imagesTr/amos_0001.nii.gz, labelsTr/amos_0001.nii.gz",
    "imagesVa/, labelsVa/ likewise; imagesTs without labels",
)
AMOS2022 = Benchmark(
    name="amos2022",
    title="AMOS 2022, abdominal organs in CT",
    task="segment",
    modality="CT",
    licence="CC BY 4.0",
    obtain="amos22.zip from the challenge's page (Zenodo)",
    page="https://amos22.grand-challenge.org/",
    layout=_AMOS_LAYOUT,
    prepared=_AMOS_LAYOUT,
    counts={"train": 200, "val": None, "test": 100},
    splits="CT scans: 200 for training and 100 for validation, on which we score (200 test scans are unlabelled)",
    paper="90.60 mDice (Table 6)",
    notes=(
        "Table 12 counts 14 classes and 19,310 slices; the public labels have 15 organs, and which were left out is not said",
        "size, rates, schedule, slicing and whether background counts are not said; the authors' prepared slices are theirs",
        "numbers up to 0499 are CT, those from 0507 on MRI, which the recipe leaves out (with amos_0500, if it is there)",
    ),
)

_BRATS_LAYOUT = ("BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz",)
BRATS2021 = Benchmark(
    name="brats2021",
    title="BraTS 2021, brain tumours in MRI",
    task="segment",
    modality="MRI, four sequences",
    licence="the challenge's terms (Synapse); the copy of The Cancer Imaging Archive: CC BY 4.0",
    obtain="training data of RSNA-ASNR-MICCAI BraTS 2021 from The Cancer Imaging Archive",
    page="https://www.cancerimagingarchive.net/analysis-result/rsna-asnr-miccai-brats-2021/",
    layout=_BRATS_LAYOUT,
    prepared=_BRATS_LAYOUT,
    counts={"train": 1_001, "val": None, "test": 250},
    splits="1,251 labelled patients, of which a seeded fifth is held out: the challenge's other labels are not public",
    paper="72.11 mDice (Table 6)",
    notes=(
        "Table 12 cites BraTS 2024 for it, and counts 76,467 images and 3 classes: slices, and presumably the three label values",
        "size, rates, schedule, slicing, split and whether background counts are not said",
        "label values 1, 2 and 4 (there is no 3)",
    ),
)

_COVID_LAYOUT = (
    "{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,infection masks}/x.png (Infection Segmentation Data)",
)
COVID_QU_EX = Benchmark(
    name="covid_qu_ex",
    title="COVID-QU-Ex, infections in chest X-rays",
    task="segment",
    modality="X-ray",
    licence="stated on its Kaggle page; read it there",
    obtain="COVID-QU-Ex from Kaggle; data.root is the folder that holds Train, Val and Test of Infection Segmentation Data",
    page="https://www.kaggle.com/datasets/anasmohammedtahir/covidqu",
    layout=_COVID_LAYOUT,
    prepared=_COVID_LAYOUT,
    counts={"train": 3_728, "val": 932, "test": 1_166},
    splits="as distributed: 3,728 training, 932 validation, 1,166 test images, 5,826 in all, the paper's number",
    paper="91.55 mDice (Table 6)",
    notes=(
        "Table 12 counts 2 classes, background or the lungs being one of them: which is not said; the recipe takes background",
        "size, rates, schedule and whether background counts are not said",
    ),
)

_ENTRIES = (
    ISAID, LOVEDA, UAVID, SSDD, ADE20K, SVCD, WHU_CD, LEVIR_CD, S2LOOKING, AMOS2022, BRATS2021, COVID_QU_EX,
    *DETECTION,
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {entry.name: entry for entry in _ENTRIES}


def benchmark(name: str) -> Benchmark:
    """An entry by name or by how only its name begins, whatever case and marks: "LEVIR-CD", "levir".

    Raises:
        ConfigError: there is none of that name.
    """
    plain = {key.replace("_", ""): entry for key, entry in BENCHMARKS.items()}
    wanted = "".join(c for c in name.lower() if c.isalnum())
    begun = [entry for key, entry in plain.items() if wanted and key.startswith(wanted)]
    if wanted in plain or len(begun) == 1:
        return plain.get(wanted, begun[0])
    close = difflib.get_close_matches(wanted, plain, n=1)
    hint = f"did you mean '{plain[close[0]].name}'?" if close else f"choose from {', '.join(BENCHMARKS)}"
    raise ConfigError(f"'{name}' is no data set of the catalog; {hint}")
