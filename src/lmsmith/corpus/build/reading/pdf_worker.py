"""The process that reads PDFs: a line with a file's path in, a JSON line with its text out.

It limits its own memory and time. It imports nothing of lmsmith.
"""

import json
import resource
import signal
import sys

MOST_PAGES = 5000
MOST_CHARACTERS = 20_000_000


def limit_memory(size: int) -> None:
    """Let no PDF take more memory than this."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def text_of(path: str) -> dict[str, object]:
    """The text of a file's pages, or what is wrong with it."""
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as document:
            pages: list[str] = []
            characters = 0
            for number in range(min(len(document), MOST_PAGES)):
                page = document[number]
                text = page.get_textpage()
                pages.append(text.get_text_range())
                text.close()
                page.close()
                characters += len(pages[-1])
                if characters > MOST_CHARACTERS:
                    break
            return {"pages": pages, "cut": len(pages) < len(document)}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    import pypdfium2  # noqa: F401  before the memory is limited

    limit_memory(2 << 30)
    out = sys.stdout
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        path, seconds = json.loads(line)
        signal.alarm(int(seconds) + 5)  # ends the process if its parent is gone
        found = json.dumps(text_of(path))
        signal.alarm(0)
        out.write(f"{found}\n")
        out.flush()


if __name__ == "__main__":
    main()
