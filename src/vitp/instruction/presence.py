"""Presence questions derived from captions: is there a bridge in the image? As often yes as no for each noun."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from vitp.instruction.wording import with_article

QA = tuple[object, object]  # question and answer as found; texts once cleaned

# Derived presence questions: noun -> (words that mean yes, further words that rule out a no); "_" is a blank.
PRESENCE: dict[str, tuple[str, str]] = {
    "airplane": ("airplane airplanes plane planes aircraft", "airport terminal"),
    "airport": ("airport airports", "airplane airplanes plane planes terminal runway runways"),
    "baseball field": ("baseball_field baseball_fields baseballfield", "baseball"),
    "beach": ("beach beaches", "sand coast shore seaside"),
    "boat": ("boat boats", "ship ships yacht yachts port harbor harbour dock"),
    "bridge": ("bridge bridges", "viaduct viaducts overpass"),
    "building": ("building buildings", "house houses residential factory school center church stadium city village"),
    "car": ("car cars", "vehicle vehicles parking road roads traffic"),
    "church": ("church churches", "cathedral dome"),
    "desert": ("desert deserts", "dune dunes sand"),
    "factory": ("factory factories", "industrial workshop workshops plant plants"),
    "farmland": ("farmland farmlands", "field fields crop crops farm"),
    "football field": ("football_field football_fields soccer_field", "football soccer playground stadium"),
    "forest": ("forest forests", "wood woods trees tree mountain"),
    "house": ("house houses", "residential building buildings villa villas resort"),
    "lake": ("lake lakes", "pond ponds water pool river"),
    "lawn": ("lawn lawns", "grass meadow meadows green"),
    "meadow": ("meadow meadows", "grass grassland lawn lawns field green"),
    "mountain": ("mountain mountains", "hill hills ridge ridges snow"),
    "park": ("park parks", "garden gardens"),
    "parking lot": ("parking_lot parking_lots parking_area", "parking cars parked"),
    "playground": ("playground playgrounds", "school stadium football track"),
    "pond": ("pond ponds", "lake lakes pool water"),
    "port": ("port ports harbor harbour", "dock docks boat boats ship ships"),
    "railway": ("railway railways railroad", "railways train trains track tracks station rail"),
    "railway station": ("railway_station train_station", "station railway trains"),
    "river": ("river rivers", "stream bridge water lake"),
    "road": ("road roads highway highways", "street streets viaduct overpass bridge cars residential parking"),
    "school": ("school schools", "campus playground"),
    "ship": ("ship ships", "boat boats port harbor harbour vessel vessels"),
    "square": ("square squares", "plaza center"),
    "stadium": ("stadium stadiums", "gymnasium football playground"),
    "storage tank": ("storage_tank storage_tanks", "tank tanks storagetanks"),
    "swimming pool": ("swimming_pool swimming_pools", "pool pools resort"),
    "tree": ("tree trees", "forest forests wood woods green plants park"),
    "viaduct": ("viaduct viaducts overpass", "bridge bridges road roads"),
}
PRESENCE_YES_PER_IMAGE = 2  # ours: about as many presence questions as captions


def keyed(text: str) -> int:
    """CRC-32, the same on every machine."""
    return zlib.crc32(text.encode())


def presence_questions(
    names: Sequence[str], captions: Sequence[Sequence[str]], classes: Sequence[str]
) -> list[list[QA]]:
    """Derived presence questions per image, as often yes as no for each noun, so that the noun gives nothing away.

    Yes: a caption names the thing (at most `PRESENCE_YES_PER_IMAGE` an image). No: neither a caption nor the class
    holds it or one of its neighbours in `PRESENCE`. For each noun as many images are taken from the one side as from
    the other, those with few "no" first; which ones is decided by CRC-32.
    """
    texts = [f" {' '.join(re.findall(r'[a-z]+', ' '.join(found).lower()))} " for found in captions]
    yes: dict[str, list[int]] = {noun: [] for noun in PRESENCE}
    absent: dict[str, list[int]] = {noun: [] for noun in PRESENCE}
    words = {noun: tuple([f" {w.replace('_', ' ')} " for w in part.split()] for part in PRESENCE[noun])
             for noun in PRESENCE}  # fmt: skip
    for index, text in enumerate(texts):
        named = [noun for noun in PRESENCE if any(word in text for word in words[noun][0])]
        for noun in sorted(named, key=lambda noun: keyed(f"{noun} {names[index]}"))[:PRESENCE_YES_PER_IMAGE]:
            yes[noun].append(index)
        for noun in PRESENCE if text.strip() else ():
            ruled_out = words[noun][0] + words[noun][1]
            if not any(word in text or word.strip().replace(" ", "") in classes[index] for word in ruled_out):
                absent[noun].append(index)
    asked: list[list[QA]] = [[] for _ in names]
    denials = [0] * len(names)
    for noun in PRESENCE:
        question = f"Is there {with_article(noun)} in the image?"
        ranked = sorted(absent[noun], key=lambda index: (denials[index], keyed(f"{names[index]} {noun}")))
        count = min(len(yes[noun]), len(ranked))
        for index in ranked[:count]:
            denials[index] += 1
            asked[index].append((question, "no"))
        for index in sorted(yes[noun], key=lambda index: keyed(f"{names[index]} {noun}"))[:count]:
            asked[index].append((question, "yes"))
    return asked
