"""The npm package @eventbus/echo: what is in it, its types, and its size."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "npm" / "echo"
MODULES = {"resume.js", "resume.d.ts"}
MAX_BYTES = 1_024
OPTIONS = (
    "--strict --noEmit --skipDefaultLibCheck --target es2022 --lib es2022,dom --pretty false "
    "--jsx react-jsx --module esnext --moduleResolution bundler --preserveSymlinks"
)

ACCEPTED = """
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { withResume } from "@eventbus/echo";

const Resuming: typeof Pusher = withResume(Pusher);
const pusher: Pusher = new (withResume(Pusher))("key", { cluster: "", wsHost: "localhost" });
pusher.subscribe("general").bind("n", (n: number) => n);
export const echo: Echo<"reverb"> = new Echo({
  broadcaster: "reverb",
  Pusher: withResume(Pusher),
  key: "app-key",
  wsHost: "localhost",
  wsPort: 8080,
  wssPort: 443,
  forceTLS: false,
  enabledTransports: ["ws", "wss"],
  authEndpoint: "http://localhost:8080/broadcasting/auth",
  bearerToken: "a.b.c",
});
echo.private("user.7").listen(".shipped", (data: { id: number }) => data.id);
export { Resuming };
"""
REJECTED = """
import Pusher from "pusher-js";
import { withResume, resume } from "@eventbus/echo"; // expect: 2305

withResume(); // expect: 2554
withResume(new Pusher("key", { cluster: "" })); // expect: 2345
withResume(class {}); // expect: 2345
new (withResume(Pusher))(7, { cluster: "" }); // expect: 2345
export { resume };
"""

pytestmark = [pytest.mark.npm, pytest.mark.timeout(240)]


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The package as `npm pack` makes it, in a copy: other tests read the tree meanwhile."""
    copy = tmp_path_factory.mktemp("tree")
    built = shutil.ignore_patterns("LICENSE", "*.tgz", "node_modules")
    shutil.copytree(SOURCE, copy / "npm" / "echo", ignore=built)
    shutil.copy(ROOT / "LICENSE", copy)
    code, output = run("npm", "pack", "--silent", "--offline", cwd=copy / "npm" / "echo")
    assert code == 0, output
    [archive] = (copy / "npm" / "echo").glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(copy, filter="data")
    return copy / "package"


@pytest.fixture(scope="module")
def program(packed, node_folder, tmp_path_factory):
    """A program's folder, in which the package is installed beside Echo and pusher-js."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "node_modules" / "@eventbus").mkdir(parents=True)
    shutil.copytree(packed, folder / "node_modules" / "@eventbus" / "echo")
    for path in (node_folder / "node_modules").iterdir():
        if path.name != "@eventbus":
            (folder / "node_modules" / path.name).symlink_to(path)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def documented(page, begin):
    """The program of a page that begins so."""
    text = page.read_text(encoding="utf-8")
    [program] = re.findall(rf"^```\w+\n({begin}.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "declare const token: string;\n" + program.replace("(data) =>", "(data: unknown) =>")


@pytest.fixture(scope="module")
def programs():
    """By the names of files; the compiler starts slowly, so it compiles all of them at once."""
    page = ROOT / "docs" / "laravel-echo.md"
    resuming = documented(page, "import { withResume }")  # it adds to the first one
    imports = 'import Echo from "laravel-echo";\nimport Pusher from "pusher-js";\n'
    return {
        "accepted.ts": ACCEPTED,
        "rejected.ts": REJECTED,
        "readme.ts": documented(SOURCE / "README.md", "import Echo"),
        "first.ts": documented(page, "import Echo"),
        "hooks.tsx": documented(page, "import { configureEcho"),
        "resuming.ts": imports
        + resuming.replace("/* as above */", 'broadcaster: "reverb", key: "k",'),
    }


@pytest.fixture(scope="module")
def compiled(program, programs, node_folder):
    """The errors as (file, line, number), and all that was said."""
    for name, text in programs.items():
        (program / name).write_text(text)
    tsc = node_folder / "node_modules" / ".bin" / "tsc"
    _, output = run(tsc, *OPTIONS.split(), *programs, cwd=program)
    found = re.findall(r"^(\S+)\((\d+),\d+\): error TS(\d+)", output, re.MULTILINE)
    return [(name, int(line), int(number)) for name, line, number in found], output


def test_package_holds_plugin_types_readme_and_licence_as_they_are(packed):
    files = {path.name for path in packed.iterdir()}
    assert files == {"package.json", "README.md", "LICENSE"} | MODULES
    for name in files:
        source = ROOT if name == "LICENSE" else SOURCE
        assert (packed / name).read_bytes() == (source / name).read_bytes()


def test_package_has_the_version_of_the_project_and_imports_nothing():
    manifest = json.loads((SOURCE / "package.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert manifest["version"] == project["version"]
    assert manifest["peerDependencies"].keys() == {"pusher-js"}
    assert not {"dependencies", "devDependencies", "optionalDependencies"} & manifest.keys()
    assert "import" not in re.findall(r"^\w+", (SOURCE / "resume.js").read_text(), re.MULTILINE)


def test_programs_compile_strictly_and_each_mistake_is_found(compiled):
    expected = [
        ("rejected.ts", number, int(match[1]))
        for number, line in enumerate(REJECTED.splitlines(), 1)
        if (match := re.search(r"// expect: (\d+)$", line))
    ]
    errors, output = compiled
    assert errors == expected, output


def test_plugin_is_about_one_kilobyte_minified_and_compressed(packed, node_folder, capsys):
    esbuild = node_folder / "node_modules" / ".bin" / "esbuild"
    code, minified = run(esbuild, "--minify", packed / "resume.js", cwd=packed)
    assert code == 0, minified
    size = len(gzip.compress(minified.encode(), 9))
    with capsys.disabled():
        sys.stdout.write(f"\n@eventbus/echo: {size} bytes minified and compressed\n")
    assert size <= MAX_BYTES
