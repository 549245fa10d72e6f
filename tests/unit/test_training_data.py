"""Users' pictures as training data: captions, sizes, batches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
import torch

from calotype.core.errors import InputError
from calotype.training.data.batches import PictureSet
from calotype.training.data.folder import (
    Example,
    check_readable,
    files_of,
    find_pictures,
    fingerprint,
    open_picture,
    read_captioned,
    same_for_all,
)
from calotype.training.data.sizes import buckets, closest, cut

NAMES = ("a.png", "more/b.jpg")


def picture(path: Path, width: int = 8, height: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.linear_gradient("L").resize((width, height)).convert("RGB").save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png")
    picture(tmp_path / "more" / "b.jpg")
    return tmp_path


def test_captions_by_every_layout(folder: Path) -> None:
    wanted = {"a.png": ("a red ball",), "b.jpg": ("two, cubes",)}

    def found(**options: str) -> dict[str, tuple[str, ...]]:
        return {e.path.name: e.captions for e in read_captioned(folder, **options)}

    (folder / "a.txt").write_text("a red ball\n")
    (folder / "more" / "b.txt").write_text("two, cubes")
    assert found() == wanted
    csv = folder / "metadata.csv"
    csv.write_text('file_name,said\na.png,a red ball\nmore/b.jpg,"two, cubes"\n')
    assert found(caption_column="said") == wanted
    csv.unlink()
    rows = [
        {"file_name": "more/b.jpg", "text": ["two, cubes", "cubes"]},
        {"file_name": "a.png", "text": "a red ball"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert found() == {**wanted, "b.jpg": ("two, cubes", "cubes")}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "no captions"),
        ("", "has no lines"),
        ("{", "is not JSON"),
        ("[1]", "not a JSON object"),
        ('{"file_name": "a.png"}', "has no 'text'; it has 'file_name'"),
        ('{"file_name": "c.png", "text": "x"}', "there is no such file"),
        ('{"file_name": "../a.png", "text": "x"}', "not in the folder"),
        ('{"file_name": "a.png", "text": 5}', "are texts"),
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}', "two entries"),
    ],
)
def test_captions_that_are_refused(folder: Path, metadata: str | None, words: str) -> None:
    if metadata is not None:
        (folder / "metadata.jsonl").write_text(metadata)
    with pytest.raises(InputError, match=words):
        read_captioned(folder)


def test_folders_that_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("a red ball")
    with pytest.raises(InputError, match=r"no caption for .*b\.jpg"):
        read_captioned(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        read_captioned(tmp_path / "empty")
    (tmp_path / "empty" / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"data\.parquet (has its pictures in a table|is not a Parquet file)"
    ):
        read_captioned(tmp_path / "empty")
    with pytest.raises(InputError, match="There is no folder"):
        read_captioned(tmp_path / "nowhere")


def test_tables_are_read_as_folders_are(folder: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    packed = [{"bytes": (folder / name).read_bytes(), "path": name} for name in NAMES]
    columns = {"image": packed, "text": [["a ball", "a red ball"], ["a cube"]], "edges": packed[::-1]}
    (tmp_path / "tables").mkdir()
    parquet.write_table(pyarrow.table(columns), tmp_path / "tables" / "train-0.parquet")
    first, second = read_captioned(tmp_path / "tables", beside_column="edges")
    assert (first.captions, second.captions) == (("a ball", "a red ball"), ("a cube",))
    for file, name in zip(files_of([first, second]), (*NAMES, *NAMES[::-1]), strict=True):
        assert open_picture(file).tobytes() == open_picture(folder / name).tobytes()
    assert str(first.path).startswith("a.png, 'image' in row 1 of ")
    with pytest.raises(InputError, match="no column 'caption'; it has 'image', 'text', 'edges'"):
        read_captioned(tmp_path / "tables", "caption")
    columns["image"] = [{"bytes": None, "path": "a.png"}, packed[1]]
    parquet.write_table(pyarrow.table(columns), tmp_path / "tables" / "train-0.parquet")
    with pytest.raises(InputError, match="'image' in row 1 of .* without the bytes"):
        find_pictures(tmp_path / "tables")


def test_a_truncated_picture_is_named_and_a_turned_one_is_turned(folder: Path) -> None:
    whole = picture(folder / "c.jpg", 40, 30)
    check_readable([whole])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    with PIL.Image.open(whole) as opened:
        opened.save(folder / "turned.jpg", exif=exif)
    assert open_picture(folder / "turned.jpg").size == (30, 40)
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cannot be read: .*c\.jpg \("):
        check_readable([folder / "a.png", whole])


def test_buckets_keep_shapes_and_the_number_of_pixels() -> None:
    sizes = buckets(512, 64)
    assert (512, 512) in sizes
    assert all(h % 64 == w % 64 == 0 and max(h, w) <= 2 * min(h, w) and h * w <= 512**2 for h, w in sizes)
    assert {(w, h) for h, w in sizes} == set(sizes)
    assert closest((300, 300), sizes) == (512, 512)
    assert closest((1000, 1600), sizes) == (384, 640)
    assert closest((5000, 100), sizes)[0] > closest((5000, 100), sizes)[1]
    with pytest.raises(InputError, match="multiple of 64, not 500"):
        buckets(500, 64)


def test_a_cut_covers_and_remembers_where_it_was() -> None:
    columns = PIL.Image.linear_gradient("L").rotate(90).resize((64, 32)).convert("RGB")
    middle = cut(columns, (32, 32))
    assert middle.pixels.shape == (3, 32, 32)
    assert (middle.original, middle.corner) == ((32, 64), (0, 16))
    assert middle.pixels.min() >= -1
    assert middle.pixels.max() <= 1
    edge = cut(columns, (32, 32), (0.0, 0.0))
    mirrored = cut(columns, (32, 32), (0.0, 0.0), flip=True)
    assert torch.equal(edge.pixels.flip(-1), mirrored.pixels)
    assert (edge.corner, mirrored.corner) == ((0, 0), (0, 32))


def test_batches_are_a_function_of_their_number_and_every_picture_comes_once() -> None:
    examples = tuple(Example(Path(f"{n}.png"), ("x",)) for n in range(7))
    sizes = tuple([(64, 64)] * 4 + [(32, 96)] * 3)
    first, again = (PictureSet(examples, sizes, 2, seed=5) for _ in range(2))
    assert first.batches_per_epoch == 4
    order = [first.chosen(number) for number in range(8)]
    assert order == [again.chosen(number) for number in (7, 6, 5, 4, 3, 2, 1, 0)][::-1]
    assert order[:4] != order[4:]
    for batch in order:
        assert len({sizes[i] for i in batch}) == 1
        assert len(batch) == 2
    assert {i for batch in order[:4] for i in batch} == set(range(7))
    assert order != [PictureSet(examples, sizes, 2, seed=6).chosen(number) for number in range(8)]
    few = PictureSet(examples[:1], sizes[:1], 3)
    assert few.chosen(9) == [0, 0, 0]


def test_the_data_have_a_fingerprint(folder: Path) -> None:
    before = fingerprint(same_for_all(folder, ["x"]))
    assert before == fingerprint(same_for_all(folder, ["x"]))
    assert before != fingerprint(same_for_all(folder, ["y"]))
    picture(folder / "a.png", 9, 9)
    assert before != fingerprint(same_for_all(folder, ["x"]))
