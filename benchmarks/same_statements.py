"""Check that a refactoring changed no statement of the package.

    git worktree add ../before COMMIT
    python benchmarks/same_statements.py ../before . --renames renames.json

All top-level statements of all modules are compared as syntax trees, whichever module
has them: without docstrings, imports and names of modules, and with imported objects
named as where they are defined. ``renames.json`` maps names before to names after. If
statements differ, they are printed, and the exit status is 1.
"""

import argparse
import ast
from collections import Counter
import json
from pathlib import Path
import sys


class Canonical(ast.NodeTransformer):
    """Rewrite a module so that only its statements count."""

    def __init__(self, tree, modules, renames):
        self.modules, self.names, self.renames = set(), {}, renames
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                self._learn(node, modules)

    def _learn(self, node, modules):
        for alias in node.names:
            local = alias.asname or alias.name
            if f"{node.module}.{alias.name}" in modules:
                self.modules.add(local)
            else:
                self.names[local] = alias.name

    def rename(self, name):
        """Return the name after the refactoring."""
        return self.renames.get(name, name)

    def visit_Import(self, node):  # noqa: N802
        """Remove imports."""

    visit_ImportFrom = visit_Import  # noqa: N815

    def visit_Name(self, node):  # noqa: N802
        """Name imported objects as where they are defined."""
        return ast.Name(self.rename(self.names.get(node.id, node.id)), node.ctx)

    def visit_Attribute(self, node):  # noqa: N802
        """Remove the names of modules."""
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.Name(self.rename(node.attr), node.ctx)
        self.generic_visit(node)
        node.attr = self.rename(node.attr)
        return node

    def visit_arg(self, node):
        """Rename parameters."""
        self.generic_visit(node)
        node.arg = self.rename(node.arg)
        return node

    def visit_keyword(self, node):
        """Rename arguments."""
        self.generic_visit(node)
        node.arg = self.rename(node.arg) if node.arg else None
        return node

    def visit_FunctionDef(self, node):  # noqa: N802
        """Rename functions and classes, and remove their docstrings."""
        self.generic_visit(node)
        node.name = self.rename(node.name)
        node.body = without_docstring(node.body)
        return node

    visit_ClassDef = visit_FunctionDef  # noqa: N815


def without_docstring(body):
    """Return statements without a docstring."""
    first = body[0] if body else None
    value = first.value if isinstance(first, ast.Expr) else None
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return body[1:] if is_text else body


def read_modules(root):
    """Parse all modules of the package; return trees by name."""
    trees = {}
    for file in sorted(Path(root, "dipy_ldm").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(file.read_text("utf-8"))
    return trees


def statements(root, renames):
    """Count the top-level statements of all modules."""
    trees, counts = read_modules(root), Counter[str]()
    for tree in trees.values():
        canonical = Canonical(tree, trees, renames).visit(tree)
        for node in without_docstring(canonical.body):
            counts[ast.unparse(ast.fix_missing_locations(node))] += 1
    return counts


def main():
    """Compare two folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="folder with the package as it was")
    parser.add_argument("after", help="folder with the package as it is")
    parser.add_argument("--renames", type=Path, help="JSON: names before to after")
    options = parser.parse_args()
    renames = json.loads(options.renames.read_text()) if options.renames else {}
    before = statements(options.before, renames)
    after = statements(options.after, {})
    for sign, only in (("-", before - after), ("+", after - before)):
        for text in only:
            print(f"{sign} {text}\n")
    print(f"{before.total()} statements before, {after.total()} after")
    sys.exit(before != after)


if __name__ == "__main__":
    main()
