"""Reads the modules, imports, folders and wheel of this project, for test_imports.py.

Every function returns what breaks its rule, so a test asserts that there is nothing. Imports are
those anywhere in a module: in functions and under TYPE_CHECKING too.
"""

import ast
import graphlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent

Import = tuple[str, str]
"""The importing module and its target."""


class Structure:
    """The modules of some packages; `roots` has the folder of each.

    They are parsed when a test needs them: every pytest worker imports test_imports.py.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = roots

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {
            _module(root, folder, path): ast.parse(path.read_text(encoding="utf-8"))
            for root, folder in self.roots.items()
            for path in sorted(folder.rglob("*.py"))
        }

    @cached_property
    def packages(self) -> set[str]:
        return {
            _module(root, folder, path)
            for root, folder in self.roots.items()
            for path in folder.rglob("__init__.py")
        }

    @cached_property
    def imports(self) -> list[Import]:
        return [
            (module, target)
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            for target in self._targets(module, node)
        ]

    def _targets(self, module: str, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Import):
            return {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom):
            return set()
        assert node.level == 0, f"{module} has a relative import: {ast.unparse(node)}"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in self.trees else str(node.module) for name in names}

    def wrong_directions(self, library: str, exceptions: str) -> list[Import]:
        """Imports from another root than the library."""
        return [
            (module, target)
            for module, target in self.imports
            if _root(target) in self.roots
            and _root(target) not in (_root(module), library)
            and not matches(module, exceptions)
        ]

    def against_layers(self, layers: Mapping[str, str]) -> list[Import]:
        """Imports inside a root from the same or a higher layer, and those of the root itself.

        Layers are separated by "/", the lowest first. Packages of one layer do not import each
        other, unless it is marked by "+".
        """
        floors = {
            f"{root}.{package}": (number, "+" in layer.split())
            for root, text in layers.items()
            for number, layer in enumerate(text.split("/"))
            for package in layer.split()
        }
        wrong = []
        for module, target in self.imports:
            root = _root(module)
            if root not in layers or root != _root(target) or module == root:
                continue
            own, other = (".".join(name.split(".")[:2]) for name in (module, target))
            assert own in floors, f"{module} has no place in LAYERS"
            if target == root:
                wrong.append((module, target))
            elif own != other:
                (floor, may_be_level), (below, _) = floors[own], floors[other]
                if below > floor or (below == floor and not may_be_level):
                    wrong.append((module, target))
        return wrong

    def cycle(self) -> list[str]:
        """The modules of one import cycle, if there is any."""
        graph: dict[str, set[str]] = {module: set() for module in self.trees}
        for module, target in self.imports:
            if target in self.trees and target != module:
                graph[module].add(target)
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            return list(error.args[1])
        return []

    def between(self, members: str) -> list[Import]:
        """Imports of one of these modules or packages by another one."""
        return [
            (module, target)
            for module, target in self.imports
            if matches(target, members)
            and any(matches(module, own) and not matches(target, own) for own in members.split())
        ]

    def past_packages(self, entry_points: str) -> list[Import]:
        """Imports of a module by others than its own package, which exports what others may use.

        `entry_points` are the modules and packages that are imported by their paths.
        """
        return [
            (module, str(node.module))
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in self.trees
            for package in [self._package(node.module)]
            if package not in self.roots
            if not matches(node.module, entry_points) and not matches(module, package)
            if node.module != package or not self._exports(package) >= {a.name for a in node.names}
        ]

    def _package(self, module: str) -> str:
        return module if module in self.packages else module.rpartition(".")[0]

    def _exports(self, package: str) -> set[str]:
        """What is in its `__all__`, and the packages inside it."""
        exported = [
            ast.literal_eval(node.value)
            for node in self.trees[package].body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        inner = {name.rpartition(".")[2] for name in self.packages if matches(name, package)}
        return inner.union(*exported)

    def uses(self, modules: str, targets: str) -> list[Import]:
        """Imports of `targets` by `modules`."""
        return [
            pair for pair in self.imports if matches(pair[0], modules) and matches(pair[1], targets)
        ]

    def outside_doors(self, doors: Mapping[str, str]) -> list[Import]:
        """Imports of third-party packages by modules that are not their doors.

        A package without an entry has no door; "*" lets every module import it.
        """
        return [
            (module, target)
            for module, target in self.imports
            if (package := _root(target)) not in sys.stdlib_module_names | self.roots.keys()
            and doors.get(package) != "*"
            and not matches(module, doors.get(package, ""))
        ]

    def readers(self, attributes: str, besides: str) -> list[str]:
        """Modules that read an attribute of one of these names."""
        return [
            module
            for module, tree in self.trees.items()
            if not matches(module, besides)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in attributes.split()
        ]

    def decoders(self, besides: str) -> list[str]:
        """Modules that decode JSON by themselves, with msgspec or the standard library."""
        own = re.compile(r"(msgspec\.)?json\.(decode|Decoder|JSONDecoder|load|loads)")
        return [
            module
            for module, tree in self.trees.items()
            if not matches(module, besides)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and own.fullmatch(ast.unparse(node))
        ]

    def crowded_folders(self, most: int) -> dict[str, int]:
        """Folders with more modules, `__init__` not counted."""
        modules = Counter(
            f"{root}/{path.parent.relative_to(folder)}"
            for root, folder in self.roots.items()
            for path in folder.rglob("*.py")
            if path.stem != "__init__"
        )
        return {folder: count for folder, count in modules.items() if count > most}


def matches(module: str, names: str) -> bool:
    """Whether a module is one of `names`, or inside it."""
    return any(f"{module}.".startswith(f"{name}.") for name in names.split())


def modules_loaded_by(package: str) -> set[str]:
    """The modules that the import of a package loads in a new process."""
    code = f"import sys, {package}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, timeout=30).split())


def wheel_names(project: Path = ROOT) -> set[str]:
    """Build the wheel; gives the top-level names that it installs, its metadata aside."""
    with tempfile.TemporaryDirectory() as folder:
        [wheel] = WheelBuilder(str(project)).build(directory=folder, versions=["standard"])
        with zipfile.ZipFile(wheel) as archive:
            names = {name.split("/")[0] for name in archive.namelist()}
    return {name for name in names if not name.endswith(".dist-info")}


def sdist_files(folder: Path) -> set[str]:
    """Build the sdist; gives the files in it."""
    [sdist] = SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def dotted(names: str) -> str:
    """Full names: `x` is `eventbus.x`, and `edge.x` is `eventbus_edge.x`."""
    return " ".join(
        f"eventbus{'_' if name.startswith('edge.') else '.'}{name}" for name in names.split()
    )


def table(text: str) -> dict[str, str]:
    """Parse `packages: modules; …`; those of one package add up, and `*` is any module."""
    doors: dict[str, str] = {}
    for entry in text.split(";"):
        packages, _, modules = entry.partition(":")
        for package in packages.split():
            known = f"{doors[package]} " if package in doors else ""
            doors[package] = known + ("*" if modules.strip() == "*" else dotted(modules))
    return doors


def _module(root: str, folder: Path, path: Path) -> str:
    parts = (root, *path.relative_to(folder).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _root(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


PROJECT = Structure(
    {
        "eventbus": ROOT / "eventbus",
        "eventbus_edge": ROOT / "edge/eventbus_edge",
        "schemas": ROOT / "schemas",
    }
)
"""This one."""
