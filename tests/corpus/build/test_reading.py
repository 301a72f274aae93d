"""Every format read: texts, names and ids; encodings; and files that are not what they seem."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import time
import zipfile
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from lmsmith.core.errors import UserError
from lmsmith.corpus.build.document import Document, Removed
from lmsmith.corpus.build.reading import pdf
from lmsmith.corpus.build.reading.plan import ITEM_BYTES, find_files, make_items
from lmsmith.corpus.build.reading.read import read_items
from lmsmith.corpus.build.recipe import CorpusRecipe, ReadConfig, SourceConfig

TEXT = "The ferry leaves the harbour at nine, and returns in the evening with the mail."
CHINESE = "渡船每天早上九点离开港口，傍晚带着邮件回来。老人坐在码头上等儿子，他们三年没有见面了。"


def read(folder: Path, *paths: str, read: ReadConfig | None = None, **source: Any) -> list[Any]:
    """What reading these paths yields, counts aside."""
    config = SourceConfig(paths or (".",), **source)
    recipe = CorpusRecipe({"s": config}, read=read or ReadConfig(), folder=str(folder))
    files, problems, _ = find_files(recipe, {})
    items = make_items(recipe, files, problems)
    found = read_items(items, None, sources=recipe.sources, config=recipe.read)
    return [each for each in found if isinstance(each, Document | Removed)]


def texts(found: list[Any]) -> dict[str, str]:
    assert all(isinstance(each, Document) for each in found), found
    return {each.id: each.text for each in found}


def page(text: str) -> str:
    return (
        "<html><head><title>T</title></head><body><nav><a href='/'>Home</a></nav>"
        f"<article><p>{text}</p><p>{text} Twice.</p></article><footer>Imprint</footer>"
        "</body></html>"
    )


def test_rows_of_every_kind_of_table(tmp_path: Path) -> None:
    rows = [{"body": f"{TEXT} {n}", "key": n} for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.ndjson.zst").write_bytes(zstandard.compress(lines.encode()))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "e.csv").write_text(
        "key,body\n" + "".join(f'{r["key"]},"{r["body"]}"\n' for r in rows)
    )
    (tmp_path / "f.tsv").write_text(
        "body\tkey\n" + "".join(f"{r['body']}\t{r['key']}\n" for r in rows)
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "g.parquet")
    found = read(tmp_path, text_field="body", id_field="key")
    assert [each.name for each in found] == ["0", "1", "2"] * 7
    assert [each.text for each in found] == [row["body"] for row in rows] * 7
    assert len(texts(found)) == 21
    assert found[1].id == "s/a.jsonl:2"
    # Verses in a list are one text.
    (tmp_path / "d.json").write_text(json.dumps([{"body": ["一", "二"]}]))
    assert read(tmp_path, "d.json", text_field="body")[0].text == "一\n二"


def test_a_large_jsonl_is_divided_between_lines(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": "x" * n}) + "\n" for n in range(1, 99))
    )
    whole = read(tmp_path, "a.jsonl")
    monkeypatch.setattr("lmsmith.corpus.build.reading.plan.ITEM_BYTES", 200)
    assert ITEM_BYTES > 200
    recipe = CorpusRecipe({"s": SourceConfig(("a.jsonl",))}, folder=str(tmp_path))
    files, _, _ = find_files(recipe, {})
    assert len(make_items(recipe, files, [])) > 5
    assert read(tmp_path, "a.jsonl") == whole


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_jsonl_in_wide_characters(
    tmp_path: Path, monkeypatch: Any, encoding: str, packed: bool
) -> None:
    # U+0A0A has the bytes of two line ends, and U+2028 ends no row.
    rows = [f"{TEXT} \u0a0a\u2028 {n}" for n in range(99)]
    lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
    content = lines.encode(encoding)
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr("lmsmith.corpus.build.reading.plan.ITEM_BYTES", 200)
    assert texts(read(tmp_path)) == {f"s/a.jsonl:{n + 1}": row for n, row in enumerate(rows)}
    rows[50] = "long " * 300_000
    content = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode(encoding)
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(content) if packed else content)
    found = read(tmp_path, read=ReadConfig(max_row_mib=1))
    assert [n for n, each in enumerate(found) if isinstance(each, Removed)] == [50]
    assert len(found) == 99
    assert found[51].text == rows[51]


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "utf-16", "base64", "none\xff"])
def test_charsets_that_no_text_has(tmp_path: Path, charset: str) -> None:
    head = f"Subject: =?{charset}?q?Harbour?=\nContent-Type: text/plain; charset={charset}\n\n"
    (tmp_path / "a.eml").write_bytes(head.encode("latin-1") + TEXT.encode() + b" \\d")
    declared = page(TEXT).replace("<head>", f"<head><meta charset='{charset}'>")
    (tmp_path / "b.html").write_bytes(declared.encode("latin-1"))
    mail, site = texts(read(tmp_path)).values()
    assert mail.endswith(f"{TEXT} \\d")
    assert TEXT in site


def test_html_gives_its_main_text_whatever_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(page(TEXT))
    head = "<html><head><meta charset='gb2312'></head>"
    (tmp_path / "b.htm").write_bytes(page(CHINESE).replace("<html>", head).encode("gb2312"))
    found = texts(read(tmp_path))
    assert TEXT in found["s/a.html"]
    assert "Imprint" not in found["s/a.html"]
    assert CHINESE in found["s/b.htm"]
    everything = texts(read(tmp_path, "a.html", read=ReadConfig(main_text=False)))
    assert "Imprint" in everything["s/a.html"]
    (tmp_path / "b.htm").write_text("<html><body></body></html>")
    assert read(tmp_path, "b.htm")[0].reason == "an HTML page without main text"


def warc(pages: list[tuple[str, bytes, str]], packed: bool) -> bytes:
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=packed)
    for url, content, status in pages:
        headers = StatusAndHeaders(
            status, [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1"
        )
        record = writer.create_warc_record(
            url, "response", payload=io.BytesIO(content), http_headers=headers
        )
        writer.write_record(record)
        record.raw_stream.close()
    return file.getvalue()


def test_warc_pages_and_one_that_is_cut_in_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = [
        (
            f"http://a.example/{n}",
            page(f"{TEXT} {n} " * 300).encode(),
            "404 Gone" if n == 1 else "200 OK",
        )
        for n in range(6)
    ]
    for packed, name in ((True, "a.warc.gz"), (False, "b.warc")):
        content = warc(pages, packed)
        (tmp_path / name).write_bytes(content)
        found = read(tmp_path, name)
        assert [each.name[-1] for each in found] == ["0", "2", "3", "4", "5"]
        assert all(each.text.count(TEXT) > 500 for each in found)
        (tmp_path / name).write_bytes(content[: len(content) // 2 + 100])
        *before, last = read(tmp_path, name)
        assert [each.name[-1] for each in before] == ["0", "2"]
        assert "damaged" in last.reason or "cut off" in last.reason
    capsys.readouterr()
    length = re.compile(rb"(?<=\r\nContent-Length: )\d+")
    (tmp_path / "b.warc").write_bytes(
        length.sub(lambda found: b"%d" % (int(found[0]) - 30), content)
    )
    *before, last = read(tmp_path, "b.warc")
    assert [each.name[-1] for each in before] == ["0", "2", "3", "4", "5"]
    assert last.reason == "a WARC file with records of wrong lengths: 6"
    assert not capsys.readouterr().err
    (tmp_path / "b.warc").write_bytes(b"WARC/1.0\r\nnothing more")
    assert isinstance(read(tmp_path, "b.warc")[0], Removed)


def test_mail_gives_subject_and_text_without_addresses(tmp_path: Path) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "Ann <ann@a.example>", "bob@b.example"
    message["Subject"], message["Message-ID"] = "Grüße vom Hafen", "<1@a.example>"
    message.set_content(TEXT)
    message.add_alternative(page(TEXT), subtype="html")
    message.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="a.pdf")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    (tmp_path / "no-suffix").write_bytes(message.as_bytes())
    broken = b"Subject: =?gb2312?B?" + b"w+bH0g==?=\nContent-Type: text/plain; charset=x-none\n\n"
    mbox = b"From a@b Thu Aug 22 12:36:23 2002\n" + message.as_bytes() + b"\n"
    mbox += b"From c@d Thu Aug 22 12:36:24 2002\n" + broken + CHINESE.encode("gb18030") * 3 + b"\n"
    (tmp_path / "b.mbox").write_bytes(mbox)
    found = read(tmp_path)
    for each in (found[0], found[1], found[-1]):
        assert each.text.strip() == f"Grüße vom Hafen\n\n{TEXT}", each.id
        assert each.name == "<1@a.example>"
    assert CHINESE in found[2].text
    assert found[2].id == "s/b.mbox:2"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_encodings_of_western_text(tmp_path: Path, encoding: str) -> None:
    text = "Über den Dächern hört man die Möwen; der Küster läutet früh.\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path)[0].text == text


def test_encodings_of_chinese_text_and_a_few_broken_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((CHINESE * 20).encode("gb18030"))
    assert read(tmp_path)[0].text == CHINESE * 20
    # Six broken bytes do not make UTF-8 another encoding.
    (tmp_path / "a.txt").write_bytes((CHINESE * 20).encode() + b"\xff\xfe\xc0" * 2)
    assert read(tmp_path)[0].text == CHINESE * 20 + "\ufffd" * 6


def test_long_texts_are_cut_between_paragraphs(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {n}. {TEXT}" for n in range(100))
    (tmp_path / "a.md").write_text(text)
    found = read(tmp_path, read=ReadConfig(max_characters=1000))
    assert "".join(each.text for each in found) == text
    assert all(len(each.text) <= 1000 and each.text.startswith("Paragraph") for each in found)
    assert [each.id for each in found[:3]] == ["s/a.md", "s/a.md#1", "s/a.md#2"]


def test_a_pdf_of_endless_forms_is_given_up_and_the_next_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(endless_pdf())
    (tmp_path / "b.pdf").write_bytes(pdf_of(TEXT))
    endless, read_then = read(tmp_path, read=ReadConfig(pdf_seconds=1.0))
    assert endless.reason == "a PDF that crashes its reader or takes longer than 1 s"
    assert read_then.text == TEXT


def test_the_rest_of_a_very_long_pdf_is_listed(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(pdf_of(TEXT, 5001))
    *documents, rest = read(tmp_path)
    assert sum(each.text.count(TEXT) for each in documents) == 5000
    assert rest.reason == "the rest of a very long PDF"


def test_pdf_text_and_a_pdf_that_hangs(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(pdf_of(TEXT))
    assert read(tmp_path)[0].text == TEXT
    (tmp_path / "a.pdf").write_bytes(pdf_of(TEXT)[:100])
    assert "cannot be read" in read(tmp_path)[0].reason
    # A reader that never answers is ended, and the next file gets a new one.
    worker = tmp_path / "worker.py"
    worker.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    pdf._worker.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(pdf, "__file__", str(tmp_path / "x"))
        worker.rename(tmp_path / "pdf_worker.py")
        started = time.monotonic()
        found = read(tmp_path, "a.pdf", read=ReadConfig(pdf_seconds=0.5))
        assert "longer than 0.5 s" in found[0].reason
        assert time.monotonic() - started < 30
    pdf._worker.cache_clear()


def pdf_of(text: str, pages: int = 1) -> bytes:
    """A PDF of some equal pages."""
    drawn = b"BT /F1 12 Tf 20 700 Td (%s) Tj ET" % text.encode()
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 900 800]/Contents 5 0 R/Resources<<%s>>>>"
    return pdf_file(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[%s]/Count %d>>" % (b"3 0 R " * pages, pages),
            page % b"/Font<</F1 4 0 R>>",
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
            b"<</Length %d>>\nstream\n%s\nendstream" % (len(drawn), drawn),
        ]
    )


def endless_pdf(depth: int = 12) -> bytes:
    """A PDF of 3 kB that draws 10 to the power of ``depth`` letters: forms of ten forms each."""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<<%s>>>>"
    form = (
        b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>"
        b"/Length %d>>\nstream\n%s\nendstream"
    )
    ten = b"/X Do " * 10
    text = b"BT /F1 12 Tf (a) Tj ET"
    return pdf_file(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            page % b"/XObject<</X 5 0 R>>",
            b"<</Length %d>>\nstream\n%s\nendstream" % (len(ten), ten),
            *(form % (6 + n, len(ten), ten) for n in range(depth - 1)),
            b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F1<</Type/Font"
            b"/Subtype/Type1/BaseFont/Helvetica>>>>>>/Length %d>>\nstream\n%s\nendstream"
            % (len(text), text),
        ]
    )


def pdf_file(objects: list[bytes]) -> bytes:
    """A PDF with these objects, numbered from 1; the first is its catalogue."""
    content, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = 1 + len(objects)
    end = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(content))
    return content + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end


def reasons(found: list[Any]) -> dict[str, str]:
    return {each.id.removeprefix("s/"): each.reason for each in found if isinstance(each, Removed)}


def test_what_cannot_be_read_is_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    """Zero bytes, NUL bytes, a ZIP as text, bombs, broken rows and packing, loops, dead links."""
    (tmp_path / "good.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "nul.txt").write_bytes(bytes(5000))
    (tmp_path / "few-nul.txt").write_bytes((TEXT * 50).encode() + b"\0")
    with zipfile.ZipFile(tmp_path / "zip.txt", "w") as archive:
        archive.writestr("a.txt", TEXT)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * (70 << 20)))
    (tmp_path / "bomb.txt.zst").write_bytes(zstandard.compress(b"a" * (70 << 20)))
    (tmp_path / "half.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "' + os.urandom(9000).hex().encode() + b'"}')[:5000]
    )
    (tmp_path / "rows.jsonl").write_text(
        f'{{"text": "{TEXT}"}}\n{{"text":\n[1]\n{{"a": 1}}\n{{"text": " "}}\n'
    )
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "broken.json").write_text('[{"text": "a"}, {')
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    found = read(tmp_path)
    good = {each.id.removeprefix("s/") for each in found if isinstance(each, Document)}
    # Of a bomb what came before the limit is kept.
    assert {each for each in good if "bomb" not in each} == {
        "good.txt", "few-nul.txt", "rows.jsonl:1", "broken.json:1",
    }  # fmt: skip
    bad = reasons(found)
    assert bad.pop(str(tmp_path / "loop")) == "a link to a folder above it: a loop"
    assert bad.pop("self.txt").startswith("cannot be read: ")
    assert bad.pop("half.jsonl.gz:1") == "a row that is not JSON"
    assert bad.pop("half.jsonl.gz").startswith("the compressed file is damaged: ")
    assert bad.pop("broken.parquet").startswith("a damaged Parquet file: ")
    assert bad.pop("broken.json").startswith("no valid JSON: ")
    assert bad == {
        "empty.txt": "an empty file",
        "nul.txt": "binary, no text",
        "zip.txt": "a ZIP archive, no text",
        "bomb.txt.gz": "unpacks to more than 200 times its size",
        "bomb.txt.zst": "unpacks to more than 200 times its size",
        "rows.jsonl:2": "a row that is not JSON",
        "rows.jsonl:3": "a row that is no object",
        "rows.jsonl:4": "a row without text in the field text",
        "rows.jsonl:5": "a row with an empty text",
        "columns.csv": "a table without the column text: its columns are a, b",
    }


def test_a_line_longer_than_the_memory_for_it(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        file.write('{"text": "' + "x" * (3 << 20) + '"}\n' + json.dumps({"text": TEXT}) + "\n")
    found = read(tmp_path, "a.jsonl", read=ReadConfig(max_row_mib=1))
    assert reasons(found) == {"a.jsonl:1": "a row longer than 1 MiB"}
    assert texts(found[1:]) == {"s/a.jsonl:2": TEXT}
    (tmp_path / "b.txt").write_text("x" * (3 << 20))
    sizes = [len(each.text) for each in read(tmp_path, "b.txt")]
    assert sum(sizes) == 3 << 20
    assert max(sizes) == 100_000


def test_an_unreadable_folder_is_listed(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "closed").mkdir()
    listed = Path.iterdir

    def refused(self: Path) -> Any:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    found = read(tmp_path)
    assert texts(found[1:]) == {"s/a.txt": TEXT}
    assert reasons(found) == {str(tmp_path / "closed"): "cannot be read: Permission denied"}


def test_files_of_a_store_are_read_by_their_addresses(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    packed = gzip.compress(
        b"".join(json.dumps({"text": f"{TEXT} {n}"}).encode() + b"\n" for n in (1, 2))
    )
    store.pipe({"/bucket/crawl/a.jsonl.gz": packed, "/bucket/crawl/deep/b.txt": TEXT.encode()})
    rows = {f"s/memory:///bucket/crawl/a.jsonl.gz:{n}": f"{TEXT} {n}" for n in (1, 2)}
    text = {"s/memory:///bucket/crawl/deep/b.txt": TEXT}
    assert texts(read(tmp_path, "memory://bucket/crawl/*.gz")) == rows
    assert texts(read(tmp_path, "memory://bucket/crawl")) == rows | text
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path, "memory://bucket/nowhere/*.txt")
    # A file of the same size that was written again is another one.
    recipe = CorpusRecipe({"s": SourceConfig(("memory://bucket/crawl/deep/b.txt",))})
    before = find_files(recipe, {})[0][0].state
    assert find_files(recipe, {})[0][0].state == before
    store.pipe("/bucket/crawl/deep/b.txt", TEXT.swapcase().encode())
    assert find_files(recipe, {})[0][0].state != before


def test_files_are_found_once_by_folders_globs_packages_and_addresses(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one.txt").write_text(TEXT)
    (tmp_path / "a/.hidden.txt").write_text(TEXT)
    assert set(texts(read(tmp_path, "a", "a/b/one.txt", "a/**/*.txt"))) == {"s/a/b/one.txt"}
    address = (tmp_path / "a/b/one.txt").as_uri()
    assert texts(read(tmp_path, address)) == {f"s/{address}": TEXT}
    (each,) = read(tmp_path, "package:msgspec/*/METADATA", format="text")
    assert each.text.startswith("Metadata-Version")
    for path, message in (
        ("nowhere.txt", "no such file or folder"),
        ("*.nothing", "no file matches"),
        ("package:no-such-package", "not installed"),
        ("package:msgspec/*.nothing", "no file of the package matches"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, path)


def test_a_file_that_breaks_its_reader_is_listed(tmp_path: Path) -> None:
    """Each of these ended the build with a traceback, or took for ever."""
    nested = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3000)
    )
    (tmp_path / "deep.eml").write_bytes(b"Subject: deep\n" + nested + b"\n\nend")
    seventh = f"Subject: x\nContent-Type: text/plain; charset=utf-7\n\n{TEXT} +2AA-"
    (tmp_path / "seventh.eml").write_text(seventh)
    (tmp_path / "comments.svg").write_text("<!-- a -->\n" * 60 + f"<svg>{TEXT}</svg>")
    (tmp_path / "comments.xml").write_text("<?xml a?>" + "<!-- a -->" * 60 + f"<p>{TEXT}</p>")
    dates = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": [TEXT], "id": dates}), tmp_path / "dates.parquet")
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.txt")).write_text(TEXT)
    found = {each.id.removeprefix("s/"): each for each in read(tmp_path)}
    for document in found.values():
        msgspec.json.encode(document)
    assert TEXT in found["seventh.eml:1"].text
    assert TEXT in found["comments.svg"].text
    assert TEXT in found["comments.xml"].text
    assert found["\\xff.txt"].text == TEXT
    assert "cannot be parsed: RecursionError" in found["deep.eml:1"].reason
    assert "a damaged Parquet file" in found["dates.parquet"].reason
    assert len(found) == 6


def test_a_fault_in_a_reader_is_the_files(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(file: Any) -> Any:
        raise ZeroDivisionError("of a parser")

    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.html").write_text(page(TEXT))
    monkeypatch.setattr("lmsmith.corpus.build.reading.read.decoded", broken)
    first, second = read(tmp_path)
    assert first.reason == "it breaks its reader: ZeroDivisionError: of a parser"
    assert TEXT in second.text


def test_rows_after_a_quote_that_is_never_closed_are_read(tmp_path: Path) -> None:
    rows = [f'{n},"{TEXT} {n}"\n' for n in range(40)]
    rows[7] = f'7,"{TEXT}\n'
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(rows))
    found = read(tmp_path)
    assert reasons(found) == {"a.csv:9": "a row whose quote is never closed"}
    kept = [each.name for each in found if isinstance(each, Document)]
    assert kept == [str(n) for n in range(40) if n != 7]
    rows[7] = "".join(f'7,"{TEXT}\n{row}' for row in rows[8:30])
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(rows))
    assert reasons(read(tmp_path))["a.csv"] == "a damaged table: the rest is not read"


def test_line_ends_of_old_macs_and_a_stray_one_in_tables(tmp_path: Path) -> None:
    line = TEXT.replace(",", "")
    (tmp_path / "a.csv").write_bytes(f"id,text\r1,{line}\r2,{line}\r".encode())
    stray = line.replace(" ", "\r", 1)
    (tmp_path / "b.csv").write_bytes(f"id,text\r\n1,{stray}\r\n2,{line}\r\n".encode())
    found = texts(read(tmp_path))
    assert found == dict.fromkeys([f"s/{name}.csv:{n}" for name in "ab" for n in (2, 3)], line)


def test_a_packed_parquet_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [TEXT]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert texts(read(tmp_path)) == {"s/a.parquet:1": TEXT, "s/b.parquet.gz:1": TEXT}


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"])
def test_wide_characters_without_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    (tmp_path / "b.jsonl").write_bytes(json.dumps({"text": TEXT}).encode(encoding))
    assert set(texts(read(tmp_path)).values()) == {TEXT}


def test_a_full_disk_leaves_no_file_out(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pq.write_table(pa.table({"text": [TEXT]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    (tmp_path / "a.parquet").unlink()
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        read(tmp_path)
