"""The 13 garment categories of DeepFashion2, by id 1 to 13, and the ten of them that our real photos can judge.

Source: DeepFashion2, arXiv:1901.07973, section 3.
"""

CATEGORIES: tuple[str, ...] = (
    "short sleeve top",
    "long sleeve top",
    "short sleeve outwear",
    "long sleeve outwear",
    "vest",
    "sling",
    "shorts",
    "trousers",
    "skirt",
    "short sleeve dress",
    "long sleeve dress",
    "vest dress",
    "sling dress",
)
"""Names in order; `CATEGORIES[category_id - 1]` is the name of a category id."""

AP10_IDS: tuple[int, ...] = (1, 2, 4, 5, 7, 8, 9, 10, 11, 12)
"""Ids that `AP10` averages over: the other three have too few items in ccp_df2 to mean anything."""
