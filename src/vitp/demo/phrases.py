"""Wording of the instructions: names of categories, covers and themes, and several ways to ask each question."""

from __future__ import annotations

# Category -> (one, many).
NOUNS: dict[str, tuple[str, str]] = {
    "building": ("building", "buildings"),
    "ship": ("ship", "ships"),
    "aircraft": ("aircraft", "aircraft"),
    "vehicle": ("vehicle", "vehicles"),
    "tank": ("storage tank", "storage tanks"),
    "court": ("sports court", "sports courts"),
}

# Mask class -> what people call it.
COVERS: dict[str, str] = {
    "water": "water",
    "road": "paved ground",
    "field": "cropland",
    "forest": "trees",
    "building": "buildings",
}

# Mask class -> its word where one word stands for what a part of the image shows.
PARTS: dict[str, str] = {
    "background": "open ground",
    "water": "water",
    "road": "paved ground",
    "field": "cropland",
    "forest": "trees",
    "building": "buildings",
    "ship": "ships",
    "aircraft": "aircraft",
    "vehicle": "vehicles",
    "tank": "storage tanks",
    "court": "sports courts",
}

# Theme -> (label, with article).
PLACES: dict[str, tuple[str, str]] = {
    "airport": ("airport", "an airport"),
    "coast": ("coast", "a coast"),
    "farmland": ("farmland", "farmland"),
    "forest": ("forest", "a forest"),
    "highway": ("highway", "a highway"),
    "industrial": ("industrial area", "an industrial area"),
    "lake": ("lake", "a lake"),
    "parking": ("parking lot", "a parking lot"),
    "port": ("port", "a port"),
    "residential": ("residential area", "a residential area"),
    "river": ("river", "a river"),
    "sports": ("sports ground", "a sports ground"),
    "storage": ("tank farm", "a tank farm"),
    "urban": ("city district", "a city district"),
}

# Categories and covers one might expect in a theme and that may well be missing: material for fair negative questions.
EXPECTED: dict[str, tuple[str, ...]] = {
    "airport": ("aircraft", "vehicle", "building", "ship", "tank"),
    "coast": ("ship", "building", "vehicle", "field", "court"),
    "farmland": ("building", "vehicle", "water", "forest", "tank"),
    "forest": ("water", "building", "vehicle", "field", "road"),
    "highway": ("vehicle", "building", "field", "forest", "water"),
    "industrial": ("tank", "vehicle", "building", "ship", "court"),
    "lake": ("ship", "building", "vehicle", "road", "field"),
    "parking": ("vehicle", "building", "forest", "court", "water"),
    "port": ("ship", "tank", "vehicle", "building", "aircraft"),
    "residential": ("building", "vehicle", "water", "court", "forest"),
    "river": ("ship", "vehicle", "building", "field", "road"),
    "sports": ("court", "vehicle", "building", "water", "forest"),
    "storage": ("tank", "vehicle", "building", "ship", "forest"),
    "urban": ("building", "vehicle", "court", "water", "tank"),
}

CAPTION_SHORT = (
    "Describe the image in one sentence.",
    "Give a short caption.",
    "What does this image show?",
    "Write a brief caption for this view from above.",
)
CAPTION_MEDIUM = (
    "Describe this scene and the objects in it.",
    "What can be seen in this image? Name the main objects.",
    "Caption the image and mention its objects.",
)
CAPTION_LONG = (
    "Describe the image in detail.",
    "Give a detailed description of this scene.",
    "Write a thorough caption: place, objects and land cover.",
)
THEME_OPEN = (
    "What kind of scene is this?",
    "Which type of place is shown?",
    "Name the scene category.",
    "What is the main theme of this image?",
)
THEME_CHOICE = (
    "Which of these is shown: {options}?",
    "Choose the scene category: {options}.",
    "Is this {options}? Answer with one of them.",
)
COUNT = (
    "How many {many} are there?",
    "Count the {many}.",
    "How many {many} can be seen in the image?",
    "What is the number of {many}? Answer with a number.",
)
PRESENCE_THING = (
    "Is there {a} in the image?",
    "Can {a} be seen here?",
    "Does the image show any {many}?",
    "Are there any {many}?",
)
PRESENCE_COVER = (
    "Is there any {name} in the image?",
    "Can {name} be seen here?",
    "Does the image show {name}?",
)
COMPARE_MORE = (
    "Are there more {a} than {b}?",
    "Does the image hold more {a} than {b}?",
    "Is the number of {a} larger than that of {b}?",
)
COMPARE_WHICH = (
    "Which are there more of, {a} or {b}?",
    "What is more numerous here, {a} or {b}?",
    "Are there more {a} or more {b}?",
)
COMPARE_COVER = (
    "Which covers more of the image, {a} or {b}?",
    "What takes up the larger area, {a} or {b}?",
    "Is a larger part of the image covered by {a} or by {b}?",
)
AREA_PERCENT = (
    "What percentage of the image is covered by {name}?",
    "Estimate the share of {name} in percent.",
    "How much of the image is {name}? Answer in percent.",
)
AREA_WORDS = (
    "Roughly how much of the image is covered by {name}?",
    "How large is the part covered by {name}?",
    "Which part of the image does {name} take up?",
)
PLACE_THING = (
    "Where in the image is the {one}?",
    "In which part of the image is the {one}?",
    "Give the position of the {one} in words.",
)
PLACE_COVER = (
    "On which side of the image is the {name}?",
    "Towards which edge does the {name} lie?",
    "Where is the {name}: left, right, top or bottom?",
)
REGION = (
    "What is in the region {box}?",
    "Which kind of object does {box} hold?",
    "Name the object inside {box}.",
)
LAYOUT = (
    "Map what the image shows in a 4 by 4 grid, row by row.",
    "Divide the image into 4 rows of 4 parts. What is in each part?",
    "Write a coarse map of this view: 4 rows of 4 parts.",
)
PART = (
    "What is in the {part} of the image?",
    "Name what the {part} of the image shows, largest first.",
    "List the contents of the {part}.",
)
