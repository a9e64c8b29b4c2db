"""A Dockerfile as data, and its stages carried out in a plain folder instead of an image."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.expressions import ROOT

SOURCE = ROOT / "Dockerfile"
KNOWN = {
    *("ARG", "CMD", "COPY", "ENV", "EXPOSE", "FROM"),
    *("HEALTHCHECK", "LABEL", "RUN", "USER", "VOLUME", "WORKDIR"),
}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line with its continuations: `COPY --from=wheel /dist /dist`."""

    word: str
    flags: dict[str, str]
    text: str


@dataclass(kw_only=True)
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        return [each for each in self.instructions if each.word == word]

    def assigned(self, word: str) -> dict[str, str]:
        """All that ENV or LABEL of this stage sets."""
        pairs = (pair for each in self.all(word) for pair in shlex.split(each.text))
        return dict(pair.split("=", 1) for pair in pairs)


def stages() -> dict[str, Stage]:
    """By name, in order; what stands before the first FROM is left out."""
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for each in _instructions():
        if each.word == "FROM":
            base, _, name = re.split(r"\s+", each.text)
            stage = found.setdefault(name, Stage(name=name, base=base))
        elif stage is not None:
            stage.instructions.append(each)
    return found


def lineage(name: str) -> list[Stage]:
    """The stage and those it is built upon, the first one first."""
    known, chain = stages(), []
    while name in known:
        chain.append(known[name])
        name = known[name].base
    return chain[::-1]


def in_context(path: Path) -> bool:
    """Whether .dockerignore lets a file of the repository in; the last matching line decides."""
    place, inside = path.relative_to(ROOT).as_posix(), True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        pattern = line.removeprefix("!")
        if _matches(place, pattern):
            inside = line.startswith("!")
    return inside


def copied_files(source: str) -> list[Path]:
    """Files of the repository that `COPY source` takes."""
    path = ROOT / source
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [each for each in files if in_context(each)]


class Tree:
    """A folder in place of an image's root; stages share it, which plain paths allow here.

    Args:
        build_args: values of ARG that take the place of the defaults.
    """

    def __init__(self, root: Path, build_args: dict[str, str]) -> None:
        self.root = root
        self._build_args = build_args
        self._cwd = root
        self.env = {**os.environ, "PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}"}
        (root / "tmp").mkdir(parents=True)
        (root / "etc").mkdir()
        for name in ("passwd", "group", "shadow", "gshadow"):
            (root / "etc" / name).touch()

    def build(self, name: str) -> None:
        """Carry out one stage, without those it is built upon."""
        for each in stages()[name].instructions:
            self._carry_out(each)

    def placed(self, text: str) -> str:
        """Absolute paths of the image moved into the folder."""
        return re.sub(r"(?<![\w.\-/])/(?=(opt|src|dist|data|tmp)\b)", f"{self.root}/", text)

    def _carry_out(self, each: Instruction) -> None:
        if each.word == "ENV":
            for pair in shlex.split(each.text):
                key, value = pair.split("=", 1)
                self.env[key] = self.placed(value).replace("$PATH", self.env["PATH"])
        elif each.word == "ARG":
            key, _, default = each.text.partition("=")
            self.env[key] = self._build_args.get(key, default.strip('"'))
        elif each.word == "WORKDIR":
            self._cwd = Path(self.placed(each.text))
            self._cwd.mkdir(parents=True, exist_ok=True)
        elif each.word == "COPY" and "from" not in each.flags:
            self._copy(shlex.split(each.text))
        elif each.word == "RUN":
            self._run(each.text)

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        for source in sources:
            for path in copied_files(source):
                base = ROOT if target.endswith("/") else ROOT / source
                placed = self._cwd / target / path.relative_to(base)
                placed.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, placed)

    def _run(self, text: str) -> None:
        """Users are added to the folder's own files; where that takes root, others leave it out."""
        if "useradd" in text and os.getuid() != 0:
            return
        command = re.sub(r"\b(groupadd|useradd)\b", rf"\1 --prefix {self.root}", self.placed(text))
        done = subprocess.run(
            ["sh", "-euc", command], cwd=self._cwd, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _instructions() -> Iterator[Instruction]:
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, rest = line.split(maxsplit=1)
        assert word in KNOWN, f"{word} is not known to the tests"
        flags = {}
        while found := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        yield Instruction(word=word, flags=flags, text=rest)


def _matches(place: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatch(part, pattern[3:]) for part in place.split("/"))
    return any(fnmatch.fnmatch(place[: at.start()], pattern) for at in re.finditer(r"/|$", place))
