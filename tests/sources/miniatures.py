"""Data sets in miniature: trees of the published layouts, drawn in a second, for every test that needs one.

Each function makes a tree in `folder` and returns it: 8 garments (3 on test splits), 64 x 80 pictures. A garment is a
colour and a pattern of its own, on grey where a shop shows it, smaller and on a coloured ground where a consumer does.
"""

import colorsys
import json
from pathlib import Path

from PIL import Image, ImageDraw

from sources.listing import Listing

N_GARMENTS = 8
WIDTH, HEIGHT = 64, 80
BOX = (14, 20, 50, 72)  # x1 y1 x2 y2 of the garment on a consumer's photo
WHOLE = (0, 0, WIDTH, HEIGHT)


def findings(listing: Listing) -> list[str]:
    """What `jobs/ingest.py --check` prints about a listing."""
    return listing.remarks + listing.missing()


def picture(path: Path, garment: int, view: int = 0, street: bool = False) -> None:
    """Draw a garment; `view` shifts and shades it, the ending chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (WIDTH, HEIGHT), _colour(0.37 * view, 0.3, 0.7) if street else (225, 225, 225))
    draw = ImageDraw.Draw(image)
    x1, y1, x2, y2 = BOX if street else (8 + view, 8, 56 - view, 72)
    draw.rectangle((x1, y1, x2, y2), fill=_colour(garment / N_GARMENTS, 0.9, 0.9 - 0.08 * view))
    for y in range(y1, y2, 5 + 2 * garment):
        draw.rectangle((x1, y, x2, y + 2), fill=_colour(garment / N_GARMENTS + 0.5, 0.9, 0.6))
    image.save(path, {".png": "PNG"}.get(path.suffix, "JPEG"))


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def deepfashion2(folder: Path) -> Path:
    """One split: garment n is pair_id n, on consumer's photos 3n-2 and 3n-1 and on shop photo 3n; boxes are true."""
    (folder / "annos").mkdir(parents=True)
    for n in range(1, N_GARMENTS + 1):
        for view, number in enumerate((3 * n - 2, 3 * n - 1, 3 * n)):
            street = view < 2
            picture(folder / "image" / f"{number:06}.jpg", n, view, street)
            box = list(BOX if street else (10, 8, 54, 72))
            item = {"category_id": (1, 2, 8, 9)[n % 4], "style": 1, "bounding_box": box, "segmentation": []}
            item |= dict.fromkeys(("scale", "occlusion", "zoom_in", "viewpoint"), 1)
            notes = {"source": "user" if street else "shop", "pair_id": n, "item1": item}
            (folder / "annos" / f"{number:06}.json").write_text(json.dumps(notes))
    return folder


def street2shop(folder: Path) -> Path:
    """Product 100 + n is garment n: street photo n, shop photos 100 + n and 200 + n. Test: 3 street photos 50 + n.

    Product 199 has shop photo 299 and no street photo; bags are street photo 90 and shop photo 190, not drawn.
    """
    categories = ("dresses", "tops", "pants", "skirts")
    lists: dict[str, list[dict]] = {f"retrieval_{name}": [] for name in (*categories, "leggings", "outerwear", "bags")}
    lists |= {name.replace("retrieval", kind): [] for name in list(lists) for kind in ("train_pairs", "test_pairs")}
    bbox = {"left": BOX[0], "top": BOX[1], "width": BOX[2] - BOX[0], "height": BOX[3] - BOX[1]}
    for n in range(1, N_GARMENTS + 1):
        category = categories[n % 4]
        lists[f"train_pairs_{category}"].append({"photo": n, "product": 100 + n, "bbox": bbox})
        picture(folder / "images" / f"{n:09}.jpeg", n, 0, street=True)
        for view in (1, 2):
            lists[f"retrieval_{category}"].append({"photo": 100 * view + n, "product": 100 + n})
            picture(folder / "images" / f"{100 * view + n:09}.jpeg", n, view)
        if n <= 3:
            lists[f"test_pairs_{category}"].append({"photo": 50 + n, "product": 100 + n, "bbox": bbox})
            picture(folder / "images" / f"{50 + n:09}.png", n, 3, street=True)
    lists["retrieval_tops"].append({"photo": 299, "product": 199})
    picture(folder / "images" / "000000299.jpeg", 9)
    lists["train_pairs_bags"].append({"photo": 90, "product": 190, "bbox": bbox})
    lists["retrieval_bags"].append({"photo": 190, "product": 190})
    (folder / "meta" / "json").mkdir(parents=True)
    for name, entries in lists.items():
        (folder / "meta" / "json" / f"{name}.json").write_text(json.dumps(entries))
    (folder / "photos").mkdir()
    (folder / "photos" / "photos.txt").write_text("000000001,http://shop.example/1.jpg\n")
    return folder


def darn(folder: Path) -> Path:
    """Product n is garment n: customers' photos n_0 and n_1, the shop's n_2."""
    lines = []
    for n in range(1, N_GARMENTS + 1):
        for view in range(3):
            picture(folder / "pic" / f"{n}_{view}.jpg", n, view, street=view < 2)
            lines.append(f"{n}_{view}.jpg {n} {int(view == 2)} {n % 20}\n")
    (folder / "image.txt").write_text("".join(lines))
    (folder / "product.txt").write_text("".join(f"{n} 3 7\n" for n in range(1, N_GARMENTS + 1)))
    return folder


def mvc(folder: Path) -> Path:
    """Item n is garment n, of product 1000 + n, in four views; item 9 is a pair of socks, not drawn."""
    departments = ("Shirts & Tops", "Dresses", "Jeans", "Coats & Outerwear")
    info, labels, links = [], [], []
    for n in range(1, N_GARMENTS + 2):
        for view in range(4 if n <= N_GARMENTS else 1):
            department = departments[n % 4] if n <= N_GARMENTS else "Socks"
            url = f"http://shop.example/images/{1000 + n}-{view}-4x.jpg"
            info.append({"productId": 1000 + n, "viewId": view, "category": f'"{department}"', "image_url_4x": url})
            labels.append({"filename": f"{n:05}_{view}", "itemN": n, "Red": 1, "Long Sleeves": 0})
            links.append({"image_url_4x": url})
            if n <= N_GARMENTS:
                picture(folder / "images" / f"{n:05}_{view}.jpg", n, view)
    for name, entries in (("mvc_info", info), ("attribute_labels", labels), ("image_links", links)):
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return folder


def mpv(folder: Path) -> Path:
    """Article A0n-T11 is garment n: two persons and the clothes; 1 to 8 are train, 9 to 11 test."""
    lines = []
    for n in range(1, N_GARMENTS + 4):
        names = []
        for number, view in ((8, "person_half_front"), (9, "person_whole_back"), (10, "cloth_front")):
            names.append(f"A{n:02}/A{n:02}-T11@{number}={view}.jpg")
            picture(folder / "MPV_192_256" / names[-1], n, number - 8, street="person" in view)
        split = "train" if n <= N_GARMENTS else "test"
        lines += [f"{names[a]}\t{names[b]}\t{names[2]}\t{split}\n" for a, b in ((0, 1), (1, 0))]
    (folder / "all_poseA_poseB_clothes.txt").write_text("".join(lines))
    return folder
