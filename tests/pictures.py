"""Images of one colour, encoded, and Parquet files that hold them."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(shade: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, shade if mode == "L" else (shade, 0, 255 - shade))


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes],
    labels: list[int],
    names: list[str] | None,
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": content, "path": None} for content in images]
    table = pa.table({columns[0]: structs, columns[1]: pa.array(labels, pa.int64())})
    if names:
        features = {columns[1]: {"names": names, "_type": "ClassLabel"}}
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    pq.write_table(table, path)
