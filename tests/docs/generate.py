"""Write docs/reference from the code: `./dev docs`."""

from __future__ import annotations

from tests.docs.reference import FOLDER, PAGES


def main() -> None:
    """Write every page and name those that changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
