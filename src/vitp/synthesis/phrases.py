"""Several ways to ask each question; at least three each, all with the same answer."""

from __future__ import annotations

# ------------------------------------------------------------------------------------------------------------ objects

CAPTION = (
    "Describe the {view}.",
    "What does the {view} show?",
    "Write a caption for this {view}.",
    "Summarise what can be seen here.",
)
CAPTION_SHORT = ("Describe the {view} in one sentence.", "Give a short caption.", "Briefly: what is shown?")
COUNT = (
    "How many {many} are there in the {view}?",
    "Count the {many}.",
    "What is the number of {many} in this {view}?",
    "Give the number of {many} that can be seen.",
)
PRESENCE = (
    "Is there {a} in the {view}?",
    "Can {a} be seen here?",
    "Does the {view} show any {many}?",
    "Are there any {many}?",
)
PRESENCE_PART = (
    "Is there {a} in the {part} quarter of the {view}?",
    "Does the {part} quarter of the {view} hold any {many}?",
    "Looking at the {part} quarter only: are there any {many}?",
)
COMPARE_MORE = (
    "Are there more {a} than {b}?",
    "Does the {view} hold more {a} than {b}?",
    "Is the number of {a} larger than that of {b}?",
)
COMPARE_WHICH = (
    "Which are there more of, {a} or {b}?",
    "What is more numerous here, {a} or {b}?",
    "Are there more {a} or more {b}?",
)
COMPARE_HALVES = (
    "Are there more {many} in the {a} half or in the {b} half of the {view}?",
    "Which half holds more {many}, {a} or {b}?",
    "Of the {a} and the {b} half of the {view}: which holds more {many}?",
)
POSITION = (
    "Where in the {view} is the {one}?",
    "In which part of the {view} is the {one}?",
    "Give the position of the {one} in words.",
)
GROUND_NONE = (
    "Give the bounding boxes of all {many}.",
    "Locate every {one}.",
    "Where are the {many}? Answer with their boxes.",
)
ORIENTED_ONE = (
    "Give the oriented box of the {one}.",
    "Outline the {one} with a rotated box.",
    "Where is the {one}? Answer with the four corners of its oriented box.",
)
ORIENTED_ALL = (
    "Give the oriented boxes of all {many}.",
    "Outline every {one} with a rotated box.",
    "Where are the {many}? Answer with the four corners of each oriented box.",
)
REFER = (
    "Where is <ref>the {which} {one}</ref>? Answer with its box.",
    "Give the bounding box of the {which} {one}.",
    "Locate the {which} {one}.",
)
REGION = (
    "What is in the region {box}?",
    "Which kind of object does {box} hold?",
    "Name the object inside {box}.",
)
PART_OBJECTS = (
    "Which kinds of objects are in the {part} quarter of the {view}?",
    "List the kinds of objects in the {part} quarter.",
    "Name the classes of the objects that the {part} quarter holds.",
)

# -------------------------------------------------------------------------------------------------------------- masks

COVER_PRESENCE = (
    "Is there any {name} in the {view}?",
    "Can {name} be seen here?",
    "Does the {view} show {name}?",
)
COVER_PRESENCE_PART = (
    "Is there any {name} in the {part} of the {view} (3 by 3 parts)?",
    "Cut the {view} into 3 rows of 3 parts. Does the {part} one show {name}?",
    "On a grid of 3 by 3: is any {name} in the {part} part?",
)
COVER_COMPARE = (
    "Which covers more of the {view}, {a} or {b}?",
    "What takes up the larger area, {a} or {b}?",
    "Is a larger part of the {view} covered by {a} or by {b}?",
)
COVER_COMPARE_MORE = (
    "Does {a} cover more of the {view} than {b}?",
    "Is the area of {a} larger than that of {b}?",
    "Is more of the {view} covered by {a} than by {b}?",
)
AREA_PERCENT = (
    "What percentage of the {view} is covered by {name}?",
    "Estimate the share of {name} in percent.",
    "How much of the {view} is {name}? Answer in percent.",
)
AREA_WORDS = (
    "Roughly how much of the {view} is covered by {name}?",
    "How large is the part covered by {name}?",
    "Which part of the {view} does {name} take up?",
)
SIDE = (
    "In which half of the {view} does nearly all of the {name} lie: left, right, top or bottom?",
    "Towards which edge does the {name} lie?",
    "On which side of the {view} is the {name}?",
)
LAYOUT = (
    "Map what covers most of each part of the {view} in a {n} by {n} grid, row by row.",
    "Divide the {view} into {n} rows of {n} parts. What covers most of each part?",
    "Write a coarse map of the {view}, what is most in each part: {n} rows of {n} parts.",
)
PART = (
    "What is in the {part} of the {view} (3 by 3 parts)? Name it, largest first.",
    "Cut the {view} into 3 rows of 3 parts. What does the {part} one show, largest first?",
    "List the contents of the {part} of a 3 by 3 grid, largest first.",
)
COVER_REGION = (
    "What covers the region {box}?",
    "Which class is shown in {box}?",
    "Name what {box} shows.",
)
EXTENT = (
    "Give the one box that holds all of <ref>{name}</ref>.",
    "How far does the {name} reach? Answer with the smallest box around all of it.",
    "Put the smallest box around everything that is {name}.",
)

# ----------------------------------------------------------------------------------------------------- classification

CLASS_OPEN = (
    "What kind of {view} is this? Name its class.",
    "Which class does this {view} belong to?",
    "Classify the {view}.",
    "What does the {view} show? Answer with its class.",
)
CLASS_CHOICE = (
    "Which of these is it: {options}?",
    "Choose the class of the {view}: {options}.",
    "Does the {view} show {options}? Name the right one.",
)
CLASS_VERIFY = (
    "Does the class '{name}' fit this {view}?",
    "Is this {view} of the class '{name}'?",
    "Would you label this {view} '{name}'?",
)
CLASS_CAPTION = (
    ("Describe the {view} in one sentence.", "{a} of the class {name}."),
    ("Write a short caption.", "This {view} shows: {name}."),
    ("Caption this {view}.", "{a}, class: {name}."),
)

# ------------------------------------------------------------------------------------------------------------- change

CHANGE = (
    "What has changed between the first and the second image?",
    "Describe the {what} between the two dates.",
    "Compare the two images: which {what} are there?",
)
CHANGE_AREA = (
    "What percentage of the area do the {what} cover?",
    "Estimate the share of the area with {what}, in percent.",
    "How much of the area shows {what}? Answer in percent.",
)
CHANGE_PRESENCE = (
    "Are there any {what} in the {part} of the two images (3 by 3 parts)?",
    "Cut both images into 3 rows of 3 parts. Does the {part} one show any {what}?",
    "On a grid of 3 by 3: are there {what} in the {part} part?",
)
CHANGE_PART = (
    "Which parts of a 3 by 3 grid show {what}?",
    "Cut both images into 3 rows of 3 parts. Name the parts with {what}.",
    "Where are the {what}? Name the parts of a 3 by 3 grid.",
)
CHANGE_LAYOUT = (
    "Map the {what} in a {n} by {n} grid, row by row: changed or same.",
    "Divide both images into {n} rows of {n} parts. Say of each part whether it is changed or the same.",
    "Write a coarse map of the {what}, changed or same: {n} rows of {n} parts.",
)
