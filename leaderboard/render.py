"""The leaderboard as files: a site that needs nothing but its own folder, and its table for other programs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file, whole_folder
from autopet.progress import track
from leaderboard.analysis import analyse
from leaderboard.case_pages import case_files
from leaderboard.export import leaderboard_csv, leaderboard_json
from leaderboard.findings import make_findings
from leaderboard.lesion_table import read_lesions
from leaderboard.pages import PAGES, algorithm_page, cases_page, index_page, metrics_page, volumes_page
from leaderboard.scheme import Scheme
from leaderboard.scheme_file import SCHEMES
from leaderboard.submissions import Submission
from leaderboard.view import Board, Findings, make_board

ASSETS = Path(__file__).parent / "assets"
MARK = "site.css"  # a folder of pages holds it


def write_site(
    submissions: Sequence[Submission], out: Path, *, title: str = "Leaderboard", scheme: Scheme = SCHEMES["I"]
) -> Path:
    """Rank submissions and write index.html, leaderboard.csv, leaderboard.json, methods.txt and the folder `pages`.

    The first page is made before anything is written, `pages` appears whole or not at all, and so does each file. The
    site works from file:// and loads nothing from elsewhere.

    Parameters
    ----------
    submissions : sequence of Submission
        From `read_results`, which makes sure that they can be compared.
    out : Path
        Folder, made if needed; an earlier site in it is replaced, other files are left.
    title : str
        Heading of the first page.
    scheme : Scheme
        How to rank; its `bootstraps` may be 0, then the site says that intervals were not computed.

    Returns
    -------
    Path
        index.html.

    Raises
    ------
    AutopetError
        No submissions, results that the scheme cannot rank, a damaged lesions.csv, a folder that cannot be written,
        or one in which `pages` is something else.
    """
    if not submissions:
        raise AutopetError("no submissions to rank")
    analysis = analyse(submissions, scheme)
    board = make_board(analysis.standings, scheme, title=title)
    findings = make_findings(board, analysis)
    texts = {
        "leaderboard.csv": leaderboard_csv(board, findings),
        "leaderboard.json": leaderboard_json(board, findings),
        "methods.txt": findings.methods,
        "index.html": index_page(board, findings),
    }
    out = Path(out)
    _refuse_other_pages(out / PAGES)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with whole_folder(out / PAGES) as folder:
            for name, text in _pages(board, findings):
                (folder / name).write_bytes(_encoded(text))
            for asset in sorted(ASSETS.iterdir()):
                shutil.copyfile(asset, folder / asset.name)
        for name, text in texts.items():
            _write(out / name, _encoded(text))
    except OSError as error:
        raise AutopetError(f"{out}: the leaderboard cannot be written ({one_line(error)})") from error
    return out / "index.html"


def _pages(board: Board, findings: Findings) -> Iterator[tuple[str, str]]:
    """Texts of the files in the folder of pages, one after the other: volumes of all cases do not fit into memory."""
    yield "metrics.html", metrics_page(board)
    yield "volumes.html", volumes_page(board)
    yield "cases.html", cases_page(board)
    for entrant in board.entrants:
        yield entrant.page, algorithm_page(board, findings, entrant)
    tables = [entrant.standing.submission.lesions for entrant in board.entrants]
    lesions = [None if path is None else read_lesions(path) for path in tables]
    for patient in track(board.patients, "case pages", total=len(board.patients)):
        yield from case_files(board, patient, lesions).items()


def _refuse_other_pages(folder: Path) -> None:
    """An earlier site's pages are replaced, nothing else is."""
    if folder.is_symlink() or (folder.exists() and not (folder / MARK).is_file()):
        raise AutopetError(f"{folder}: expected the pages of an earlier leaderboard or nothing; choose another folder")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as part:
        part.write_bytes(content)
