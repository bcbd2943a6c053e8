"""Makes the vectors: `python -m tests.vectors [FOLDER]`. Running it again leaves no difference."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refmeta.conformance.cases import FOLDER, FORMAT, FORMAT_VERSION
from tests.vectors.recipes import NOTES, TIERS, first

VERSION = "1.2.0"


def files() -> Iterator[tuple[str, bytes]]:
    """Every file of the folder: the tiers, then the manifest."""
    format, entries = {"format": FORMAT, "format_version": FORMAT_VERSION}, {}
    for tier in TIERS:
        vectors = [first(id, tier, recipe) for id, recipe in TIERS[tier].recipes.items()]
        shown = {flag for v in vectors for flag in v["flags"]}
        notes = {flag: note for flag, note in NOTES.items() if flag in shown}
        data = text({**format, "tier": tier, "notes": notes, "vectors": vectors})
        entries[f"{tier}.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "ids": list(TIERS[tier].recipes)}
        yield f"{tier}.json", data
    yield "manifest.json", text({**format, "vectors_version": VERSION, "files": entries})


def text(content: dict[str, Any]) -> bytes:
    """JSON with one line for each array of numbers."""
    made = json.dumps(_lines(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (made.replace('"\\u0001', "").replace('\\u0001"', "").replace('\\"', '"') + "\n").encode()


def _lines(value: Any) -> Any:
    """The same with each list of numbers as a string, between marks."""
    if isinstance(value, dict):
        return {key: _lines(item) for key, item in value.items()}
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return f"\x01{json.dumps(value, separators=(',', ':'))}\x01"
    return [_lines(item) for item in value] if isinstance(value, list) else value


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files():
        (folder / name).write_bytes(data)
        print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
