"""Training sets by mixture, as the pipeline's authors compared them (arXiv:2005.12739): m0 to m5, or one's own.

In: the name of a mixture and the folder of its image sets, each under its data set's name; or the address of an image
set with a weight. Out: name, address and weight of each part. Plain data; nothing is opened.
"""

import math
from typing import NamedTuple

MIXTURES: dict[str, tuple[str, ...]] = {
    "m0": ("deepfashion2",),
    "m1": ("deepfashion2", "street2shop"),
    "m2": ("deepfashion2", "darn", "mvc"),
    "m3": ("deepfashion2", "street2shop", "darn"),
    "m4": ("deepfashion2", "street2shop", "darn", "mvc"),
    "m5": ("deepfashion2", "street2shop", "darn", "mvc", "mpv"),
}


class MixturePart(NamedTuple):
    """One image set of a mixture. `weight` is its share of the draws, relative to the other parts'."""

    name: str
    uri: str
    weight: float


def parts(mixture: str, root: str) -> list[MixturePart]:
    """The parts of a mixture of MIXTURES, all of weight 1: the paper gives no weights.

    `root` is the folder, file:// or s3:// that holds the image sets. Raises ValueError for no such mixture or no root.

    >>> parts("m1", "s3://BUCKET/sets")[1]
    MixturePart(name='street2shop', uri='s3://BUCKET/sets/street2shop', weight=1.0)
    """
    if mixture not in MIXTURES:
        raise ValueError(f"mixture {mixture!r}: want one of {', '.join(MIXTURES)}")
    if not root:
        raise ValueError(f"mixture {mixture}: want the place that holds {', '.join(MIXTURES[mixture])}")
    return [MixturePart(name, f"{root.rstrip('/')}/{name}", 1.0) for name in MIXTURES[mixture]]


def parse(text: str) -> MixturePart:
    """`URI[:WEIGHT]`: the text after the last colon is the weight, unless a slash or backslash is in it.

    The part's name is the address's last folder.

    Raises ValueError for no address, or a weight that is not a finite number above 0.

    >>> parse("s3://BUCKET/darn:0.5"), parse("s3://BUCKET/darn").weight
    (MixturePart(name='darn', uri='s3://BUCKET/darn', weight=0.5), 1.0)
    """
    uri, colon, tail = text.rpartition(":")
    if not colon or "/" in tail or "\\" in tail:
        uri, tail = text, "1"
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan  # refused below
    if not (math.isfinite(weight) and weight > 0):
        wish = "want URI or URI:WEIGHT with a finite weight above 0"
        raise ValueError(f"{text!r}: weight {tail!r}; {wish}; after an address with a colon in its last part, give one")
    name = uri.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if not name or uri.endswith("://"):
        raise ValueError(f"{text!r}: no address; want URI or URI:WEIGHT")
    return MixturePart(name, uri, weight)
